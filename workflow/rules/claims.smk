# From results to verdicts on the paper's claims (config/claims.yaml). How a verdict is reached: docs/claims.md.
from fbt_paper.plan.claims import ClaimPlan

CLAIMS = ClaimPlan(FLOW)


wildcard_constraints:
    claims="claims|claims_grid",


localrules:
    judge_claims,


rule judge_claims:
    input:
        lambda wildcards: CLAIMS.inputs(wildcards.claims),
    output:
        csv=report(
            f"{FLOW.results}/{{claims}}.csv",
            caption="../report/claims.rst",
            category="Claims of the paper",
        ),
        intervals=f"{FLOW.results}/{{claims}}_intervals.csv",
        md=f"{FLOW.results}/{{claims}}.md",
        tex=f"{FLOW.results}/{{claims}}.tex",
    log:
        f"{FLOW.results}/logs/{{claims}}.log",
    params:
        shows=lambda wildcards: CLAIMS.shows(wildcards.claims),
        standing=lambda wildcards: FLOW.standing(CLAIMS.inputs(wildcards.claims)),
    shell:
        f"{FLOW.fbt} judge-claims {{wildcards.claims:q}} 2>&1 | tee {{log:q}}"
