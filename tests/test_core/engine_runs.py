"""Small runs for the engine's tests: a few hundred generated images, a network of a few thousand weights."""

from __future__ import annotations

import json
import mmap
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils._python_dispatch import TorchDispatchMode

from fbt_core import checkpoint, train
from fbt_core.learner import Learner
from fbt_core.run import main
from fbt_core.spec import ExecutionSettings, RunSpec
from scripts.make_fashion_mnist_subset import write_idx

CLASSES, TRAIN, TEST = 4, 96, 30
PLAIN = {
    "crop_scale": None,
    "flip": 0.5,
    "color_jitter": None,
    "rand_augment": None,
    "mixup": None,
    "cutmix": None,
    "erasing": None,
}
EVERYTHING = {
    "crop_scale": (0.3, 1.0),
    "flip": 0.5,
    "color_jitter": 0.4,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "erasing": 0.25,
}
RESNET = {"layers": (1, 1, 1, 1), "channels": (4, 8, 8, 8), "stem_type": "deep", "stem_width": 4}
KD = {"label_weight": 1.0, "logit_weight": 1.0, "temperature": 2.0}


def write_images(root: Path, train: int = TRAIN, test: int = TEST) -> Path:
    """IDX files of images whose class shows as the position of a bright square."""
    root.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    for split, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % CLASSES).astype(np.uint8)
        images = draws.integers(0, 120, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 + 12 * (label // 2) :, 4 + 12 * (label % 2) :][:8, :8] = 250
        write_idx(root / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(root / f"{split}-labels-idx1-ubyte.gz", labels)
    return root


def network(architecture: str = "resnet18", weights: str = "none", **options: Any) -> dict[str, Any]:
    """A tiny network's entry."""
    return {
        "architecture": architecture,
        "family": "cnn",
        "create": "resnet18",
        "options": {**RESNET, **options},
        "weights": weights,
        "mean": (0.3, 0.3, 0.3),
        "std": (0.3, 0.3, 0.3),
    }


class CountedOperations(TorchDispatchMode):
    """Counts the tensor operations done inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        return func(*args, **(kwargs or {}))


def make_spec(augmentation: dict[str, Any] = PLAIN, **changes: Any) -> RunSpec:
    """A run of two epochs of six steps; `changes` replace parts by their path, e.g. recipe__epochs=1."""
    content: dict[str, Any] = {
        "dataset": {
            "name": "squares",
            "loader": "fashion_mnist",
            "variant": "full",
            "classes": CLASSES,
            "train_images": TRAIN,
            "test_images": TEST,
            "image_size": 32,
            "mean": (0.3, 0.3, 0.3),
            "std": (0.3, 0.3, 0.3),
        },
        "student": network(),
        "teacher": None,
        "method": {"name": "scratch", "parameters": {}, "revision": 1},
        "recipe": {
            "epochs": 2,
            "batch_size": 16,
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.05,
                "weight_decay": 5e-4,
                "momentum": 0.9,
                "no_decay": "one_dimensional",
                "clip_gradient": 5.0,
            },
            "schedule": {
                "name": "cosine",
                "minimum": 1e-4,
                "warmup_epochs": 1,
                "warmup_start": 1e-3,
                "update": "step",
            },
            "augmentation": augmentation,
            "label_smoothing": 0.1,
            "ema_decay": 0.9,
            "precision": "float32",
            "teacher_normalisation": "own",
        },
        "seed": 3,
        "engine_revision": 1,
    }
    for path, value in changes.items():
        *folders, name = path.split("__")
        inner = content
        for folder in folders:
            inner = inner[folder]
        inner[name] = value
    return RunSpec.model_validate(content)


def arguments(spec: RunSpec, runs: Path, root: Path, **settings: Any) -> list[str]:
    """The command line of a run."""
    chosen = ExecutionSettings(data_roots={"squares": str(root)}, **{"threads": 1, **settings})
    return ["--spec", spec.model_dump_json(), "--settings", chosen.model_dump_json(), "--runs", str(runs)]


def weights_of(runs: Path, spec: RunSpec) -> bytes:
    """The bytes of a run's exported weights."""
    return (runs / spec.id / "weights.safetensors").read_bytes()


def measured(runs: Path, spec: RunSpec) -> list[tuple[Any, ...]]:
    """All that a run measured, epoch by epoch, without times."""
    names = ("epoch", "lr", "loss", "terms", "top1", "top5", "top1_ema", "test_loss")
    return [tuple(line[name] for name in names) for line in metrics_of(runs, spec)["history"]]


def metrics_of(runs: Path, spec: RunSpec) -> dict[str, Any]:
    """A run's metrics."""
    return json.loads((runs / spec.id / "metrics.json").read_text())


def at_test_batch(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """Prepares a child so that `act` runs in its number-th batch of test images."""

    def prepare() -> None:
        seen, counts = iter(range(1, 10_000)), Learner.count_test_batch

        def watched(learner: Learner, network: Any, *batch: Any) -> Any:
            if next(seen) == number:
                act()
            return counts(learner, network, *batch)

        Learner.count_test_batch = watched  # type: ignore[method-assign]

    return prepare


def in_child(command: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Run the engine in a forked process; its exit code, or minus the number of the signal that killed it."""
    child = os.fork()
    if not child:
        code = 99
        try:
            prepare()
            code = main(command)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def at_event(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """Prepares a child so that `act` runs at its number-th event (see `watch`)."""
    seen = EventCount()

    def count(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*values: Any, **named: Any) -> Any:
            if seen.next() == number:
                act()
            return function(*values, **named)

        return counted

    return lambda: watch(count)


def count_events(command: list[str]) -> int:
    """How many events a run has; it must end well."""
    seen = EventCount()

    def count(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*values: Any, **named: Any) -> Any:
            seen.next()
            return function(*values, **named)

        return counted

    assert in_child(command, lambda: watch(count)) == 0
    return seen.value


class EventCount:
    """A counter that a forked child shares with its parent."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        return int.from_bytes(self.memory[:8], "little")

    def next(self) -> int:
        self.memory[:8] = (self.value + 1).to_bytes(8, "little")
        return self.value


def watch(count: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `count` around a run's events: a step, a test batch, a write, a flush, a rename."""
    os.fsync, os.replace = count(os.fsync), count(os.replace)
    checkpoint._Hashing.write = count(checkpoint._Hashing.write)
    train.train_step = count(train.train_step)
    Learner.count_test_batch = count(Learner.count_test_batch)


def at_step(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """Prepares a child so that `act` runs in its number-th step."""

    def prepare() -> None:
        seen, step = iter(range(1, 10_000)), train.train_step

        def watched(*values: Any) -> None:
            if next(seen) == number:
                act()
            step(*values)

        train.train_step = watched

    return prepare
