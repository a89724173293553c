# From results to tables. Table 6 is counted, not trained.
# `shows` is a digest of what a file shows besides results (fbt_paper/plan/shown.py): it is made again when that changes.
# `standing` is not empty if results were deleted or read weights that are gone: it is made again then as well.


localrules:
    all,
    tables,
    grid,
    build_table,
    collect_results,
    compare_with_paper,


rule measure_cost:
    output:
        f"{FLOW.results}/costs/{{table}}.json",
    log:
        f"{FLOW.results}/logs/measure_cost/{{table}}.log",
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        counted=lambda wildcards: FLOW.counted(wildcards.table),
    shell:
        f"{FLOW.python} -m fbt_core.measure.cost {{wildcards.table:q}} --out {{output:q}} 2>&1 | tee {{log:q}}"


rule collect_results:
    input:
        FLOW.with_scratch(FLOW.plan.all_tables),
    output:
        f"{FLOW.results}/results.csv",
    log:
        f"{FLOW.results}/logs/collect_results.log",
    params:
        shows=FLOW.shows(FLOW.plan.all_tables),
        standing=lambda wildcards: FLOW.standing(
            FLOW.with_scratch(FLOW.plan.all_tables)
        ),
    shell:
        f"{FLOW.fbt} collect-results --out {{output:q}} 2>&1 | tee {{log:q}}"


rule build_table:
    input:
        lambda wildcards: FLOW.results_of([wildcards.table]),
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
    params:
        shows=lambda wildcards: FLOW.shows([wildcards.table]),
        standing=lambda wildcards: FLOW.standing(FLOW.results_of([wildcards.table])),
    shell:
        f"{FLOW.fbt} build-table {{wildcards.table:q}} 2>&1 | tee {{log:q}}"


rule compare_with_paper:
    input:
        lambda wildcards: FLOW.with_scratch(FLOW.compared(wildcards.comparison)),
    output:
        f"{FLOW.results}/{{comparison}}.md",
    log:
        f"{FLOW.results}/logs/{{comparison}}.log",
    params:
        shows=lambda wildcards: FLOW.shows(FLOW.compared(wildcards.comparison)),
        standing=lambda wildcards: FLOW.standing(
            FLOW.with_scratch(FLOW.compared(wildcards.comparison))
        ),
    shell:
        f"{FLOW.fbt} compare {{wildcards.comparison:q}} --out {{output:q}} 2>&1 | tee {{log:q}}"


# `snakemake table4`: one table with all that it needs.
for _table in FLOW.plan.tables:

    rule:
        name:
            _table
        input:
            FLOW.table_files([_table]),
            FLOW.results_of([_table]),
        localrule: True
