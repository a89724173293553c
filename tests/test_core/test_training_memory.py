"""Memory of a training step, counted without a GPU: against tensors counted by hand, and as committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fbt_core.measure import training_memory
from fbt_core.measure.training_cost import read_yaml
from fbt_core.methods import method_names
from tests.test_core.methods_kit import CLASSES, IMAGES, PAIRS, SIZE, in_process_of_its_own, make_method

ROOT = Path(__file__).parents[2]


def test_what_lives_at_the_same_time_is_counted_and_what_was_there_before_is_not():
    weight = torch.zeros(1000)
    with training_memory.LiveBytes([weight]) as counter:
        first = weight.view(10, 100) * 2  # a view of what was there, and 4000 bytes
        second = first + 1  # 4000 more
        del first
        third = second[:5] + 1  # 2000, when 4000 are left
        assert counter.live == 6000
        del second, third
    assert counter.peak == 8000 and counter.live == 0


@pytest.mark.parametrize("name", method_names())
@in_process_of_its_own
def test_every_method_does_a_fake_step_in_every_precision(name):
    """Backward and optimiser too, and no number is read on the way: what a GPU would be waited for."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    method = make_method(name, PAIRS["cnn", "msa"], labels=torch.arange(IMAGES) % CLASSES)
    method = training_memory.make_fake(method, mode)
    trained = [p for p in method.trainable_module.parameters() if p.requires_grad]
    peaks = []
    for precision in training_memory.PRECISIONS.values():
        peaks.append(training_memory.fake_step(method, mode, 8, precision, size=SIZE))
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in trained)
        assert sum(p.grad is not None for p in trained) > len(trained) / 2
        with mode:
            torch.optim.AdamW(trained, lr=0.1).step()
        method.zero_grad(set_to_none=True)
    # At this size the copies of weights in half precision may weigh as much as what they save (PAT).
    assert 0 < peaks[1] < 1.01 * peaks[0]


@pytest.mark.slow
@in_process_of_its_own
def test_the_committed_counts_come_out_again():
    committed = json.loads((ROOT / "fbt_paper" / "plan" / "data" / "training_memory.json").read_text())
    architectures, methods = (read_yaml(ROOT / "config" / f"{n}.yaml") for n in ("architectures", "methods"))
    counts = training_memory.count_pair(architectures, methods, "swin_t", "resnet18")
    for method, entry in counts.items():
        stated = committed[method]["swin_t__resnet18"]
        assert entry["trainable"] == stated["trainable"] and entry["frozen"] == stated["frozen"]
        # torch's own choice of temporary tensors differs between versions.
        assert entry["float32"] == pytest.approx(stated["float32"], rel=0.05), method
