"""The checks of `make test-gpu` with the CPU in the role of the GPU: they pass what is right, no more."""

from __future__ import annotations

import pytest
import torch

from tests.test_core.methods_kit import PAIRS
from tests.test_gpu import checks

CPU = torch.device("cpu")
PAIR = PAIRS["msa", "cnn"]


@pytest.mark.parametrize("name", ["scratch", "kd", "fbt", "crd"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_good_step_passes(name, kind):
    method = checks.prepare(name, PAIR, CPU)
    again = checks.twin(method)
    batch = checks.fixed_batch(CPU)
    result = checks.train_step(method, batch, kind, CPU)
    checks.check_finite_and_moving(result, name)
    checks.check_like(result, checks.train_step(again, batch, kind, CPU), 1e-6, name)


def test_a_step_in_another_precision_is_not_like_float32_to_the_last_digit():
    batch = checks.fixed_batch(CPU)
    exact = checks.train_step(checks.prepare("kd", PAIR, CPU), batch, "float32", CPU)
    rough = checks.train_step(checks.prepare("kd", PAIR, CPU), batch, "bfloat16", CPU)
    with pytest.raises(AssertionError, match="expected"):
        checks.check_like(rough, exact, 1e-7, "kd")


def test_what_is_not_finite_or_does_not_move_is_caught():
    method, batch = checks.prepare("kd", PAIR, CPU), checks.fixed_batch(CPU)
    batch.images[0, 0, 0, 0] = float("nan")
    with pytest.raises(AssertionError, match="kd: not finite"):
        checks.check_finite_and_moving(checks.train_step(method, batch, "float32", CPU), "kd")
    still = checks.StepResult({"loss": 1.0}, moved=0.0, seconds=0.1, peak_mb=0.0)
    with pytest.raises(AssertionError, match="largest change of a weight is 0"):
        checks.check_finite_and_moving(still, "kd")


def test_every_tensor_of_a_method_moves_with_it():
    """Placement, without a GPU: on the meta device no real tensor may be left behind."""
    for name in ("fbt", "fcfd", "crd", "ofa", "simkd"):
        method = checks.prepare(name, PAIR, CPU).to("meta")
        left = [key for key, tensor in method.state_dict().items() if tensor.device.type != "meta"]
        assert not left, (name, left)
