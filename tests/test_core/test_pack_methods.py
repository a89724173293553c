"""Every method in one pack ends with the bytes that it ends with alone: weights, history, metrics."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from fbt_core import train
from fbt_core.methods.registry import method_names
from fbt_core.packs import read_marker
from fbt_core.publish import main as publish
from fbt_core.spec import ExecutionSettings, RunSpec
from tests.test_core.engine_runs import (
    EVERYTHING,
    arguments,
    at_step,
    in_child,
    metrics_of,
    network,
    weights_of,
    write_images,
)
from tests.test_core.test_distributed_runs import OTHER_VIT, VIT, method_spec, run_together

TIMES = {"seconds", "images_per_second", "finished", "attempt"}
ABOUT_THE_ATTEMPT = {*TIMES, "peak_memory_mb", "execution", "provenance"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), train=64)


def specs_of(folder: Path, student: dict, teacher: dict, **changes) -> tuple[list[RunSpec], dict[str, str]]:
    """A short run of every method with one teacher, and where its weights are."""
    specs, files = [], {}
    for name in method_names():
        spec, file = method_spec(name, folder, student, teacher, augmentation=EVERYTHING, **changes)
        specs.append(spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"epochs": 2})}))
        files |= file
    return specs, files


def results(runs: Path, spec: RunSpec) -> tuple[bytes, dict]:
    """A run's weights, and its metrics but for what is the attempt's."""
    metrics = metrics_of(runs, spec)
    metrics["history"] = [{key: line[key] for key in line.keys() - TIMES} for line in metrics["history"]]
    return weights_of(runs, spec), {key: metrics[key] for key in metrics.keys() - ABOUT_THE_ATTEMPT}


def pack_of(specs: list[RunSpec], runs: Path, root: Path, marker: Path, **settings) -> list[str]:
    command = [*arguments(specs[0], runs, root, **settings), "--pack", str(marker)]
    return command + [word for spec in specs[1:] for word in ("--spec", spec.model_dump_json())]


CNN = network("student"), network("teacher")
PAIRS = {
    "cnn_cnn": CNN,
    # As wide as oneDNN computes rightly on every CPU (see tests/golden/losses.py).
    "msa_cnn": (network("student", channels=(8, 8, 8, 8), stem_width=8), OTHER_VIT),
    "msa_msa": ({**network("student"), **VIT}, OTHER_VIT),
}


def watch_the_teacher() -> None:
    """Prepares a child to fail unless the shared teacher ends as it was made: frozen, and the same bytes."""
    make, go_on, made = train.make_teacher, train.train_to_the_end, []

    def make_and_note(*values):
        network = make(*values)
        made.append((network, {name: tensor.clone() for name, tensor in network.state_dict().items()}))
        return network

    def go_on_and_check(learners, *values):
        modules = {module for learner in learners for module in learner.method.modules()}
        go_on(learners, *values)
        ((network, before),) = made
        assert modules.isdisjoint(network.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        assert not any(weight.requires_grad or weight.grad is not None for weight in network.parameters())
        assert not any(module.training for module in network.modules())

    train.make_teacher, train.train_to_the_end = make_and_note, go_on_and_check


@pytest.mark.parametrize(
    "pair", [p if p == "cnn_cnn" else pytest.param(p, marks=pytest.mark.slow) for p in PAIRS]
)
def test_all_methods_in_one_pack_end_as_each_alone(pair, root, tmp_path):
    """The teacher's and the students' BatchNorms normalise by halves of the batch; interrupted on the way.

    What methods do to their views of the teacher (prompts, mixed passes, a classifier) leaves it as it was.
    """
    specs, files = specs_of(tmp_path, *PAIRS[pair], recipe__normalisation_batch=8)
    marker, packed, alone = tmp_path / "pack.json", tmp_path / "packed", tmp_path / "alone"
    command = pack_of(specs, packed, root, marker, weight_files=files)
    assert in_child(command, at_step(6, lambda: os.kill(os.getpid(), signal.SIGUSR2))) == 75
    assert in_child(command, watch_the_teacher) == 0
    settings = ExecutionSettings(threads=1, data_roots={"squares": str(root)}, weight_files=files)
    assert {ending.state for ending in read_marker(marker).values()} == {"ready"}
    for spec in specs:
        assert publish([spec.id, "--runs", str(packed), "--pack", str(marker)]) == 0
        train.train([spec], settings, alone, train.StopRequest())
        assert results(packed, spec) == results(alone, spec), spec.method.name
        others = sorted(other.id for other in specs if other is not spec)
        assert metrics_of(packed, spec)["execution"]["pack"] == others
        assert metrics_of(alone, spec)["execution"]["pack"] == []


@pytest.mark.slow
def test_two_processes_train_a_pack_as_they_train_each_alone(root, tmp_path):
    specs, files = specs_of(tmp_path, *CNN)
    marker, packed, alone = tmp_path / "pack.json", tmp_path / "packed", tmp_path / "alone"
    assert run_together(pack_of(specs, packed, root, marker, weight_files=files), 2) == [0, 0]
    for spec in specs:
        assert run_together(arguments(spec, alone, root, weight_files=files), 2) == [0, 0]
        assert publish([spec.id, "--runs", str(packed), "--pack", str(marker)]) == 0
        assert results(packed, spec) == results(alone, spec), spec.method.name
