# Training: one run per spec. Checkpoints and the run's own log are not declared, so Snakemake never deletes them.


onstart:
    # Not in a dry run: stops before the first training where a needed dataset is not in place.
    FLOW.check_data(workflow.dag.needrun_jobs())


rule fetch_weights:
    output:
        f"{FLOW.results}/weights/{{tag}}.txt",
    log:
        f"{FLOW.results}/logs/fetch_weights/{{tag}}.log",
    wildcard_constraints:
        tag=r"\w+\.\w+",
    shell:
        f"{FLOW.python} -m fbt_core.weights fetch {{wildcards.tag:q}} 2>&1 > {{output:q}} | tee {{log:q}}"


rule train:
    input:
        lambda wildcards: FLOW.needed_files(wildcards.run),
    output:
        metrics=f"{FLOW.runs}/{{run}}/metrics.json",
        weights=f"{FLOW.runs}/{{run}}/weights.safetensors",
    log:
        f"{FLOW.results}/logs/train/{{run}}.log",
    threads: FLOW.threads
    resources:
        **FLOW.training_resources,
    params:
        spec=lambda wildcards: FLOW.spec_json(wildcards.run),
    shell:
        f"{FLOW.python} -m fbt_core.launch {{resources.gpu}} --spec {{params.spec:q}} --settings {FLOW.settings}"
        f" --runs {FLOW.runs} 2>&1 | tee {{log:q}}"
