"""What a step costs beyond the parts a method cannot do without: CPU seconds and memory at 224 px.

    OMP_NUM_THREADS=1 python benchmarks/engine.py [--batch 4] [--rounds 5] [--pairs swin_t__resnet18 ...]

For each pair and method: a whole step of the engine (mixing, forward, backward, clipping, update, loss log)
against the sum of the bare parts, each timed alone: the teacher's forward pass, the student's step (forward,
backward, update), and what the method adds, likewise (FBT: L2G and its fourth stage; OFA: its branches; FCFD:
its bridges and mixed paths, the same ones as in the step). Rounds are interleaved; medians of the rounds are
printed. Peak memory is that of a process that runs the step alone, and of one that runs the parts alone.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import Tensor

from fbt_core.data.order import seed_everything
from fbt_core.distributed import Group
from fbt_core.measure.bench import Engine, made_up_batch, make_engine
from fbt_core.methods.base import Batch, Method
from fbt_core.methods.fcfd import FCFD
from fbt_core.methods.registry import method_facts
from fbt_core.optimisation import Optimisation
from fbt_core.spec import ExecutionSettings, RunSpec
from fbt_core.staged import StagedOutput

CONFIG = Path(__file__).resolve().parents[1] / "config"
METHODS = ("kd", "ofa", "fcfd", "fbt")
GOALS = {"kd": 1.03, "ofa": 1.05, "fcfd": 1.05, "fbt": 1.05}
PAIRS = ("swin_t__resnet18", "convnext_t__deit_t", "mixer_b16__mobilenetv2")
CPU = Group(torch.device("cpu"), 0, 1)
CLASSES, SIZE = 100, 224


def read(name: str) -> dict:
    return yaml.safe_load((CONFIG / name).read_text())


def network(name: str, weights: str = "none") -> dict:
    entry = read("architectures.yaml")[name]
    normalisation = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    options = {"create": entry["create"], "family": entry["family"], "options": entry["options"]}
    return {"architecture": name, **options, "weights": weights, **normalisation}


def make_spec(pair: str, method: str, batch: int) -> RunSpec:
    """The pair's CIFAR-100 run with a small batch."""
    teacher, student = (network(name) for name in pair.split("__"))
    # float32 for all: CPUs without half-precision units emulate float16, many times slower than they compute.
    recipe = read("recipes.yaml")["ofa"]["cifar100"][student["family"]]
    recipe |= {"batch_size": batch, "precision": "float32"}
    parameters = {key: entry["value"] for key, entry in read("methods.yaml")[method]["parameters"].items()}
    data = {"name": "cifar100", "loader": "cifar100", "variant": "full", "classes": CLASSES}
    data |= {"train_images": 50_000, "test_images": 10_000, "image_size": SIZE}
    data |= {"mean": student["mean"], "std": student["std"]}
    facts = method_facts(method)
    chosen = {"name": method, "parameters": parameters, "revision": facts.revision}
    if facts.uses_fusion:
        chosen["fusion_revision"] = 1
    content = {"dataset": data, "student": student, "teacher": {**teacher, "weights": f"file:{'0' * 64}"}}
    content |= {"method": chosen, "recipe": recipe, "seed": 0, "engine_revision": 1}
    return RunSpec.model_validate(content, strict=False)


class Bare:
    """The parts, each alone, on the same networks as the whole step uses."""

    def __init__(self, engine: Engine, batch: Batch) -> None:
        self.method, self.batch = engine.learner.method, batch
        self.optimisation = Optimisation(self.method.student, engine.learner.spec.recipe, 10, CPU.device)
        extras = self.method.extras
        self.added = None
        if any(parameter.requires_grad for parameter in extras.parameters()):
            self.added = Optimisation(extras, engine.learner.spec.recipe, 10, CPU.device)
        with torch.no_grad():
            self.student_output = self.method.student.features(batch.images)
            self.teacher_output = engine.teacher.observe(batch.images)

    def teacher_forward(self) -> None:
        with torch.no_grad():
            self.method.teacher(self.batch.images)

    def student_step(self) -> None:
        logits = self.method.student(self.batch.images)
        self.optimisation.backward(self.method.label_loss(logits, self.batch))
        self.optimisation.step(1)

    def extra(self) -> None:
        """What the method adds (forward, backward, update), from features that are there already."""
        # The student's features are leaves: its own stages stay out of it.
        student = self.student_output
        stages = [feature.detach().requires_grad_() for feature in student.stages]
        leaves = StagedOutput(stages, student.pooled, student.logits)
        outputs = EXTRAS[self.method.name](self.method, leaves, self.teacher_output)
        if outputs:
            torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
            self.added.step(1)
            self.method.trainable_module.zero_grad(set_to_none=True)


