"""Made-up runs in the engine's file formats, for tests only; never shipped as results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fbt_core.spec import (
    AugmentationSpec,
    DatasetSpec,
    MethodSpec,
    NetworkSpec,
    OptimizerSpec,
    RecipeSpec,
    RunSpec,
    ScheduleSpec,
)

FAMILIES = {"resnet18": "cnn", "convnext_t": "cnn", "swin_t": "msa", "swin_p": "msa", "mixer_b16": "mlp"}
GREY = (0.5, 0.5, 0.5)


def make_network(architecture: str, weights: str = "none") -> NetworkSpec:
    return NetworkSpec(
        architecture=architecture,
        family=FAMILIES[architecture],
        create=architecture,
        options={},
        weights=weights,
        mean=GREY,
        std=GREY,
    )


def make_spec(
    student: str = "resnet18",
    teacher: str | None = None,
    teacher_run: str = "",
    method: str = "scratch",
    seed: int = 0,
    epochs: int = 4,
    **parameters: Any,
) -> RunSpec:
    """A whole spec of a small training; `teacher_run` is the id of the run that made the teacher."""
    return RunSpec(
        dataset=DatasetSpec(
            name="fashion_mnist",
            loader="fashion_mnist",
            variant="embedded",
            classes=10,
            train_images=5000,
            test_images=1000,
            image_size=64,
            mean=GREY,
            std=GREY,
        ),
        student=make_network(student),
        teacher=make_network(teacher, f"run:{teacher_run}") if teacher else None,
        method=MethodSpec(name=method, parameters=parameters, revision=1),
        recipe=RecipeSpec(
            epochs=epochs,
            batch_size=64,
            optimizer=OptimizerSpec(
                name="adamw", learning_rate=1e-3, weight_decay=0.05, no_decay="one_dimensional"
            ),
            schedule=ScheduleSpec(name="cosine", minimum=1e-5, warmup_epochs=1, warmup_start=1e-6),
            augmentation=AugmentationSpec(
                crop_scale=None,
                flip=0.5,
                color_jitter=None,
                rand_augment=None,
                mixup=None,
                cutmix=None,
                erasing=None,
            ),
            label_smoothing=0.1,
            precision="float32",
            teacher_normalisation="own",
        ),
        seed=seed,
        engine_revision=1,
    )


def make_history(
    epochs: int, top1: float = 80.0, seed: int = 0, terms: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Epoch records that rise towards `top1`; every seed a little different."""
    return [
        {
            "epoch": epoch,
            "lr": 1e-3 / epoch,
            "loss": 2.0 / epoch,
            "terms": {term: (index + 1) / epoch + 0.01 * seed for index, term in enumerate(terms)},
            "top1": round(top1 - 30 * math.exp(-epoch) + 0.5 * seed, 2),
            "top5": 95.0,
            "top1_ema": None,
            "test_loss": 1.5 / epoch,
            "seconds": 10.0,
            "images_per_second": 500.0,
            "finished": f"2026-11-22T21:00:{epoch:02d}+00:00",
            "attempt": 0,
        }
        for epoch in range(1, epochs + 1)
    ]


def write_run(runs: Path, spec: RunSpec, top1: float = 80.0, epochs: int | None = None) -> Path:
    """A run that is done: spec, history, metrics and log as the engine publishes them."""
    terms = ("cross_entropy", "logits") if spec.teacher else ("cross_entropy",)
    history = make_history(epochs or spec.recipe.epochs, top1, spec.seed, terms)
    folder = write_history(runs, spec, history)
    best = max(history, key=lambda record: record["top1"])
    metrics = {
        "run": spec.id,
        "spec": spec.model_dump(mode="json"),
        "best": {key: best[key] for key in ("epoch", "top1", "top5")},
        "last": {key: history[-1][key] for key in ("epoch", "top1", "top5")},
        "ema": None,
        "history": history,
        "seconds": 40.0,
        "images_per_second": 500.0,
        "peak_memory_mb": 400.0,
        "parameters": 12345,
        "weights_sha256": "ab" * 32,
        "execution": {"device": "cpu", "gpus": 0, "gpu_hours": 0.0, "restarts": 1, "threads": 1},
        "provenance": {
            "git_sha": "c0ffee" * 6 + "c0ff",
            "git_dirty": False,
            "started": "2026-11-22T21:00:00+00:00",
            "finished": "2026-11-22T21:00:40+00:00",
            "versions": {"python": "3.11.2", "torch": "2.14.1", "timm": "1.0.31"},
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def write_history(runs: Path, spec: RunSpec, history: list[dict[str, Any]]) -> Path:
    folder = runs / spec.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    (folder / "log.txt").write_text(
        "".join(f"epoch {record['epoch']} top-1 {record['top1']}\n" for record in history)
    )
    return folder


def write_progress(
    runs: Path, spec: RunSpec, state: str, updated: str, epoch: int = 2, error: str | None = None, **more: Any
) -> Path:
    """A run that has begun: `epoch` epochs of history and the engine's progress file."""
    folder = write_history(runs, spec, make_history(epoch, seed=spec.seed))
    progress = {
        "epoch": epoch,
        "epochs": spec.recipe.epochs,
        "step": 3,
        "steps": 10,
        "loss": 1.2,
        "images_per_second": 512.0,
        "best_top1": 71.5,
        "seconds_left": 20.0,
        "updated": updated,
        "pid": 1,
        "state": state,
        "attempt": 0,
        "error": error,
        **more,
    }
    (folder / "progress.json").write_text(json.dumps(progress))
    return folder


PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63606060f80f0001040100 5fe5c34b0000000049454e44ae426082".replace(" ", "")
)
"""A PNG of one pixel."""


def write_costs(path: Path, rows: tuple[str, ...], blocks: tuple[str, ...]) -> None:
    """A count of the cost table with round numbers."""
    counts = {rule: {"parameters": 11_690_000, "macs": 1_820_000_000} for rule in ("paper_rule", "true")}
    entry = {"student": counts, "ofa_branch": counts, "fbt_branch": dict.fromkeys(blocks, counts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": dict.fromkeys(rows, entry)}))


def write_scale(flow: Any, keys: tuple[str, ...] = ()) -> None:
    """Results for tables of a Flow (all of `snakemake all`): runs that are done, and the cost count."""
    tables = [flow.plan.tables[key] for key in keys or flow.plan.all_tables]
    shown = [run for table in tables for run in table.runs]
    # Gains are over the same student without a teacher, which the comparison and the page ask for.
    scratch = [run for run in map(flow.plan.scratch_of, shown) if run]
    runs = dict.fromkeys([*flow.plan.needed(shown), *scratch])
    for index, run in enumerate(runs):
        write_run(Path(flow.runs), flow.spec(run), top1=60.0 + index % 30)
    for table in tables:
        if table.kind == "cost":
            entry = flow.config.tables[table.key]
            rows = tuple(row.key for row in entry.rows)
            write_costs(Path(flow.results, "costs", f"{table.key}.json"), rows, entry.blocks)
