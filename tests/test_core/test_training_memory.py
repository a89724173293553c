"""Memory of a training step, counted without a GPU: against tensors counted by hand, and as committed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from fbt_core.measure import training_memory
from fbt_core.measure.training_cost import read_yaml
from fbt_core.methods import method_names
from fbt_core.methods.base import Context
from fbt_core.methods.registry import build_method
from fbt_core.spec import NetworkSpec, RunSpec
from fbt_core.staged import StagedModel, build_network, stage
from fbt_paper.plan.targets import Flow
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


class StandIn(getattr(backend_registration, "_DummyBackendModule", object)):
    """A device that exists in name only: what torch asks of a GPU's module."""

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


def stand_in_device():
    """The name of a device without memory, in the role of a GPU; the CPU where torch cannot make one up."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        return "cpu"
    backend_registration._setup_privateuseone_for_python_backend("standin", StandIn())
    return "standin"


def fake_step(method, device, precision):
    """A step with fake tensors alone: tensors left on the CPU and numbers that are read are errors."""
    mode = FakeTensorMode(allow_non_fake_inputs=device == "cpu")
    method = training_memory.make_fake(method, mode, device)
    peak = training_memory.fake_step(method, mode, 8, precision, size=SIZE)
    trained = [p for p in method.trainable_module.parameters() if p.requires_grad]
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in trained)
    assert all(p.grad is None or p.grad.device.type == device for p in trained)
    assert sum(p.grad is not None for p in trained) > len(trained) / 2
    if precision is None:  # weights and gradients are float32 in each precision: once is enough
        with mode:
            torch.optim.AdamW(trained, lr=0.1).step()
    return peak


def in_new_interpreter(function):
    """Run a function of this module there: autograd counts devices once, at the first backward pass."""
    code = f"from {__name__} import {function.__name__} as run; run()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def every_method_on_another_device():
    device, failed = stand_in_device(), {}
    for number, name in enumerate(method_names()):
        pair = list(PAIRS.values())[number % len(PAIRS)]
        method = make_method(name, pair, labels=torch.arange(IMAGES) % CLASSES)
        twin = copy.deepcopy(method)
        try:
            peak = fake_step(method, device, precision=None)
            half = fake_step(twin, "cpu", training_memory.PRECISIONS["half"])
            # At this size copies of weights in half precision may weigh as much as what they save (PAT).
            assert 0 < half < 1.01 * peak, (half, peak)
        except Exception as error:
            failed[name] = repr(error)
    assert not failed, failed


def a_tensor_left_on_the_cpu():
    method = make_method("kd", PAIRS["msa", "cnn"])
    left, label_loss = torch.ones(()), method.label_loss
    method.label_loss = lambda *inputs: label_loss(*inputs) * left
    with pytest.raises(Exception, match="non-Fake Tensor|FakeTensorMode"):
        fake_step(method, stand_in_device(), precision=None)


@pytest.mark.slow
def test_every_method_does_a_fake_step_on_another_device_and_in_half_precision():
    """Backward and optimiser too, and no number is read on the way: what a GPU would be waited for."""
    in_new_interpreter(every_method_on_another_device)


def test_a_tensor_that_was_left_on_the_cpu_is_an_error():
    in_new_interpreter(a_tensor_left_on_the_cpu)


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


@pytest.mark.slow
@in_process_of_its_own
def test_fbt_does_a_fake_step_on_every_pair_at_scale_pilot():
    """The paper's own networks at 112 pixels, or at 224 where their layers are bound to it."""
    plan = Flow({"scale": "pilot"}, ROOT / "config").plan
    pairs: dict[tuple[str, str], RunSpec] = {}
    for spec in plan.runs.values():
        if spec.method.name == "fbt" and spec.teacher is not None:
            pairs.setdefault((spec.teacher.architecture, spec.student.architecture), spec)
    sizes = {}
    for pair, spec in pairs.items():
        data = spec.dataset
        both = (spec.student, spec.teacher)
        networks = [staged(network, data.classes, data.image_size) for network in both]
        labels = torch.arange(data.train_images) % data.classes
        families = (spec.student.family, spec.teacher.family)
        context = Context(data.classes, data.train_images, 100, 0.1, data.image_size, *families, labels)
        method = build_method(spec.method, *networks, context).train()
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        method = training_memory.make_fake(method, mode)
        assert training_memory.fake_step(method, mode, 4, None, size=data.image_size) > 0, pair
        trained = [p for p in method.trainable_module.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained), pair
        sizes[pair] = data.image_size
    assert len(sizes) >= 12 and {size for pair, size in sizes.items() if "mixer" in pair[0]} == {224}
    assert sizes["swin_t", "resnet18"] == 112


def staged(network: NetworkSpec, classes: int, size: int) -> StagedModel:
    return stage(build_network(network, classes, size), size)
