"""What a pack of runs saves: CPU seconds of a training step at 224 px, of packs and of the same runs alone.

    OMP_NUM_THREADS=1 python benchmarks/pack.py [--pairs mixer_b16__mobilenetv2 ...] [--sizes 2 4 8 all]

In each round every run makes a step alone, then each pack makes one, and the teacher's forward pass is timed
by itself; medians of the rounds are printed. A pack of n should take what its runs take alone but for n - 1
passes of the teacher: `expected` is that over the sum of the steps alone, `measured` the pack's step over the
same sum. Images are made up, so what packs save of decoding and augmentation is not in it. A pack's runs are
the first methods of config/methods.yaml that learn from a teacher. Peak memory is that of a process that only
makes the pack's steps, and the most that one of its runs takes in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from engine import CLASSES, CPU, PAIRS, SIZE, cpu_seconds, high_water_mb, make_spec

from fbt_core.data.feed import Raw
from fbt_core.data.order import BatchKey, seed_everything
from fbt_core.learner import Learner
from fbt_core.measure.bench import made_up_batch, make_engine
from fbt_core.methods.facts import FILE, read_facts
from fbt_core.packs import check_together
from fbt_core.spec import ExecutionSettings
from fbt_core.staged import build_network, stage
from fbt_core.stream import Stream
from fbt_core.teacher import Teacher
from fbt_core.train import train_step

METHODS = tuple(name for name, facts in read_facts(FILE).items() if facts.needs_teacher)
GOAL = 1.05  # measured / expected
PEAK_STEPS = 2  # the optimiser's state is made in the first
COLUMNS = (
    "pair", "runs", "alone, s", "pack, s", "measured", "expected", "measured / expected", "goal", "peak MB",
    "of a run",
)  # fmt: skip


@dataclass
class Pack:
    """Runs that share a teacher, by method, and one batch that all steps are made of."""

    learners: dict[str, Learner]
    stream: Stream
    teacher: Teacher
    raw: Raw
    key: BatchKey

    def step(self, names: Sequence[str]) -> float:
        """CPU seconds of one step of these runs together; raises what ended a run in it."""
        chosen = [self.learners[name] for name in names]
        seconds = cpu_seconds(lambda: train_step(chosen, self.stream, self.teacher, self.key, self.raw))
        # The loop lets a run that failed leave; its step would then cost nothing.
        for learner in chosen:
            if learner.folder.error:
                raise learner.folder.error
        return seconds

    def teacher_pass(self) -> float:
        """CPU seconds of the teacher's forward pass over the batch."""
        images = self.stream.preparation.images(self.raw)
        return cpu_seconds(lambda: self.teacher.observe(images))


def make_pack(pair: str, names: Sequence[str], batch: int) -> Pack:
    """The pair's runs with these methods, around one teacher as in a training."""
    seed_everything(0)
    specs = [make_spec(pair, name, batch) for name in names]
    check_together(specs)
    shared = stage(build_network(specs[0].teacher, CLASSES, SIZE), SIZE).freeze()
    engines = [make_engine(spec, ExecutionSettings(), CPU, shared) for spec in specs]
    learners = {name: engine.learner for name, engine in zip(names, engines, strict=True)}
    teacher = Teacher.of(specs[0], shared)
    teacher.serve([learner.method.teacher for learner in learners.values()])
    for learner in learners.values():
        learner.method.train()
    raw, key = made_up_batch(specs[0])
    return Pack(learners, engines[0].stream, teacher, raw, key)


def measure(pair: str, sizes: Sequence[int], batch: int, rounds: int) -> None:
    """A line for each size of pack."""
    names = METHODS[: max(sizes)]
    pack, rows = make_pack(pair, names, batch), []
    for _ in range(rounds + 1):
        teacher = pack.teacher_pass()
        alone = [pack.step([name]) for name in names]
        rows.append((teacher, alone, [pack.step(names[:size]) for size in sizes]))
    del rows[0], pack  # the first round warms up; the memory is measured in processes of their own
    single = [peak_in_a_process_of_its_own(pair, [name], batch) for name in names]
    for number, size in enumerate(sizes):
        peak = single[0]
        if size > 1:
            peak = peak_in_a_process_of_its_own(pair, names[:size], batch)
        times = [(teacher, sum(alone[:size]), packs[number]) for teacher, alone, packs in rows]
        print(line(pair, size, times, peak, max(single[:size])), flush=True)


def line(pair: str, size: int, times: list[tuple[float, float, float]], peak: float, single: float) -> str:
    """One row of the table, from each round's seconds of the teacher, of the steps alone, and of the pack."""
    expected = [alone - (size - 1) * teacher for teacher, alone, _ in times]
    columns = [
        [alone for _, alone, _ in times],
        [together for *_, together in times],
        [together / alone for _, alone, together in times],
        [parts / alone for parts, (_, alone, _) in zip(expected, times, strict=True)],
        [together / parts for parts, (*_, together) in zip(expected, times, strict=True)],
    ]
    alone, together, measured, wanted, ratio = (statistics.median(column) for column in columns)
    numbers = f"{alone:.2f} | {together:.2f} | {measured:.3f} | {wanted:.3f} | {ratio:.3f} | {GOAL}"
    return f"| {pair} | {size} | {numbers} | {peak:.0f} | {single:.0f} |"


def peak_in_a_process_of_its_own(pair: str, names: Sequence[str], batch: int) -> float:
    """Peak memory (MB) of a process that makes only the steps of these runs together."""
    chosen = ["--peak", *names, "--pairs", pair, "--batch", str(batch)]
    answer = subprocess.run(
        [sys.executable, __file__, *chosen], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(answer.stdout)


def run_for_peak(pair: str, names: Sequence[str], batch: int) -> None:
    """Make some steps of these runs together and print this process's peak memory (MB)."""
    pack = make_pack(pair, names, batch)
    for _ in range(PEAK_STEPS):
        pack.step(names)
    print(high_water_mb())


def pack_size(text: str) -> int:
    """A number of runs; `all` is one of each method."""
    return len(METHODS) if text == "all" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--sizes", nargs="+", type=pack_size, default=[2, 4, 8, len(METHODS)])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs="+", metavar="METHOD", help="print only the peak memory of these")
    chosen = parser.parse_args()
    if any(not 1 <= size <= len(METHODS) for size in chosen.sizes):
        parser.error(f"--sizes: a pack has 1 to {len(METHODS)} runs, one of each method")
    torch.set_num_threads(1)
    if chosen.peak:
        run_for_peak(chosen.pairs[0], chosen.peak, chosen.batch)
        return
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for pair in chosen.pairs:
        measure(pair, chosen.sizes, chosen.batch, chosen.rounds)


if __name__ == "__main__":
    main()
