"""Every method, with all it keeps (banks, projectors, fused model), continues exactly when interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fbt_core import train
from fbt_core.methods.registry import method_names
from tests.test_core.engine_runs import arguments, in_child, measured, network, weights_of, write_images
from tests.test_core.test_distributed_runs import VIT, method_spec

FAST = ("crd", "fbt")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), train=64)


def interrupt_in(epoch: int, step: int):
    """Prepares a child that is asked to stop in this step."""

    def prepare():
        train_step = train.train_step

        def watched(learners, stream, teacher, key, raw):
            if (key.epoch, key.step) == (epoch, step):
                os.kill(os.getpid(), signal.SIGUSR2)
            train_step(learners, stream, teacher, key, raw)

        train.train_step = watched

    return prepare


@pytest.mark.parametrize("student", ["cnn", "msa"])
@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in method_names()]
)
def test_interrupted_method_ends_with_the_same_bytes(name, student, root, tmp_path):
    # As wide as oneDNN computes rightly on every CPU (see tests/golden/losses.py).
    entry = {**network("student", channels=(8, 8, 8, 8), stem_width=8), **(VIT if student == "msa" else {})}
    spec, files = method_spec(name, tmp_path, entry)
    spec = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"epochs": 2})})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert in_child(arguments(spec, whole, root, weight_files=files)) == 0
    command = arguments(spec, cut, root, weight_files=files)
    assert in_child(command, interrupt_in(0, 2)) == 75
    assert in_child(command, interrupt_in(1, 1)) == 75
    assert in_child(command) == 0
    assert weights_of(cut, spec) == weights_of(whole, spec)
    assert measured(cut, spec) == measured(whole, spec)
