# Training: one run per spec. Checkpoints and the run's own log are not declared, so Snakemake never deletes them.


onstart:
    # Not in a dry run: stops before the first training if it lacks something, then writes the specs of all trainings.
    FLOW.prepare(workflow.dag.needrun_jobs())
    # Params were compared at planning; those that follow from results are read again when the file is made.
    workflow.persistence._params.cache_clear()


onerror:
    # The last lines of all are read first, and Snakemake's own are without the reason.
    atexit.register(
        print,
        explain_failures(FLOW.plan, workflow.scheduler.failed),
        file=sys.stderr,
    )


localrules:
    fetch_weights,
    publish,


# A run that a pack trains, or has trained, is published; every other run trains alone.
ruleorder: publish > train


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


rule pack:
    # Its runs' results are no outputs: Snakemake would delete all of them if one run failed. It ends well
    # whatever becomes of a run, and the marker says how each ended.
    input:
        ancient(lambda wildcards: FLOW.needed_by_pack(wildcards.pack)),
    output:
        FLOW.packs.marker("{pack}"),
    log:
        f"{FLOW.results}/logs/pack/{{pack}}.log",
    priority: lambda wildcards: 0 if TRAINING_JOB else FLOW.priority_of_pack(wildcards.pack)
    threads: FLOW.threads
    resources:
        gpu=lambda wildcards: FLOW.resources_of_pack(wildcards.pack)["gpu"],
        mem_mb=lambda wildcards: FLOW.resources_of_pack(wildcards.pack)["mem_mb"],
        runtime=lambda wildcards: FLOW.resources_of_pack(wildcards.pack)["runtime"],
        cpus=lambda wildcards: FLOW.resources_of_pack(wildcards.pack)["cpus"],
        signal_seconds=lambda wildcards: FLOW.resources_of_pack(wildcards.pack)[
            "signal_seconds"
        ],
    params:
        members=lambda wildcards: Members(FLOW, wildcards.pack),
        specs=lambda wildcards: FLOW.specs_of_pack(wildcards.pack),
    message:
        "pack {wildcards.pack} trains together: {params.members}"
    shell:
        f"{FLOW.python} -m fbt_core.launch {{resources.gpu}} {{params.specs}}"
        f" --settings {FLOW.settings_file} --runs {FLOW.runs} --pack {{output:q}} 2>&1 | tee {{log:q}}"


rule publish:
    input:
        lambda wildcards: FLOW.marker_of(wildcards.run),
    output:
        metrics=f"{FLOW.runs}/{{run}}/metrics.json",
        weights=f"{FLOW.runs}/{{run}}/weights.safetensors",
    log:
        f"{FLOW.results}/logs/publish/{{run}}.log",
    wildcard_constraints:
        run=FLOW.published,
    params:
        # The same as of rule train: whichever made a result, the other does not make it again.
        spec=lambda wildcards: FLOW.spec_json(wildcards.run),
    shell:
        f"{FLOW.python} -m fbt_core.publish {{wildcards.run}} --runs {FLOW.runs} --pack={{input:q}}"
        " 2>&1 | tee {log:q}"
