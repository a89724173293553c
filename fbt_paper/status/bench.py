"""`fbt bench`: a training step and the loaders, measured on this machine, for `fbt plan` to reckon with."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fbt_core.errors import UserError
from fbt_core.files import write_text
from fbt_core.run_files import read_json
from fbt_core.spec import RunSpec
from fbt_paper.plan.bill import read_macs, read_training_macs, step_flops
from fbt_paper.plan.speeds import BENCH_FILE, kind_of_loading
from fbt_paper.plan.targets import Flow

FROM_DATA = "of the data set"


def ask_engine(flow: Flow, specs: Iterable[RunSpec], options: Sequence[str] = ()) -> dict[str, Any]:
    """What `fbt_core.measure.bench` measures for these specs, in a process of its own; raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, spec in enumerate(specs):
            files.append(Path(folder, f"spec{number}"))
            files[-1].write_text(spec.model_dump_json())
        command = ["-m", "fbt_core.measure.bench", *map(str, files), *options]
        settings = flow.execution.model_copy(update={"allow_cpu": True})
        answer = subprocess.run(
            [sys.executable, *command, "--settings", settings.model_dump_json()],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if answer.returncode:
        raise UserError("the measurement failed; the reason stands above", where="fbt_core.measure.bench")
    content: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return content


def choose_run(flow: Flow, pair: str, method: str, dataset: str | None) -> RunSpec:
    """A run of the plan with this pair (teacher__student) and method; raises UserError."""
    runs = [spec for spec in flow.plan.runs.values() if spec.teacher]
    for spec in runs:
        if (pair_of(spec), spec.method.name) == (pair, method) and dataset in (None, spec.dataset.name):
            return spec
    pairs = sorted({pair_of(spec) for spec in runs if spec.method.name == method})
    if not pairs:
        methods = sorted({spec.method.name for spec in runs})
        raise UserError(f"no run of scale {flow.scale} has method '{method}'", given=method, choices=methods)
    where = f" on {dataset}" if dataset else ""
    what = f"no run of scale {flow.scale} has pair '{pair}' with method '{method}'{where}"
    raise UserError(what, given=pair, choices=pairs)


def pair_of(spec: RunSpec) -> str:
    """teacher__student, as in the tables' columns."""
    return f"{spec.teacher.architecture if spec.teacher else '-'}__{spec.student.architecture}"


def bench(flow: Flow, spec: RunSpec, options: Sequence[str]) -> list[str]:
    """Measure, note it in results/<scale>/bench.json, and say what came out."""
    measured = ask_engine(flow, [spec], options)
    step, loader, kind = measured["step"], measured["loader"][0], kind_of_loading(spec)
    step["tflops"] = tflops(flow, spec, step["images_per_second"])
    path = Path(flow.results, BENCH_FILE)
    content = read_json(path) or {}
    steps, loaders = content.get("steps", {}), content.get("loader", {})
    steps[f"{pair_of(spec)}/{spec.method.name}/{spec.dataset.name}/{step['precision']}"] = step
    if loader["images"] == FROM_DATA:  # made-up images are no ground for a bill
        loaders[kind] = loader["rate"]
    names = {"machine": platform.node(), "gpu": step["device_name"], "torch": measured["torch"]}
    write_text(path, json.dumps({**names, "steps": steps, "loader": loaders}, indent=1) + "\n")
    return describe(spec, measured, path)


def tflops(flow: Flow, spec: RunSpec, images_per_second: float) -> float | None:
    """TFLOP/s that the step sustained, by the counted MACs; None for networks that are not full-size."""
    if not flow.plan.size.is_full_size:
        return None
    return step_flops(spec, read_macs(), read_training_macs()) * images_per_second / 1e12


def describe(spec: RunSpec, measured: dict[str, Any], path: Path) -> list[str]:
    """The measurement in words."""
    step, loader = measured["step"], measured["loader"][0]
    sustained = f", {step['tflops']:.2f} TFLOP/s sustained" if step["tflops"] else ""
    rate, per_core = step["images_per_second"], loader["rate"]
    run = f"{pair_of(spec)}, {spec.method.name}, {spec.dataset.name}"
    return [
        f"{run}, {step['precision']} on {step['device_name']}:",
        f"  {step['step_seconds']:.4g} s a step of {step['batch']} images (median of {step['steps']}), "
        f"{rate:,.1f} images/s{sustained}",
        f"  peak memory {step['peak_memory_mb']:,.0f} MB",
        f"  loaders: {per_core:,.0f} images/s per core (images {loader['images']}): "
        f"{rate / per_core:,.2f} cores keep up with this step",
        f"noted in {path}; `fbt plan` uses what a GPU and a data set's own images gave",
    ]
