# From results to figures and to the results page. Which figures there are: config/figures (fbt_paper/plan/figures.py);
# what their files are called: the outputs below. `about` is what the page says of a figure.
from fbt_paper.plan.figures import FigurePlan

FIGURES = FigurePlan(FLOW)


localrules:
    figures,
    plot_taxonomy,
    plot_features,
    plot_similarity,
    plot_sweeps,
    plot_curves,
    plot_gaps,
    build_page,
    partial,


rule figures:
    input:
        lambda wildcards: FIGURES.files("index", rules),


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
        standing=lambda wildcards: FLOW.standing(FIGURES.results(wildcards.figure)),
    shell:
        f"{FLOW.python} -m fbt_core.measure.features {{params.arguments}} --settings {FLOW.settings}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule plot_taxonomy:
    output:
        pdf=f"{FIGURES.folder}/{{figure}}.pdf",
        png=report(
            f"{FIGURES.folder}/{{figure}}.png",
            caption="../report/taxonomy.rst",
            category="Figures",
            labels={"figure": "{figure}", "shows": "taxonomy"},
        ),
        csv=f"{FIGURES.folder}/{{figure}}.csv",
        about=f"{FIGURES.folder}/{{figure}}.json",
    log:
        f"{FLOW.results}/logs/plot_taxonomy/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("taxonomy"),
    params:
        files=lambda wildcards, output: FIGURES.arguments(output),
        shows=lambda wildcards: FIGURES.shows(wildcards.figure),
    shell:
        f"{FLOW.fbt} draw {{wildcards.figure:q}} {{params.files}} 2>&1 | tee {{log:q}}"


rule plot_features:
    input:
        npz=f"{FIGURES.folder}/{{figure}}.npz",
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
        numbers_csv=f"{FIGURES.folder}/{{figure}}_numbers.csv",
        claims_csv=f"{FIGURES.folder}/{{figure}}_claims.csv",
        about=f"{FIGURES.folder}/{{figure}}.json",
    log:
        f"{FLOW.results}/logs/plot_features/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("features"),
    params:
        files=lambda wildcards, input, output: FIGURES.arguments({**input, **output}),
        shows=lambda wildcards: FIGURES.shows(wildcards.figure),
    shell:
        f"{FLOW.fbt} draw {{wildcards.figure:q}} {{params.files}} 2>&1 | tee {{log:q}}"


rule plot_similarity:
    input:
        npz=f"{FIGURES.folder}/{{figure}}.npz",
    output:
        pdf=f"{FIGURES.folder}/{{figure}}.pdf",
        png=report(
            f"{FIGURES.folder}/{{figure}}.png",
            caption="../report/similarity.rst",
            category="Figures",
            labels={"figure": "{figure}", "shows": "similarity of stages"},
        ),
        csv=f"{FIGURES.folder}/{{figure}}.csv",
        about=f"{FIGURES.folder}/{{figure}}.json",
    log:
        f"{FLOW.results}/logs/plot_similarity/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("similarity"),
    params:
        files=lambda wildcards, input, output: FIGURES.arguments({**input, **output}),
        shows=lambda wildcards: FIGURES.shows(wildcards.figure),
    shell:
        f"{FLOW.fbt} draw {{wildcards.figure:q}} {{params.files}} 2>&1 | tee {{log:q}}"


rule plot_sweeps:
    input:
        lambda wildcards: FLOW.results_of([FIGURES.drawings[wildcards.figure].table]),
    output:
        pdf=f"{FIGURES.folder}/{{figure}}.pdf",
        png=report(
            f"{FIGURES.folder}/{{figure}}.png",
            caption="../report/sweeps.rst",
            category="Figures",
            labels={"figure": "{figure}", "shows": "sensitivity"},
        ),
        csv=f"{FIGURES.folder}/{{figure}}.csv",
        about=f"{FIGURES.folder}/{{figure}}.json",
    log:
        f"{FLOW.results}/logs/plot_sweeps/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("sweeps"),
    params:
        files=lambda wildcards, output: FIGURES.arguments(output),
        shows=lambda wildcards: FIGURES.shows(wildcards.figure),
        standing=lambda wildcards: FLOW.standing(FIGURES.results(wildcards.figure)),
    shell:
        f"{FLOW.fbt} draw {{wildcards.figure:q}} {{params.files}} 2>&1 | tee {{log:q}}"


