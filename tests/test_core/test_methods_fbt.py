"""FBT: which terms there are, where their gradients go, and the rows of the ablation and of Table 3."""

from __future__ import annotations

import itertools

import pytest
import torch

from fbt_core.losses.contrast import info_nce
from fbt_core.losses.logits import kl_divergence, ofa_loss
from fbt_core.methods.parameters import ParameterError
from tests.test_core.methods_kit import (
    copy_state,
    make_batch,
    make_head_speak,
    make_method,
    observe,
    run_step,
    same_state,
    take_step,
)

TEACHER_HEAD, STUDENT_HEAD = ("swin_t", "resnet18"), ("convnext_t", "deit_t")
BOTH_WAYS = pytest.mark.parametrize("pair", [TEACHER_HEAD, STUDENT_HEAD], ids="_to_".join)
PAIRS = ("teacher_to_student", "teacher_to_fused", "fused_to_student")
ROWS = {
    "full": {},
    "without_msa_and_stage4": {"block": "none", "stage4": "none"},
    "without_stage4": {"stage4": "none"},
    "without_teacher_to_fused": {"teacher_to_fused": False},
    "without_infonce": {"feature_loss": "none"},
    "without_ofa": {"logit_loss": "none"},
    "table3_b": {"logit_loss": "kl", "feature_loss": "none", "teacher_to_student": False},
    "table3_c": {"logit_loss": "kl", "feature_loss": "none"},
    "nothing": dict.fromkeys(PAIRS, False),
}


def make_fbt(pair, **changes):
    method = make_method("fbt", pair, **changes)
    for network in (method.teacher, method.student):
        make_head_speak(network)
    return method


def expected_terms(changes, trainable_head):
    """The names of the terms a setting should have."""
    on = [pair for pair in PAIRS if changes.get(pair, True)]
    kinds = [kind for kind in ("logit", "feature") if changes.get(f"{kind}_loss") != "none"]
    names = {"labels"} | {f"{pair}_{kind}s" for pair, kind in itertools.product(on, kinds)}
    uses_fused = {"teacher_to_fused", "fused_to_student"} & set(on)
    return names | ({"fused_labels"} if trainable_head and uses_fused else set())


@BOTH_WAYS
@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_exactly_its_terms_and_trains(pair, row):
    method, student = make_fbt(pair, **ROWS[row]), None
    student = copy_state(method.student)
    trainable_head = pair == STUDENT_HEAD or ROWS[row].get("stage4") == "none"
    result = take_step(method, make_batch())
    assert result["terms"].keys() == expected_terms(ROWS[row], trainable_head)
    assert not same_state(student, copy_state(method.student))


def gradients_of(method, prefix):
    """Which of the trainable parameters the terms whose names start with `prefix` reach."""
    batch = make_batch()
    student, teacher = method.student.features(batch.images), observe(method, batch)
    terms = method.terms(student, teacher, batch)
    sum(term for name, term in terms.items() if name.startswith(prefix)).backward()
    return {n for n, p in method.trainable_module.named_parameters() if p.grad is not None and p.grad.any()}


def test_teaching_the_fused_model_reaches_the_students_early_stages_through_the_frozen_teacher():
    method = make_fbt(TEACHER_HEAD)
    reached = gradients_of(method, "teacher_to_fused")
    parts = {part: set(method.student.stage_parameters(part)) for part in (0, 1, 2, 3, "head")}
    named = dict(method.trainable_module.named_parameters())
    for part in (0, 1, 2):
        assert parts[part] & {named[n] for n in reached}
    assert not (parts[3] | parts["head"]) & {named[n] for n in reached}
    assert any(n.startswith("extras.fused.l2g") for n in reached)
    assert any(n.startswith("extras.temperature_teacher_to_fused") for n in reached)


