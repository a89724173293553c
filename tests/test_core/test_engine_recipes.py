"""What a recipe does to a run: rates, weight decay, precision, EMA; and settings that change nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fbt_core.data.order import seed_everything
from fbt_core.methods.registry import method_facts
from fbt_core.optimisation import Optimisation, make_schedule, parameter_groups
from fbt_core.spec import OptimizerSpec, RecipeSpec, RunSpec
from fbt_core.staged import build_network
from fbt_core.weights import file_sha256, serialise
from tests.test_core.engine_runs import (
    CLASSES,
    TRAIN,
    arguments,
    at_step,
    in_child,
    make_spec,
    measured,
    metrics_of,
    network,
    weights_of,
    write_images,
)
from tests.test_core.test_distributed_runs import noting_losses, parameters, run_together

CPU = torch.device("cpu")


def recipe(epochs: int, **schedule: Any) -> RecipeSpec:
    changes = {f"recipe__schedule__{name}": value for name, value in schedule.items()}
    return make_spec(recipe__epochs=epochs, recipe__optimizer__learning_rate=0.1, **changes).recipe


def rates(recipe: RecipeSpec, steps: int = 4) -> list[list[float]]:
    """The learning rate at each step of each epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.optimizer.learning_rate)
    schedule, rates, updates = make_schedule(optimizer, recipe, steps), [], 0
    for epoch in range(recipe.epochs):
        rates.append([])
        for _ in range(steps):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            updates += 1
            schedule.step_update(updates)
        schedule.step(epoch + 1)
    return rates


def test_steps_fall_after_the_epochs_that_the_paper_names():
    chosen = recipe(
        100,
        name="step",
        milestones=(30, 60, 90),
        factor=0.1,
        warmup_epochs=3,
        warmup_start=1e-4,
        update="epoch",
    )
    by_epoch = [epoch[0] for epoch in rates(chosen)]
    assert by_epoch[0] == 1e-4
    assert by_epoch[3:30] == [0.1] * 27
    assert by_epoch[30:60] == pytest.approx([0.01] * 30)
    assert by_epoch[60:90] == pytest.approx([0.001] * 30)
    assert by_epoch[90:] == pytest.approx([0.0001] * 10)


def test_cosine_once_an_epoch_and_at_every_step():
    slow = rates(recipe(10, name="cosine", minimum=0.001, warmup_epochs=2, warmup_start=0.0, update="epoch"))
    assert all(len(set(epoch)) == 1 for epoch in slow)
    assert [epoch[0] for epoch in slow[:3]] == pytest.approx([0.0, 0.05, 0.0905], abs=1e-3)
    fine = rates(recipe(10, name="cosine", minimum=0.001, warmup_epochs=2, warmup_start=0.0, update="step"))
    flat = [rate for epoch in fine for rate in epoch]
    assert flat[:9] == pytest.approx([0.1 * i / 8 for i in range(8)] + [0.0905], abs=1e-3)
    assert all(a > b for a, b in zip(flat[8:], flat[9:], strict=False))
    assert flat[-1] < 0.003


def test_steps_without_milestones_are_refused():
    with pytest.raises(ValueError, match="milestones and factor"):
        recipe(3, name="step")


class Trainable(nn.Module):
    """A student inside the module that a method trains."""

    def __init__(self, create: str, **options: Any) -> None:
        super().__init__()
        spec = make_spec(student={**network(), "create": create, "options": options}).student
        self.student = nn.Module()
        self.student.network = build_network(spec, 4, 32)


def spared(module: nn.Module, rule: str) -> set[str]:
    """Names of the parameters without weight decay."""
    spec = OptimizerSpec(name="adamw", learning_rate=1e-3, weight_decay=0.05, no_decay=rule)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, spec)
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
    return {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}


def test_who_is_spared_weight_decay():
    vit = Trainable("vit_small_patch16_224", patch_size=8, embed_dim=24, depth=2, num_heads=2)
    vectors = {name for name, p in vit.named_parameters() if p.ndim <= 1}
    assert spared(vit, "one_dimensional") == spared(vit, "ofa_repository") == vectors
    tokens = {"student.network.pos_embed", "student.network.cls_token"}
    assert spared(vit, "network_list") == vectors | tokens
    swin = Trainable(
        "swin_tiny_patch4_window7_224",
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
        window_size=2,
    )
    tables = {name for name, _ in swin.named_parameters() if name.endswith("relative_position_bias_table")}
    assert len(tables) == 4
    assert not tables & spared(swin, "ofa_repository")
    assert tables <= spared(swin, "network_list")


