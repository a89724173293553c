"""`fbt check-cluster`: what a Slurm cluster, its profile and its data still miss for the paper.

Nothing is submitted: Slurm is asked with sinfo, `sbatch --test-only` and one `srun` of a second that looks
whether a node sees this folder and can write to it. Every finding says what is wrong and how to fix it.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fbt_paper.config.data_roots import find_root
from fbt_paper.config.load import ConfigError
from fbt_paper.plan.resources import read_resources
from fbt_paper.plan.targets import Flow
from fbt_paper.status.checks import Check, show_checks

__all__ = ["Check", "check_cluster", "main"]

PROFILE = Path("profiles/slurm")
JOBS_FOLDER = Path(".snakemake/submitit/jobs")
FOLDER_MEND = "clone the repository into a folder of the shared file system that you may write to"


def check_cluster(profile_dir: Path, config: Mapping[str, Any]) -> list[Check]:
    """Look at Slurm, profile, shared folder, data and teacher weights; `config` as `--config` gives it."""
    programs = check_programs()
    profile, checks = read_profile(profile_dir)
    flow = Flow({"scale": "paper", **config, **read_resources(profile_dir)})
    checks = [*programs, *checks]
    # Slurm is asked only if there is what asks it; data and weights always, so that one call names all.
    if all(check.ok for check in checks):
        checks += check_slurm(profile, flow)
    return [*checks, *check_data(flow), *check_weights(flow)]


def check_programs() -> list[Check]:
    """Slurm's commands and the executor."""
    checks = [
        Check(
            shutil.which(name) is not None,
            f"the command {name}",
            "run this on a login node of a Slurm cluster (perhaps `module load slurm`)",
        )
        for name in ("sbatch", "srun", "squeue", "scontrol", "sinfo")
    ]
    return [*checks, *(check_module(name) for name in ("submitit", "snakemake_executor_plugin_submitit"))]


def check_module(name: str) -> Check:
    """A Python package that submits jobs."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        return Check(
            False,
            f"the Python package {name} ({error})",
            "`make install` in a clone, or `pip install ./plugin`",
        )
    return Check(True, f"the Python package {name}")


def read_profile(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """A Snakemake profile as Snakemake reads it: option -> value or list of words."""
    from snakemake.profiles import ProfileConfigFileParser

    path = folder / "config.yaml"
    try:
        with path.open() as stream:
            profile = dict(ProfileConfigFileParser().parse(stream))
    except OSError as error:
        return {}, [Check(False, f"the profile {path}", f"{error.strerror}: name its folder with --profile")]
    except Exception as error:
        return {}, [
            Check(False, f"the profile {path}: {error}", "fix the file; the line is named in the message")
        ]
    return profile, [Check(True, f"the profile {path}")]


def check_slurm(profile: Mapping[str, Any], flow: Flow) -> list[Check]:
    """Whether Slurm would take the jobs of every kind of training, and whether nodes see this folder."""
    # Imported here, where it is known to be there: the executor is a distribution of its own.
    from snakemake_executor_plugin_submitit.backends import SlurmBackend
    from snakemake_executor_plugin_submitit.probe import unwritable
    from snakemake_executor_plugin_submitit.settings import ExecutorSettings
    from snakemake_executor_plugin_submitit.slurm import SlurmBusyError, SlurmRefusedError

    if problem := unwritable(JOBS_FOLDER.absolute()):
        return [Check(False, problem, FOLDER_MEND)]
    backend = SlurmBackend(
        ExecutorSettings(), JOBS_FOLDER.absolute(), lambda line: print(line, file=sys.stderr)
    )
    try:
        backend.prepare()
    except (SlurmBusyError, SlurmRefusedError) as error:
        return [Check(False, f"Slurm's answer: {error}", "try again later, or ask the administrators")]
    names = sorted(backend.facts.partitions if backend.facts else ())
    checks = [Check(True, f"Slurm answers; partitions: {', '.join(names)}")]
    requests = training_requests(profile, flow)
    checks += check_requests(backend, requests)
    return [*checks, *(check_folder(request) for request in list(requests.values())[:1])]


def check_requests(backend: Any, requests: Mapping[str, Any]) -> list[Check]:
    """Whether Slurm would take each kind of training; kinds with the same answer share its line."""
    kinds = dict[tuple[bool, str, str], list[str]]()
    for kind, request in requests.items():
        for check in check_request(backend, request):
            kinds.setdefault((check.ok, check.what, check.hint), []).append(kind)
    return [Check(ok, f"{'; '.join(alike)}: {what}", hint) for (ok, what, hint), alike in kinds.items()]


def check_request(backend: Any, request: Any) -> list[Check]:
    """Whether the cluster has what one kind of training asks for, and Slurm would take it."""
    from snakemake_executor_plugin_submitit.slurm import SlurmBusyError

    hint = "edit profiles/slurm: the table in resources.yaml, or partition and account in config.yaml"
    if isinstance(request, Exception):
        return [Check(False, str(request), hint)]
    try:
        problems = backend.problems(request) or list(filter(None, [backend.try_submission(request, "train")]))
    except SlurmBusyError as error:
        return [Check(False, f"Slurm gives no answer: {error}", "try again later")]
    described = f"{request.gpu} GPUs, {request.cpus} CPUs, {request.mem_mb} MB, {request.runtime} minutes"
    if not problems:
        return [Check(True, f"{described}: sbatch would take it")]
    return [Check(False, problem, hint) for problem in problems]


def check_folder(request: Any) -> Check:
    """Whether a node sees this folder and can write to it."""
    from snakemake_executor_plugin_submitit.probe import shared_folder_problem

    if isinstance(request, Exception):
        return Check(True, "the shared folder was not looked at")
    problem = shared_folder_problem(Path(".snakemake/submitit").absolute(), request)
    return Check(
        problem is None, problem or f"nodes see {Path.cwd()} and write to it (or none was free)", FOLDER_MEND
    )


def training_requests(profile: Mapping[str, Any], flow: Flow) -> dict[str, Any]:
    """For each dataset and family one request as the profile makes it (or the error why it cannot).

    If the settings put runs in packs, also one for the largest pack of each kind.
    """
    from snakemake_executor_plugin_submitit.requests import RequestError, read_request

    requests: dict[str, Any] = {}
    for kind, (rule, wildcards, asked) in training_jobs(flow).items():
        try:
            threads = threads_of_rule(profile, rule, flow.threads)
            resources = profile_resources(profile, rule, wildcards, asked, threads)
            requests[kind] = read_request(resources, threads, "resources")
        except (RequestError, ValueError) as error:
            requests[kind] = error
    return requests


def training_jobs(flow: Flow) -> dict[str, tuple[str, SimpleNamespace, dict[str, int]]]:
    """Rule, wildcards and resources of one job of each kind."""
    jobs: dict[str, tuple[str, SimpleNamespace, dict[str, int]]] = {}
    for run, spec in flow.plan.runs.items():
        kind = kind_of(flow, spec)
        jobs.setdefault(kind, ("train", SimpleNamespace(run=run), flow.resources_of(run)))
    # What a pack asks for grows with its runs.
    seen = set()
    for pack, runs in sorted(flow.packing.packs.items(), key=lambda item: -len(item[1])):
        spec = flow.spec(runs[0])
        kind = kind_of(flow, spec)
        if kind not in seen:
            seen.add(kind)
            resources = flow.resources_of_pack(pack)
            jobs[f"packs of up to {len(runs)} {kind}"] = ("pack", SimpleNamespace(pack=pack), resources)
    return jobs


def kind_of(flow: Flow, spec: Any) -> str:
    """Trainings that the table of resources gives the same: data set and family of the network."""
    entry = flow.config.architectures.get(spec.student.architecture)
    family = "?" if entry is None else entry.family
    return f"trainings of {spec.dataset.name}, {family}"


def threads_of_rule(profile: Mapping[str, Any], rule: str, threads: int) -> int:
    """Threads of a rule: those that the profile sets for it (`set-threads`), else the rule's own."""
    stated = dict(word.split("=", 1) for word in profile.get("set-threads", []))
    return int(stated.get(rule, threads))