def test_with_a_cnn_teacher_it_reaches_the_students_last_stage_and_head_but_no_early_one():
    method = make_fbt(("convnext_t", "swin_p"))
    reached = gradients_of(method, "teacher_to_fused")
    named = dict(method.trainable_module.named_parameters())
    reached_tensors = {named[n] for n in reached}
    for part in (0, 1, 2):
        assert not set(method.student.stage_parameters(part)) & reached_tensors
    assert set(method.student.stage_parameters(3)) & reached_tensors
    assert set(method.student.stage_parameters("head")) & reached_tensors
    assert any(n.startswith("extras.fused.l2g") for n in reached)


@pytest.mark.parametrize("class_token", ["gradient", "detached"])
def test_with_a_cnn_teacher_only_a_class_token_leads_to_the_students_early_stages(class_token):
    method = make_fbt(STUDENT_HEAD, class_token=class_token)
    reached = gradients_of(method, "teacher_to_fused")
    early = {id(p) for part in (0, 1, 2) for p in method.student.stage_parameters(part)}
    named = dict(method.trainable_module.named_parameters())
    assert any(id(named[name]) in early for name in reached) == (class_token == "gradient")


@pytest.mark.parametrize("pair", [("swin_t", "resmlp_s12"), ("mixer_b16", "deit_t")], ids="_to_".join)
@pytest.mark.parametrize("direction", ["teacher_head", "student_head"])
def test_msa_and_mlp_together_go_the_way_that_is_set(pair, direction):
    method = make_fbt(pair, msa_mlp_direction=direction)
    assert method.extras["fused"].direction == direction
    result = take_step(method, make_batch())
    assert result["terms"].keys() == expected_terms({}, direction == "student_head")
    for other, way in ((TEACHER_HEAD, "teacher_head"), (STUDENT_HEAD, "student_head")):
        assert make_fbt(other, msa_mlp_direction=direction).extras["fused"].direction == way


@BOTH_WAYS
def test_the_fused_model_teaches_without_learning(pair):
    reached = gradients_of(make_fbt(pair), "fused_to_student")
    assert not any(n.startswith("extras.fused") for n in reached)
    learning = gradients_of(make_fbt(pair, detach_fused=False), "fused_to_student")
    assert any(n.startswith("extras.fused") for n in learning)


def test_without_teacher_to_fused_nobody_teaches_l2g():
    """Why the paper's row falls to 25.57: the fused model stays as random as it began."""
    method = make_fbt(TEACHER_HEAD, teacher_to_fused=False)
    before = copy_state(method.extras["fused"])
    take_step(method, make_batch())
    assert same_state(before, copy_state(method.extras["fused"]))


def knowledge_of(method, batch):
    student, teacher = method.student.features(batch.images), observe(method, batch)
    return student, teacher, method.extras["fused"](student, teacher)


@BOTH_WAYS
@pytest.mark.parametrize("loss", ["ofa", "kl"])
def test_the_logit_terms_are_the_three_of_the_paper(pair, loss):
    method, batch = make_fbt(pair, logit_loss=loss, gamma=1.5, logit_weight=0.5), make_batch()
    student, teacher, (_, fused) = knowledge_of(method.eval(), batch)
    terms = method.terms(student, teacher, batch)

    def compare(learner, source):
        if loss == "kl":
            return 0.5 * kl_divergence(learner, source, 1.0)
        return 0.5 * ofa_loss(learner, source, batch.target, 1.5, 1.0)

    torch.testing.assert_close(terms["teacher_to_student_logits"], compare(student.logits, teacher.logits))
    torch.testing.assert_close(terms["teacher_to_fused_logits"], compare(fused, teacher.logits))
    torch.testing.assert_close(terms["fused_to_student_logits"], compare(student.logits, fused))


def test_the_feature_terms_project_the_learner_to_the_source():
    method, batch = make_fbt(TEACHER_HEAD, feature_weight=2.0), make_batch()
    student, teacher, (fused, _) = knowledge_of(method.eval(), batch)
    terms, extras = method.terms(student, teacher, batch), method.extras
    projected = extras["projection_teacher_to_student"](student.pooled)
    assert projected.shape[1] == method.teacher.width
    expected = 2 * info_nce(projected, teacher.pooled, 0.07, "symmetric")
    torch.testing.assert_close(terms["teacher_to_student_features"], expected)
    # the fused model ends in the teacher's stage 4: widths agree, nothing is projected
    assert "projection_teacher_to_fused" not in extras
    expected = 2 * info_nce(fused, teacher.pooled, 0.07, "symmetric")
    torch.testing.assert_close(terms["teacher_to_fused_features"], expected)
    assert "projection_teacher_to_fused" in make_fbt(TEACHER_HEAD, projection="always").extras


