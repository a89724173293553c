# The whole paper: config/ -> runs -> tables and figures. `snakemake --cores 2` does it at scale smoke.
from snakemake.utils import min_version

min_version("9.23")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/train.smk"


report: "workflow/report/workflow.rst"


if not TRAINING_JOB:

    include: "workflow/rules/tables.smk"
    include: "workflow/rules/figures.smk"
    include: "workflow/rules/claims.smk"

    rule all:
        default_target: True
        input:
            FLOW.tables_target,
            FIGURES.files("index", rules),
            CLAIMS.target("claims"),
            f"{FLOW.results}/index.html",

    rule tables:
        input:
            FLOW.tables_target,

    rule grid:
        input:
            FLOW.grid_target,
            FIGURES.files("grid", rules),
            CLAIMS.target("claims_grid"),
            f"{FLOW.results}/grid.html",
