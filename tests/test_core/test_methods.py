"""What holds for every method in every family direction."""

from __future__ import annotations

import math

import pytest
import torch

from fbt_core.errors import UserError
from fbt_core.methods import build_method, method_facts, method_names
from fbt_core.methods.base import Context
from fbt_core.spec import MethodSpec
from fbt_core.teacher import Teacher
from tests.test_core.methods_kit import (
    CLASSES,
    IMAGES,
    PAIRS,
    SIZE,
    copy_state,
    default_parameters,
    make_batch,
    make_head_speak,
    make_method,
    make_network,
    run_step,
    same_state,
    take_step,
)

DISTILLING = [name for name in method_names() if method_facts(name).needs_teacher]
EVERY_DIRECTION = pytest.mark.parametrize("direction", PAIRS, ids="_to_".join)
EVERY_METHOD = pytest.mark.parametrize("name", method_names())


def check_result(result, batch):
    """The three parts of a result, all finite; the terms sum to the loss."""
    assert result.keys() == {"loss", "output", "terms"}
    assert result["output"].shape == (len(batch.images), CLASSES)
    values = [result["loss"], *result["terms"].values()]
    assert all(value.shape == () and value.dtype == torch.float32 for value in values)
    assert all(torch.isfinite(value) for value in values), result["terms"]
    assert math.isclose(sum(map(float, result["terms"].values())), result["loss"].item(), rel_tol=1e-5)


@EVERY_METHOD
@EVERY_DIRECTION
def test_a_method_trains_a_pair(name, direction):
    method = make_method(name, PAIRS[direction])
    teacher = copy_state(method.teacher) if method.teacher else None
    student = copy_state(method.student)
    with_labels, mixed = make_batch(), make_batch(count=2, soft=True)
    check_result(run_step(method, mixed), mixed)  # two images with soft targets, and their backward pass
    run_step(method, mixed)["loss"].backward()
    gradients = [p.grad for p in method.trainable_module.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    method.zero_grad()
    check_result(take_step(method, with_labels), with_labels)
    assert not same_state(student, copy_state(method.student))
    check_teacher(method, teacher)
    check_resume(method, name, direction)


def check_teacher(method, before):
    """The teacher is in eval mode, without gradient, and no bit of it has changed."""
    if before is None:
        assert method.teacher is None
        return
    assert same_state(before, method.teacher.state_dict())
    assert not any(module.training for module in method.teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in method.teacher.parameters())


def check_resume(method, name, direction):
    """A method built anew that loads the trainable module's state gives the very next loss."""
    state, batch = copy_state(method.trainable_module), make_batch(seed=2)
    torch.manual_seed(11)
    expected = run_step(method, batch)
    twin = make_method(name, PAIRS[direction], seed=0)
    twin.trainable_module.load_state_dict(state)
    torch.manual_seed(11)
    resumed = run_step(twin, batch)
    assert torch.equal(resumed["loss"], expected["loss"])
    assert same_state(copy_state(method.trainable_module), twin.trainable_module.state_dict())


@EVERY_METHOD
def test_only_the_bare_student_is_exported(name):
    method = make_method(name)
    bare = make_network("resnet18").network
    assert method.student.network.state_dict().keys() == bare.state_dict().keys()
    names = {key.split(".")[0] for key in method.trainable_module.state_dict()}
    assert names <= {"student", "extras"}
    assert bool(list(method.extras.parameters())) == method_facts(name).extra_parameters


@EVERY_METHOD
def test_no_parameter_is_held_twice_and_none_is_the_teachers(name):
    method = make_method(name, PAIRS["mlp", "msa"])
    named = list(method.trainable_module.named_parameters(remove_duplicate=False))
    trainable = {id(parameter) for _, parameter in named}
    teacher = {id(p) for p in method.teacher.parameters()} if method.teacher else set()
    assert len(trainable) == len(named)
    assert not trainable & teacher


@EVERY_METHOD
def test_the_loss_is_float32_under_autocast(name):
    method, batch = make_method(name, ("deit_t", "resnet18")), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = run_step(method, batch)
    check_result(result, batch)
    result["loss"].backward()


@EVERY_METHOD
@pytest.mark.parametrize("pair", [("swin_t", "resnet18"), ("convnext_t", "deit_t")], ids="_to_".join)
def test_huge_logits_of_two_images_stay_finite(name, pair):
    """Classifiers 10,000 times too large: teacher and student are certain, and of different classes."""
    method = make_method(name, pair)
    for network, scale in ((method.student, 1e4), (method.teacher, -1e4)):
        make_head_speak(network, scale) if network is not None else None
    batch = make_batch(2)
    assert method.student.features(batch.images).logits.abs().max() > 1e3
    result = run_step(method, batch)
    check_result(result, batch)
    result["loss"].backward()
    gradients = [p.grad for p in method.trainable_module.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@EVERY_METHOD
def test_the_evaluated_network_and_its_average_give_logits(name):
    method = make_method(name, ("deit_t", "resnet18"))
    method.setup_ema(decay=0.9)
    take_step(method, make_batch())
    method.update_ema(step=1)
    for ema in (False, True):
        network = method.get_eval_model(ema=ema).eval()
        assert network(make_batch(3).images).shape == (3, CLASSES)
    assert make_method(name).get_eval_model(ema=True) is None


@EVERY_METHOD
def test_the_teachers_pass_and_the_loss_do_not_change_the_images(name):
    method, batch = make_method(name), make_batch()
    before = batch.images.clone(), batch.target.clone(), batch.indices.clone()
    run_step(method, batch)
    assert all(map(torch.equal, before, (batch.images, batch.target, batch.indices)))


@pytest.mark.parametrize("name", DISTILLING)
def test_a_missing_teacher_is_told(name):
    with pytest.raises(UserError, match=f"method '{name}' needs a teacher"):
        build_without_teacher(name)


def test_scratch_needs_no_teacher():
    assert build_without_teacher("scratch").teacher is None


def build_without_teacher(name):
    context = Context(CLASSES, IMAGES, 3, 0.1, SIZE, "cnn", None)
    spec = MethodSpec(name=name, parameters=default_parameters(name), revision=1)
    return build_method(spec, make_network("resnet18"), None, context)


def test_the_teacher_sees_its_own_normalisation():
    network, raw = make_network("swin_t"), torch.rand(2, 3, SIZE, SIZE)
    batches, other = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.1, 0.2, 0.3), (0.5, 0.5, 0.25))

    def normalise(mean, std):
        return (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    torch.testing.assert_close(
        Teacher(network, batches, other).normalise(normalise(*batches)), normalise(*other)
    )
    assert Teacher(network, batches, batches).normalise(raw) is raw


def test_label_smoothing_is_for_hard_targets_only():
    method, batch = make_method("scratch"), make_batch()
    logits = torch.randn(4, CLASSES)
    one_hot = torch.nn.functional.one_hot(batch.target, CLASSES).float()
    smoothed = 0.9 * one_hot + 0.1 / CLASSES
    hard = method.label_loss(logits, batch)
    batch.target = smoothed
    torch.testing.assert_close(method.label_loss(logits, batch), hard)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)])
def test_a_ramp_rises_to_one(epoch, expected):
    method = make_method("scratch")
    method.start_epoch(epoch)
    assert method.ramp(4) == expected
    assert method.ramp(0) == 1.0