def test_each_pair_has_its_own_temperature():
    method = make_fbt(TEACHER_HEAD)
    names = {f"temperature_{pair}" for pair in PAIRS}
    assert names <= set(method.extras)
    assert {round(method.extras[name]().item(), 6) for name in names} == {0.07}
    take_step(method, make_batch())
    assert len({method.extras[name]().item() for name in names}) == 3


def test_a_temperature_stays_in_its_bounds_and_can_come_back():
    method = make_fbt(TEACHER_HEAD)
    temperature = method.extras["temperature_teacher_to_student"]
    for pushed, expected in ((-9.0, 0.01), (3.0, 1.0)):
        temperature.logarithm.data.fill_(pushed)
        assert temperature().item() == pytest.approx(expected)
        temperature().backward()
        assert temperature.logarithm.grad != 0
    fixed = make_fbt(TEACHER_HEAD, learnable_temperature=False).extras["temperature_teacher_to_student"]
    assert not fixed.logarithm.requires_grad


def test_a_temperature_out_of_its_bounds_is_reported():
    with pytest.raises(ParameterError, match="temperature_min, 0.1, is above temperature_initial, 0.07"):
        make_fbt(TEACHER_HEAD, temperature_min=0.1)


def test_nothing_is_built_for_what_is_off():
    assert not list(make_fbt(TEACHER_HEAD, **ROWS["nothing"]).extras.parameters())
    extras = make_fbt(TEACHER_HEAD, teacher_to_fused=False, fused_to_student=False).extras
    assert set(extras) == {"temperature_teacher_to_student", "projection_teacher_to_student"}


@pytest.mark.parametrize("block", ["swin", "swinv2", "vit", "none"])
@pytest.mark.parametrize("pair", [("vit_s", "resnet18"), ("convnext_t", "swin_p"), ("mixer_b16", "deit_t")])
def test_every_block_trains(block, pair):
    result = take_step(make_fbt(pair, block=block), make_batch(2))
    assert torch.isfinite(result["loss"])


def test_the_students_own_pass_alone_moves_its_batch_statistics():
    """A student's stage 4 runs twice where it ends the fused model; the second pass leaves no trace."""
    claimed = ("cnn", "msa")  # so that a student with BatchNorm ends the fused model
    method, alone = (
        make_method(name, ("resnet50", "resnet18"), families=claimed) for name in ("fbt", "scratch")
    )
    assert method.extras["fused"].direction == "student_head"
    before = copy_state(alone.student)
    run_step(method, make_batch())
    run_step(alone, make_batch())
    statistics = [dict(m.student.named_buffers()) for m in (method, alone)]
    assert all(torch.equal(statistics[0][name], statistics[1][name]) for name in statistics[1])
    assert any(not torch.equal(before[name], moved) for name, moved in statistics[1].items())


@pytest.mark.parametrize(
    "pair", [("swin_t", "resnet18"), ("resnet50", "deit_t"), ("mixer_b16", "resmlp_s12")]
)
@pytest.mark.parametrize(
    ("changes", "searches"),
    [
        ({}, False),
        ({"fused_to_student": False}, False),
        ({"teacher_to_fused": False, "fused_to_student": False}, False),
        ({"teacher_to_fused": False}, True),
        ({"logit_loss": "none"}, True),
    ],
)
def test_ddp_searches_for_unused_parameters_only_if_a_part_is_switched_off(pair, changes, searches):
    method = make_method("fbt", pair, **changes)
    assert method.unused_parameters == searches
    run_step(method, make_batch())["loss"].backward()
    named = method.trainable_module.named_parameters()
    unused = [name for name, p in named if p.requires_grad and p.grad is None]
    assert searches or not unused