def test_gradients_are_clipped_to_the_norm():
    spec = make_spec(recipe__optimizer__clip_gradient=0.5, recipe__optimizer__weight_decay=0.0)
    layer = nn.Linear(3, 3)
    optimisation = Optimisation(layer, spec.recipe, 4, CPU)
    before = layer.weight.detach().clone()
    optimisation.backward(layer(torch.full((8, 3), 100.0)).square().sum())
    rate = optimisation.learning_rate
    optimisation.step(1)
    moved = (layer.weight - before).norm().item()
    assert 0 < moved <= 0.5 * rate * 1.9 * 1.001  # Nesterov's first step is 1 + momentum times the gradient


def test_sgd_without_momentum_is_refused():
    with pytest.raises(ValueError, match="sgd needs its momentum"):
        make_spec(recipe__optimizer__momentum=None)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


def test_best_is_the_earliest_of_the_best_epochs_and_last_and_ema_are_stored(root, tmp_path):
    spec = make_spec(recipe__epochs=4)
    assert in_child(arguments(spec, tmp_path, root)) == 0
    metrics = metrics_of(tmp_path, spec)
    tops = [line["top1"] for line in metrics["history"]]
    assert metrics["best"]["epoch"] == tops.index(max(tops)) + 1
    assert metrics["last"] == {"epoch": 4, "top1": tops[-1], "top5": metrics["history"][-1]["top5"]}
    assert metrics["ema"]["top1"] == max(line["top1_ema"] for line in metrics["history"])
    assert all(line["top5"] == 100.0 for line in metrics["history"])  # four classes


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains_and_resumes(root, tmp_path, precision):
    spec = make_spec(recipe__precision=precision)
    assert in_child(arguments(spec, tmp_path, root)) == 0
    cut = arguments(spec, tmp_path / "cut", root)
    assert in_child(cut, at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))) == 75
    assert in_child(cut) == 0
    assert weights_of(tmp_path / "cut", spec) == weights_of(tmp_path, spec)
    history = metrics_of(tmp_path, spec)["history"]
    full = make_spec()
    assert in_child(arguments(full, tmp_path, root)) == 0
    reference = metrics_of(tmp_path, full)["history"]
    assert history[0]["loss"] == pytest.approx(reference[0]["loss"], abs=0.05)
    assert history[0]["loss"] != reference[0]["loss"]


WIDE = {"channels": (8, 8, 8, 8), "stem_width": 8}
"""Of fewer channels oneDNN overwrites memory in channels_last on some CPUs (see tests/golden/losses.py)."""


@pytest.mark.parametrize(
    "setting",
    [
        {"channels_last": True},
        {"workers": 1},
        {"log_steps": 1},
        {"tracker": "tensorboard"},
        {"device_cache": True},  # these images are enlarged without a filter, so nothing is rounded
    ],
)
def test_settings_do_not_change_what_is_learned(root, tmp_path, setting):
    spec = make_spec(student=network(**WIDE))
    for name, settings in (("plain", {}), ("changed", setting)):
        assert in_child(arguments(spec, tmp_path / name, root, **settings)) == 0
    plain, changed = (measured(tmp_path / name, spec) for name in ("plain", "changed"))
    if "channels_last" in setting:  # other kernels round otherwise
        assert [line[2] for line in plain] == pytest.approx([line[2] for line in changed], abs=1e-3)
    else:
        assert plain == changed
        assert weights_of(tmp_path / "plain", spec) == weights_of(tmp_path / "changed", spec)
    execution = metrics_of(tmp_path / "changed", spec)["execution"]
    assert execution["channels_last"] is ("channels_last" in setting)
    assert execution["device_cache"] is ("device_cache" in setting)
    assert execution["compile"] is False
    assert execution["deterministic"] is True
    assert execution["tf32_products"] is execution["cudnn_benchmark"] is None  # only GPUs have them
    if "tracker" in setting:
        assert list((tmp_path / "changed" / spec.id / "tensorboard").glob("events*"))


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_gpus_round_products_and_convolutions_only_if_the_recipe_says_so(precision):
    recipe, cpu = make_spec(recipe__precision=precision).recipe, torch.device("cpu")
    optimisation = Optimisation(torch.nn.Linear(2, 2), recipe, steps=1, device=cpu)
    switches = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    assert switches == (precision == "tf32",) * 2
    with optimisation.autocast():
        assert torch.is_autocast_enabled("cpu") is (precision == "bfloat16")


ADAMW = {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.01, "no_decay": "one_dimensional"}
SEEDS = (3, 4, 5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["scratch", "kd", "fbt"])
@pytest.mark.parametrize("setting", ["channels_last", "compile"])
def test_faster_kernels_round_otherwise_and_move_the_score_less_than_a_seed_does(tmp_path, method, setting):
    """So these settings stay outside the run id."""
    root = write_images(tmp_path / "data", train=TRAIN, test=200)
    plain, changed = (
        [scores(method, seed, tmp_path, root, **chosen) for seed in SEEDS] for chosen in ({}, {setting: True})
    )
    for exact, faster in zip(plain, changed, strict=True):
        assert exact["losses"][0] == pytest.approx(faster["losses"][0], rel=1e-5)
        assert exact["losses"] == pytest.approx(faster["losses"], rel=1e-3)
    assert [run["test_loss"] for run in plain] != [run["test_loss"] for run in changed], "it did nothing"
    moved = [exact["top1"] - faster["top1"] for exact, faster in zip(plain, changed, strict=True)]
    assert abs(statistics.mean(moved)) <= statistics.stdev(run["top1"] for run in plain)


