"""Seconds for which training stands still at a checkpoint: written in line, and written beside the training.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint.py [--pairs swin_t__resnet18 ...] [--rounds 5]

Full-size networks, their recipe's optimiser after one step, and an average of the weights (EMA). `copy` is
the state's way to main memory, which is all that training waits for now; `file` is writing it, with digest
and flush to the disk, which it waited for before. With `checkpoint_minutes` 15 and epochs of m minutes there
are m / 15 checkpoints an epoch; before, there was one at each epoch's end as well.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.engine import CPU, make_spec
from fbt_core import checkpoint
from fbt_core.measure.bench import made_up_batch, make_engine
from fbt_core.spec import ExecutionSettings


def measure(pair: str, rounds: int, folder: Path) -> str:
    """One line: the size of a checkpoint, seconds of the copy, of the file, and their ratio."""
    spec = make_spec(pair, "fbt", 2)
    spec = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"ema_decay": 0.9999})})
    engine = make_engine(spec, ExecutionSettings(), CPU)
    engine.learner.method.train()
    raw, key = made_up_batch(spec)
    engine.step(raw, key)  # the optimiser's states are there from the first step on
    copies, files = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        state = checkpoint.snapshot(engine.learner.state_dict())
        copied = time.perf_counter()
        checkpoint.save(folder, spec, state)
        copies.append(copied - start)
        files.append(time.perf_counter() - copied)
    size = (folder / checkpoint.LAST).stat().st_size / 1e6
    copy, file = statistics.median(copies), statistics.median(files)
    return f"| {pair} | {size:.0f} | {copy:.2f} | {file:.2f} | {(copy + file) / copy:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=["swin_t__resnet18", "convnext_t__deit_t"])
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("| pair, FBT with EMA | MB | copy, s | file, s | before / now |\n|---|---|---|---|---|")
    for pair in chosen.pairs:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            print(measure(pair, chosen.rounds, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