def branches(method: Method, student: StagedOutput, teacher: StagedOutput) -> list[Tensor]:
    return [branch(feature) for branch, feature in zip(method.extras.values(), student.stages, strict=True)]


def mixed_paths(method: Method, student: StagedOutput, teacher: StagedOutput) -> list[Tensor]:
    """The bridges of all stages and as many paths as a step draws, half of them in each direction."""
    bridged = [method.extras[f"student_to_teacher{i + 1}"](x) for i, x in enumerate(student.stages)]
    return [
        *bridged,
        *(method._run_path(path, student, teacher, bridged).logits for path in method._draw_paths()),
    ]


EXTRAS: dict[str, Callable[..., list[Tensor]]] = {
    "kd": lambda method, student, teacher: [],
    "ofa": branches,
    "fcfd": mixed_paths,
    "fbt": lambda method, student, teacher: list(method.extras["fused"](student, teacher)),
}


def keep_paths(method: Method) -> None:
    """Draw FCFD's paths once for a round, so that the step and its parts run the same ones."""
    if isinstance(method, FCFD):
        drawn = FCFD._draw_paths(method)
        method._draw_paths = lambda: drawn


def cpu_seconds(part: Callable[[], None]) -> float:
    start = time.process_time()
    part()
    return time.process_time() - start


def make_parts(pair: str, name: str, batch: int) -> tuple[Engine, list[Callable[[], None]]]:
    """The engine's own training, its whole step, and the parts: teacher, student, what the method adds."""
    seed_everything(0)
    engine = make_engine(make_spec(pair, name, batch), ExecutionSettings(), CPU)
    raw, key = made_up_batch(engine.learner.spec)
    engine.learner.method.train()
    bare = Bare(engine, engine.stream.preparation.train(raw))

    return engine, [lambda: engine.step(raw, key), bare.teacher_forward, bare.student_step, bare.extra]


def measure(pair: str, name: str, batch: int, rounds: int) -> None:
    """One line: seconds of the step, of its parts, of teacher and student alone, two ratios, peak memory."""
    engine, parts = make_parts(pair, name, batch)
    rows = []
    for _ in range(rounds + 1):
        keep_paths(engine.learner.method)
        rows.append([cpu_seconds(part) for part in parts])
    del rows[0]  # the first round warms up
    engine.learner.state.losses.read(pair, 0.0)
    peaks = [peak_in_a_process_of_its_own(pair, name, batch, what) for what in ("step", "parts")]
    print(line(pair, name, rows, peaks), flush=True)


def peak_in_a_process_of_its_own(pair: str, name: str, batch: int, what: str) -> float:
    """Peak memory (MB) of a process that runs only the whole step, or only the parts one after the other."""
    chosen = ["--peak", what, "--pairs", pair, "--methods", name, "--batch", str(batch)]
    answer = subprocess.run([sys.executable, __file__, *chosen], capture_output=True, text=True, check=True)
    return float(answer.stdout)


def run_for_peak(pair: str, name: str, batch: int, what: str) -> None:
    """Run the step or the parts three times and print this process's peak memory (MB)."""
    engine, parts = make_parts(pair, name, batch)
    for _ in range(3):
        keep_paths(engine.learner.method)
        for part in parts[:1] if what == "step" else parts[1:]:
            part()
    print(high_water_mb())


def high_water_mb() -> float:
    """This process's peak memory (MB); getrusage would count what its parent had before it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6


def line(pair: str, name: str, rows: list[list[float]], peaks: list[float]) -> str:
    columns = [
        [row[0] for row in rows],
        [sum(row[1:]) for row in rows],
        [row[0] / sum(row[1:]) for row in rows],
        [row[0] / sum(row[1:3]) for row in rows],
    ]
    step, parts, ratio, to_networks = (statistics.median(column) for column in columns)
    times = f"{step:.2f} | {parts:.2f} | {ratio:.3f} | {GOALS[name]} | {to_networks:.2f}"
    return f"| {pair} | {name} | {times} | {peaks[0]:.0f} | {peaks[1]:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--peak", choices=("step", "parts"), help="print only the peak memory of these")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.peak:
        run_for_peak(chosen.pairs[0], chosen.methods[0], chosen.batch, chosen.peak)
        return
    print(
        "| pair | method | step, s | parts, s | step / parts | goal | step / networks | peak MB | of parts |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for pair in chosen.pairs:
        for name in chosen.methods:
            measure(pair, name, chosen.batch, chosen.rounds)


if __name__ == "__main__":
    main()
