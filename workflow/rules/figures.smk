# From results to figures and to the results page. Which figures there are: config/figures (fbt_paper/plan/figures.py).
from fbt_paper.plan.figures import FigurePlan

FIGURES = FigurePlan(FLOW)


localrules:
    figures,
    plot_taxonomy,
    plot_features,
    plot_similarity,
    plot_curves,
    build_page,


rule figures:
    input:
        FIGURES.target("index"),


rule extract_features:
    input:
        lambda wildcards: FIGURES.weights(wildcards.figure),
    output:
        f"{FIGURES.folder}/{{figure}}.npz",
    log:
        f"{FLOW.results}/logs/extract_features/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("features", "similarity"),
    threads: FLOW.threads
    resources:
        **FLOW.training_resources,
    params:
        arguments=lambda wildcards: FIGURES.extraction(wildcards.figure),
    shell:
        f"{FLOW.python} -m fbt_core.measure.features {{params.arguments}} --settings {FLOW.settings}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule plot_taxonomy:
    input:
        FIGURES.methods_file,
    output:
        pdf=f"{FIGURES.folder}/{{figure}}.pdf",
        png=report(
            f"{FIGURES.folder}/{{figure}}.png",
            caption="../report/taxonomy.rst",
            category="Figures",
            labels={"figure": "{figure}", "shows": "taxonomy"},
        ),
        numbers=f"{FIGURES.folder}/{{figure}}.csv",
    log:
        f"{FLOW.results}/logs/plot_taxonomy/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("taxonomy"),
    shell:
        f"{FLOW.fbt} draw {{wildcards.figure:q}} 2>&1 | tee {{log:q}}"


rule plot_features:
    input:
        f"{FIGURES.folder}/{{figure}}.npz",
    output:
        pdf=f"{FIGURES.folder}/{{figure}}.pdf",
        png=report(
            f"{FIGURES.folder}/{{figure}}.png",
            caption="../report/features.rst",
            category="Figures",
            labels={"figure": "{figure}", "shows": "features"},
        ),
        numbers_pdf=f"{FIGURES.folder}/{{figure}}_numbers.pdf",
        numbers_png=report(
            f"{FIGURES.folder}/{{figure}}_numbers.png",
            caption="../report/feature_numbers.rst",
            category="Figures",
            labels={"figure": "{figure}", "shows": "numbers"},
        ),
        numbers=f"{FIGURES.folder}/{{figure}}_numbers.csv",
        claims=f"{FIGURES.folder}/{{figure}}_claims.csv",
    log:
        f"{FLOW.results}/logs/plot_features/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("features"),
    shell:
        f"{FLOW.fbt} draw {{wildcards.figure:q}} 2>&1 | tee {{log:q}}"


rule plot_similarity:
    input:
        f"{FIGURES.folder}/{{figure}}.npz",
    output:
        pdf=f"{FIGURES.folder}/{{figure}}.pdf",
        png=report(
            f"{FIGURES.folder}/{{figure}}.png",
            caption="../report/similarity.rst",
            category="Figures",
            labels={"figure": "{figure}", "shows": "similarity of stages"},
        ),
        numbers=f"{FIGURES.folder}/{{figure}}.csv",
    log:
        f"{FLOW.results}/logs/plot_similarity/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("similarity"),
    shell:
        f"{FLOW.fbt} draw {{wildcards.figure:q}} 2>&1 | tee {{log:q}}"


rule plot_curves:
    input:
        lambda wildcards: FIGURES.metrics(wildcards.figure),
    output:
        pdf=f"{FIGURES.folder}/{{figure}}.pdf",
        png=report(
            f"{FIGURES.folder}/{{figure}}.png",
            caption="../report/curves.rst",
            category="Training curves",
            labels={"figure": "{figure}", "shows": "accuracy"},
        ),
        numbers=f"{FIGURES.folder}/{{figure}}.csv",
        losses_pdf=f"{FIGURES.folder}/{{figure}}_losses.pdf",
        losses_png=report(
            f"{FIGURES.folder}/{{figure}}_losses.png",
            caption="../report/curves.rst",
            category="Training curves",
            labels={"figure": "{figure}", "shows": "loss terms"},
        ),
        losses=f"{FIGURES.folder}/{{figure}}_losses.csv",
        gaps_pdf=f"{FIGURES.folder}/{{figure}}_gaps.pdf",
        gaps_png=report(
            f"{FIGURES.folder}/{{figure}}_gaps.png",
            caption="../report/gaps.rst",
            category="Ours against the paper",
            labels={"figure": "{figure}", "shows": "gaps"},
        ),
        gaps=f"{FIGURES.folder}/{{figure}}_gaps.csv",
    log:
        f"{FLOW.results}/logs/plot_curves/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("curves"),
    shell:
        f"{FLOW.fbt} draw {{wildcards.figure:q}} 2>&1 | tee {{log:q}}"


rule build_page:
    input:
        tables=lambda wildcards: FLOW.table_files(FIGURES.tables(wildcards.page)),
        figures=lambda wildcards: FIGURES.target(wildcards.page),
    output:
        report(
            f"{FLOW.results}/{{page}}.html",
            caption="../report/page.rst",
            category="Results page",
            labels={"page": "{page}"},
        ),
    log:
        f"{FLOW.results}/logs/build_page/{{page}}.log",
    wildcard_constraints:
        page="index|grid",
    shell:
        f"{FLOW.fbt} build-page {{wildcards.page:q}} 2>&1 | tee {{log:q}}"
