# From results to tables. Table 6 is counted, not trained.


rule measure_cost:
    input:
        table="config/tables/{table}.yaml",
        architectures="config/architectures.yaml",
    output:
        f"{FLOW.results}/costs/{{table}}.json",
    log:
        f"{FLOW.results}/logs/measure_cost/{{table}}.log",
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        f"{FLOW.python} -m fbt_core.measure.cost {{wildcards.table:q}} --out {{output:q}} 2>&1 | tee {{log:q}}"


rule build_table:
    input:
        lambda wildcards: FLOW.table_inputs(wildcards.table),
    output:
        csv=report(
            f"{FLOW.results}/tables/{{table}}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        md=f"{FLOW.results}/tables/{{table}}.md",
        tex=f"{FLOW.results}/tables/{{table}}.tex",
    log:
        f"{FLOW.results}/logs/build_table/{{table}}.log",
    shell:
        f"{FLOW.fbt} build-table {{wildcards.table:q}} 2>&1 | tee {{log:q}}"


rule compare_with_paper:
    input:
        lambda wildcards: FLOW.comparison_inputs(wildcards.comparison),
    output:
        f"{FLOW.results}/{{comparison}}.md",
    log:
        f"{FLOW.results}/logs/{{comparison}}.log",
    shell:
        f"{FLOW.fbt} compare {{wildcards.comparison:q}} --out {{output:q}} 2>&1 | tee {{log:q}}"
