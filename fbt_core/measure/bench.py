"""What this machine does: the device that torch sees, images a second per core, seconds of a training step.

    python -m fbt_core.measure.bench SPEC.json ... [--seconds 60] [--batch 64] > answer.json

Loaders are timed for each spec, a step for the first one, and only with --seconds. Networks have random
weights and the step's images are made up: neither changes how long a step takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fbt_core import distributed
from fbt_core.data.feed import Feed, Raw
from fbt_core.data.load import load_splits
from fbt_core.data.order import BatchKey, Order, seed_everything
from fbt_core.data.splits import InMemory, OnDisk, Split
from fbt_core.data.transforms import training_pipeline
from fbt_core.distributed import Group
from fbt_core.errors import UserError
from fbt_core.learner import Learner
from fbt_core.methods.base import Context
from fbt_core.methods.registry import build_method
from fbt_core.provenance import device_name, peak_memory_mb, usable_cores
from fbt_core.run_folder import RunFolder
from fbt_core.spec import ExecutionSettings, RunSpec, parse_spec
from fbt_core.staged import StagedModel, build_network, stage
from fbt_core.stream import Stream
from fbt_core.teacher import Teacher
from fbt_core.train import to_device, train_step

WARM_UP, LEAST = 3, 3  # steps
LOADER_IMAGES, LOADER_SECONDS = 256, 4.0
CPU_BATCH = 16
PHOTOGRAPHS, PHOTOGRAPH_SIZE = 16, (500, 375)


@dataclass
class Engine:
    """The engine's own objects for one run."""

    learner: Learner
    stream: Stream
    teacher: Teacher | None

    def step(self, raw: Raw, key: BatchKey) -> None:
        """One whole training step."""
        train_step([self.learner], self.stream, self.teacher, key, raw)


def make_engine(
    spec: RunSpec, settings: ExecutionSettings, group: Group, shared: StagedModel | None = None
) -> Engine:
    """What trains a run, with random weights in place of files, and no images.

    `shared` is the teacher of a whole pack: the run then has a view of it in place of a network of its own.
    """
    classes, size = spec.dataset.classes, spec.dataset.image_size
    cut = str(spec.method.parameters.get("split", "even"))
    student = stage(build_network(spec.student, classes, size), size, cut)
    teacher = shared.view(cut) if shared else None
    if spec.teacher and shared is None:
        teacher = stage(build_network(spec.teacher, classes, size), size, cut)
    labels = torch.arange(spec.dataset.train_images) % classes
    method = build_method(spec.method, student, teacher, Context.of(spec, labels))
    folder = RunFolder(Path("/nonexistent"), spec, writes=False)
    empty = InMemory(np.zeros((0, size, size, 3), np.uint8), labels[:0], "nearest")
    stream = Stream(spec, settings, (empty, empty), group)
    learner = Learner(spec, settings, group, to_device(method, settings, group), folder)
    return Engine(learner, stream, Teacher.of(spec, method.teacher))


def made_up_batch(spec: RunSpec) -> tuple[Raw, BatchKey]:
    """A batch of random images as the loaders would give it."""
    size, batch = spec.dataset.image_size, spec.recipe.batch_size
    rows = tuple(range(batch))
    numbers = torch.arange(batch) % spec.dataset.train_images
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    return Raw(images, numbers % spec.dataset.classes, numbers), BatchKey(rows, rows, batch, 0, 0)


def measure_step(spec: RunSpec, settings: ExecutionSettings, seconds: float) -> dict[str, Any]:
    """Median seconds of a step, images a second and peak memory on the device that trainings take."""
    group = Group(distributed.choose_device(settings), 0, 1)
    seed_everything(0)
    engine, (raw, key) = make_engine(spec, settings, group), made_up_batch(spec)
    engine.learner.method.train()

    def timed() -> float:
        start = time.perf_counter()
        engine.step(raw, key)
        if group.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(WARM_UP):
        timed()
    times, end = list[float](), time.perf_counter() + seconds
    while len(times) < LEAST or time.perf_counter() < end:
        times.append(timed())
    median = statistics.median(times)
    return {
        "device": group.device.type,
        "device_name": device_name(group.device),
        "precision": spec.recipe.precision,
        "batch": spec.recipe.batch_size,
        "steps": len(times),
        "step_seconds": median,
        "images_per_second": spec.recipe.batch_size / median,
        "peak_memory_mb": peak_memory_mb(group.device),
    }


