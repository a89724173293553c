# Training: one run per spec. Checkpoints and the run's own log are not declared, so Snakemake never deletes them.


onstart:
    # Not in a dry run: stops before the first training if it lacks something, then writes the specs of all trainings.
    FLOW.prepare(workflow.dag.needrun_jobs())
    # Params were compared at planning; those that follow from results are read again when the file is made.
    workflow.persistence._params.cache_clear()


localrules:
    fetch_weights,


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
        # A run's id states its content, so times of what it needs do not count: copied results stay finished.
        ancient(lambda wildcards: FLOW.needed_files(wildcards.run)),
    output:
        metrics=f"{FLOW.runs}/{{run}}/metrics.json",
        weights=f"{FLOW.runs}/{{run}}/weights.safetensors",
    log:
        f"{FLOW.results}/logs/train/{{run}}.log",
    priority: lambda wildcards: 0 if TRAINING_JOB else FLOW.priority(wildcards.run)
    threads: FLOW.threads
    resources:
        gpu=lambda wildcards: FLOW.resources_of(wildcards.run)["gpu"],
        mem_mb=lambda wildcards: FLOW.resources_of(wildcards.run)["mem_mb"],
        runtime=lambda wildcards: FLOW.resources_of(wildcards.run)["runtime"],
        cpus=lambda wildcards: FLOW.resources_of(wildcards.run)["cpus"],
    params:
        # What Snakemake compares with the finished run; the engine reads the frozen file.
        spec=lambda wildcards: FLOW.spec_json(wildcards.run),
    shell:
        f"{FLOW.python} -m fbt_core.launch {{resources.gpu}} --spec {FLOW.specs}/{{wildcards.run}}.json"
        f" --settings {FLOW.settings_file} --runs {FLOW.runs} 2>&1 | tee {{log:q}}"