def profile_resources(
    profile: Mapping[str, Any], rule: str, wildcards: SimpleNamespace, asked: Mapping[str, int], threads: int
) -> dict[str, Any]:
    """Resources of one job: the profile's defaults, what the rule asks for, then the profile's for the rule.

    Snakemake itself reads the profile's values, which may be expressions.
    """
    from snakemake.resources import Resources

    words = [word for word in profile.get("set-resources", []) if word.startswith(f"{rule}:")]
    # In Snakemake's order: what is stated later wins.
    stated = {
        **Resources.parse(profile.get("default-resources", []), allow_expressions=True),
        **Resources.from_mapping(asked),
        **Resources.parse([word.removeprefix(f"{rule}:") for word in words], allow_expressions=True),
    }
    known = {"wildcards": wildcards, "input": [], "attempt": 1, "threads": threads, "rulename": rule}
    return {name: evaluated(resource, known) for name, resource in stated.items()}


def evaluated(resource: Any, known: Mapping[str, Any]) -> Any:
    """A resource's value, computed if it is an expression."""
    if resource.is_evaluable():
        resource = resource.evaluate(**known, async_run=None)
    return resource.value


def check_data(flow: Flow) -> list[Check]:
    """Whether every dataset that a run needs is in the folder that the configuration names."""
    checks = []
    for name in dict.fromkeys(spec.dataset.name for spec in flow.plan.runs.values()):
        try:
            root = find_root(flow.config, name)
        except ConfigError as error:
            checks += [Check(False, f"data of {name}", str(problem)) for problem in error.problems]
        else:
            checks.append(Check(True, f"data of {name}: {root or 'shipped with this repository'}"))
    return checks


def check_weights(flow: Flow) -> list[Check]:
    """Whether the pretrained teachers are in this home's cache: nodes often have no internet."""
    networks = [net for run in flow.plan.runs.values() for net in (run.student, run.teacher) if net]
    tags = sorted({net.weights.removeprefix("timm:") for net in networks if net.weights.startswith("timm:")})
    if not tags:
        return []
    missing = [tag for tag in tags if not cached(tag)]
    if not missing:
        return [Check(True, f"{len(tags)} pretrained networks are in the local cache")]
    hint = "on a machine with internet and this home: fbt fetch-weights"
    return [Check(False, f"pretrained weights that nodes cannot reach offline: {', '.join(missing)}", hint)]


def cached(tag: str) -> bool:
    """Whether the weights of one of timm's networks are in the local cache of the hub."""
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(f"timm/{tag}", name), str) for name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every check; 0 if all are fine, 1 if something must be fixed."""
    parser = argparse.ArgumentParser(prog="fbt check-cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--profile", type=Path, default=PROFILE, help="folder of the profile (default: %(default)s)"
    )
    parser.add_argument("--scale", default="paper", help="a scale of config/scales (default: paper)")
    options = parser.parse_args(arguments)
    checks = check_cluster(options.profile, {"scale": options.scale})
    return show_checks(checks, "snakemake --profile slurm")