def measure_loader(spec: RunSpec, settings: ExecutionSettings) -> dict[str, Any]:
    """Images per second of CPU time that a core makes, by the run's own pipeline and feed."""
    with some_images(spec, settings) as (split, source):
        pipeline = training_pipeline(split, spec.dataset, spec.recipe.augmentation, spec.seed)
        feed = Feed(split, pipeline, 0, torch.device("cpu"))
        order = Order(len(split), min(64, len(split)), spec.seed)
        keys = order.keys(0)[: max(1, LOADER_IMAGES // 64)]
        epoch = lambda: [len(raw.labels) for raw in feed(keys)]  # noqa: E731
        epoch()
        images, end, start = 0, time.perf_counter() + LOADER_SECONDS, time.process_time()
        while not images or time.perf_counter() < end:
            images += sum(epoch())
        return {"rate": images / (time.process_time() - start), "images": source}


@contextmanager
def some_images(spec: RunSpec, settings: ExecutionSettings) -> Iterator[tuple[Split, str]]:
    """The run's training images, or made-up ones of the same kind on a machine that lacks them."""
    try:
        yield load_splits(spec.dataset, settings.data_roots)[0], "of the data set"
        return
    except UserError:
        pass
    labels = torch.zeros(LOADER_IMAGES, dtype=torch.int64)
    draws = np.random.default_rng(0)
    if spec.dataset.loader != "image_folder":
        yield (
            InMemory(draws.integers(0, 256, (LOADER_IMAGES, 32, 32, 3), np.uint8), labels, "bicubic"),
            "made up",
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        names = [write_photograph(Path(folder, f"{number}.jpg"), draws) for number in range(PHOTOGRAPHS)]
        files = np.array([names[number % PHOTOGRAPHS] for number in range(LOADER_IMAGES)])
        yield OnDisk(Path(folder), files, labels), "made up"


def write_photograph(path: Path, draws: np.random.Generator) -> bytes:
    """A JPEG of ImageNet's usual size, smooth with a little grain; its name."""
    coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), np.uint8)).resize(PHOTOGRAPH_SIZE)
    grain = draws.normal(0, 6, (*PHOTOGRAPH_SIZE[::-1], 3))
    pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path.name.encode()


def look() -> dict[str, Any]:
    """What torch sees of this machine."""
    devices = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = (properties.major, properties.minor)
        memory = properties.total_memory // 10**6
        devices.append({"name": properties.name, "memory_mb": memory, "tf32_bfloat16": capability >= (8, 0)})
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": devices,
        "cores": usable_cores(),
    }


def with_batch(spec: RunSpec, batch: int | None, settings: ExecutionSettings) -> RunSpec:
    """The spec with so many images a step; on a CPU few, unless they are named."""
    if batch is None and distributed.choose_device(settings).type == "cpu":
        batch = min(CPU_BATCH, spec.recipe.batch_size)
    if batch is None:
        return spec
    # A part of the batch normalises over itself here: that takes as long as the whole batch's statistics.
    change = {"batch_size": batch, "normalisation_batch": None}
    return spec.model_copy(update={"recipe": spec.recipe.model_copy(update=change)})


def answer(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    settings = ExecutionSettings.model_validate_json(options.settings)
    specs = [parse_spec(path.read_text()) for path in options.specs]
    measured = look()
    if options.seconds:
        measured["step"] = measure_step(
            with_batch(specs[0], options.batch, settings), settings, options.seconds
        )
    torch.set_num_threads(1)
    return {**measured, "loader": [measure_loader(spec, settings) for spec in specs]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answer as JSON; exit code 1 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m fbt_core.measure.bench", description=__doc__.splitlines()[0]
    )
    parser.add_argument("specs", nargs="*", type=Path, help="files that hold a RunSpec each")
    parser.add_argument("--settings", default="{}", help="ExecutionSettings as JSON")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long to repeat the first spec's step")
    parser.add_argument("--batch", type=int, help="images of a step (default: the recipe's batch; CPU: 16)")
    try:
        print(json.dumps(answer(parser.parse_args(arguments))))
    except Exception as error:
        reason = distributed.explain(error)
        if not isinstance(reason, UserError):
            raise
        print(f"error: {reason}", file=sys.stderr)
        return reason.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