rule plot_curves:
    input:
        lambda wildcards: FLOW.results_of([FIGURES.drawings[wildcards.figure].table]),
    output:
        pdf=f"{FIGURES.folder}/{{figure}}.pdf",
        png=report(
            f"{FIGURES.folder}/{{figure}}.png",
            caption="../report/curves.rst",
            category="Training curves",
            labels={"figure": "{figure}", "shows": "accuracy"},
        ),
        csv=f"{FIGURES.folder}/{{figure}}.csv",
        losses_pdf=f"{FIGURES.folder}/{{figure}}_losses.pdf",
        losses_png=report(
            f"{FIGURES.folder}/{{figure}}_losses.png",
            caption="../report/curves.rst",
            category="Training curves",
            labels={"figure": "{figure}", "shows": "loss terms"},
        ),
        losses_csv=f"{FIGURES.folder}/{{figure}}_losses.csv",
        about=f"{FIGURES.folder}/{{figure}}.json",
    log:
        f"{FLOW.results}/logs/plot_curves/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("curves"),
    params:
        files=lambda wildcards, output: FIGURES.arguments(output),
        shows=lambda wildcards: FIGURES.shows(wildcards.figure),
        standing=lambda wildcards: FLOW.standing(FIGURES.results(wildcards.figure)),
    shell:
        f"{FLOW.fbt} draw {{wildcards.figure:q}} {{params.files}} 2>&1 | tee {{log:q}}"


rule plot_gaps:
    input:
        lambda wildcards: FLOW.results_of([FIGURES.drawings[wildcards.figure].table]),
    output:
        pdf=f"{FIGURES.folder}/{{figure}}.pdf",
        png=report(
            f"{FIGURES.folder}/{{figure}}.png",
            caption="../report/gaps.rst",
            category="Ours against the paper",
            labels={"figure": "{figure}", "shows": "gaps"},
        ),
        csv=f"{FIGURES.folder}/{{figure}}.csv",
        about=f"{FIGURES.folder}/{{figure}}.json",
    log:
        f"{FLOW.results}/logs/plot_gaps/{{figure}}.log",
    wildcard_constraints:
        figure=FIGURES.pattern("gaps"),
    params:
        files=lambda wildcards, output: FIGURES.arguments(output),
        shows=lambda wildcards: FIGURES.shows(wildcards.figure),
        standing=lambda wildcards: FLOW.standing(FIGURES.results(wildcards.figure)),
    shell:
        f"{FLOW.fbt} draw {{wildcards.figure:q}} {{params.files}} 2>&1 | tee {{log:q}}"


rule build_page:
    input:
        results=lambda wildcards: FLOW.results_of(
            FLOW.plan.of_page(wildcards.page), needed=True
        ),
        scratch=lambda wildcards: FLOW.with_scratch(FLOW.plan.of_page(wildcards.page)),
        figures=lambda wildcards: FIGURES.files(wildcards.page, rules),
        claims=lambda wildcards: CLAIMS.of_page(wildcards.page),
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
    params:
        about=lambda wildcards, input: [
            file for file in input.figures if file.endswith(".json")
        ],
        claims=lambda wildcards, input: [f"--claims={file}" for file in input.claims],
        shows=lambda wildcards: FIGURES.page_shows(wildcards.page),
        standing=lambda wildcards: FLOW.standing(
            FLOW.results_of(FLOW.plan.of_page(wildcards.page), needed=True)
        ),
    shell:
        f"{FLOW.fbt} build-page {{wildcards.page:q}} --figures {{params.about:q}} {{params.claims:q}}"
        " 2>&1 | tee {log:q}"


# While runs go on, or with some failed: shows what is there, trains nothing. A lock of a running snakemake does not
# concern it: snakemake --cores 1 --nolock partial
rule partial:
    log:
        f"{FLOW.results}/logs/partial.log",
    shell:
        f"{FLOW.fbt} build-page index --partial 2>&1 | tee {{log:q}}"
