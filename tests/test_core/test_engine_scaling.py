"""Loss scaling and checkpoints: what is easily dropped without a run failing."""

from __future__ import annotations

import hashlib
import io
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from fbt_core import checkpoint
from fbt_core.errors import CheckpointError
from fbt_core.optimisation import Optimisation
from tests.test_core.engine_runs import make_spec


def optimisation(precision: str) -> Optimisation:
    torch.manual_seed(0)
    recipe = make_spec(recipe__precision=precision).recipe
    return Optimisation(nn.Linear(4, 1), recipe, 6, torch.device("cpu"))


def test_gradients_are_clipped_at_their_own_size_not_at_the_scaled_one():
    plain, scaled = optimisation("float32"), optimisation("float16")
    for each in (plain, scaled):
        each.backward(each.module(torch.ones(2, 4)).sum())  # a norm of 4.5, below the limit of 5
        each.step(1)
    torch.testing.assert_close(scaled.module.weight, plain.module.weight)


def test_the_scale_of_the_loss_is_restored():
    before, after = optimisation("float16"), optimisation("float16")
    before.backward(before.module(torch.full((2, 4), torch.inf)).sum())
    before.step(1)  # an infinite gradient halves the scale
    after.load_state_dict(before.state_dict())
    assert (
        after.scaler.get_scale()
        == before.scaler.get_scale()
        == optimisation("float16").scaler.get_scale() / 2
    )


def draws() -> list[float]:
    """Numbers from every generator; numpy's keeps the second of a pair of normal ones."""
    return [random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()]


def test_every_random_generator_goes_on_where_it_was():
    draws()
    kept = checkpoint.random_state()
    drawn = draws()
    checkpoint.restore_random_state(kept)
    assert draws() == drawn


def test_a_damaged_checkpoint_does_not_push_out_the_good_one(tmp_path):
    """It is put aside: else the next checkpoint would make it the one before."""
    spec = make_spec()
    for number in (1, 2):
        checkpoint.save(tmp_path, spec, {"number": number})
    (tmp_path / checkpoint.LAST).write_bytes(b"cut")
    assert checkpoint.load(tmp_path, spec)[0]["number"] == 1
    checkpoint.save(tmp_path, spec, {"number": 3})
    assert checkpoint.read(tmp_path / checkpoint.PREVIOUS, spec)["number"] == 1


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    body = io.BytesIO()
    torch.save({"state": Bomb(str(tmp_path / "ran"))}, body)
    content = body.getvalue()
    path = tmp_path / "last.pt"
    path.write_bytes(content + checkpoint.MARK + hashlib.sha256(content).digest())
    with pytest.raises(CheckpointError):
        checkpoint.read(path, make_spec())
    assert not (tmp_path / "ran").exists()