def scores(method: str, seed: int, folder: Path, root: Path, **settings: Any) -> dict[str, Any]:
    """The losses of the first three steps, before rounding has grown, and the score after twelve epochs."""
    changes = {"recipe__epochs": 12, "dataset__test_images": 200, "recipe__optimizer": ADAMW}
    spec, files = teaching_spec(method, folder, seed, **changes)
    runs, steps = folder / f"runs{len(settings)}", folder / f"steps{seed}{len(settings)}.jsonl"
    command = arguments(spec, runs, root, weight_files=files, log_steps=1, **settings)
    assert in_child(command, noting_losses(steps)) == 0
    losses = [json.loads(line)[0] for line in steps.read_text().splitlines()[:3]]
    last = metrics_of(runs, spec)["history"][-1]
    return {"losses": losses, "top1": last["top1"], "test_loss": last["test_loss"]}


def teaching_spec(method: str, folder: Path, seed: int, **changes: Any) -> tuple[RunSpec, dict[str, str]]:
    """A method on the tiny ResNet with a random teacher, from a seed."""
    if method == "scratch":
        return make_spec(seed=seed, student=network(**WIDE), **changes), {}
    draft = make_spec(teacher=None, student=network("teacher", **WIDE)).student
    seed_everything(7, 0)
    path = folder / "teacher.safetensors"
    path.write_bytes(serialise(build_network(draft, CLASSES, 32).state_dict()))
    sha = file_sha256(path)
    facts = method_facts(method)
    entry = {"name": method, "parameters": parameters(method), "revision": facts.revision}
    entry |= {"fusion_revision": 1} if facts.uses_fusion else {}
    networks = {"teacher": network("teacher", weights=f"file:{sha}", **WIDE), "student": network(**WIDE)}
    return make_spec(seed=seed, method=entry, **networks, **changes), {sha: str(path)}


@pytest.mark.parametrize("processes", [1, 2])
def test_predictions_of_every_test_image_are_kept_and_give_the_scores(tmp_path, processes):
    root, spec = write_images(tmp_path / "data"), make_spec(recipe__epochs=3)
    assert run_together(arguments(spec, tmp_path / "runs", root), processes) == [0] * processes
    metrics = metrics_of(tmp_path / "runs", spec)
    with np.load(tmp_path / "runs" / spec.id / "predictions.npz") as kept:
        assert kept["labels"].tolist() == [number % CLASSES for number in range(30)]
        for name in ("best", "last", "ema"):
            share = 100 * (kept[name] == kept["labels"]).mean()
            assert share == pytest.approx(metrics[name]["top1"]), name
            assert kept[name].dtype == np.uint8


def test_of_equal_epochs_the_earliest_is_the_best(tmp_path):
    """All epochs score the same here: nothing is learned at a rate of almost zero."""
    root = write_images(tmp_path / "data")
    spec = make_spec(
        recipe__epochs=3,
        recipe__ema_decay=None,
        recipe__optimizer__learning_rate=1e-12,
        recipe__schedule__minimum=0.0,
        recipe__schedule__warmup_start=0.0,
    )
    frozen_statistics(tmp_path, root, spec)
    metrics = metrics_of(tmp_path, spec)
    assert len({line["top1"] for line in metrics["history"]}) == 1
    assert metrics["best"]["epoch"] == 1


def frozen_statistics(runs: Path, root: Path, spec: RunSpec) -> None:
    """A run whose BatchNorms do not move either."""

    def prepare() -> None:
        forward = nn.BatchNorm2d.forward
        nn.BatchNorm2d.forward = lambda norm, x: forward(norm.eval(), x)

    assert in_child(arguments(spec, runs, root), prepare) == 0


def test_a_schedule_by_epoch_moves_once_an_epoch_in_the_loop_itself(tmp_path):
    """Every recipe of the paper updates by epoch; the rate in history is the loop's own."""
    root = write_images(tmp_path / "data")
    changes = {"recipe__schedule__update": "epoch", "recipe__schedule__warmup_epochs": 0}
    spec = make_spec(recipe__epochs=4, **changes)
    assert in_child(arguments(spec, tmp_path, root)) == 0
    history = metrics_of(tmp_path, spec)["history"]
    cosine = [1e-4 + 0.5 * (0.05 - 1e-4) * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert [line["lr"] for line in history] == pytest.approx(cosine)
