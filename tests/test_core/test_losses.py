"""The losses against numbers worked out by hand, their invariances, and their behaviour at the extremes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as functional
from scipy.special import softmax

from fbt_core.losses.contrast import info_nce
from fbt_core.losses.labels import cross_entropy, target_class
from fbt_core.losses.logits import kl_divergence, ofa_loss
from fbt_core.losses.numerics import unit_rows
from fbt_core.methods.cc import kernel_congruence, neighbour_congruence
from fbt_core.methods.crd import noise_contrast
from fbt_core.methods.dist import class_relation, image_relation, pearson_distance
from fbt_core.methods.dkd import other_divergence, target_divergence
from fbt_core.methods.fcfd import feature_loss as fcfd_loss
from fbt_core.methods.fitnet import feature_mse
from fbt_core.methods.reviewkd import hierarchical_context
from fbt_core.methods.rkd import angle_loss, distance_loss
from fbt_core.methods.simkd import feature_loss as simkd_loss

TARGET = torch.tensor([2, 0, 1])
LOGIT_LOSSES = {
    "kl": lambda s, t: kl_divergence(s, t, 2.0),
    "ofa": lambda s, t: ofa_loss(s, t, TARGET[: len(s)], 1.5, 1.0),
    "tckd": lambda s, t: target_divergence(s, t, TARGET[: len(s)], 2.0),
    "nckd": lambda s, t: other_divergence(s, t, TARGET[: len(s)], 2.0),
    "dist_classes": lambda s, t: class_relation(s, t, 1.0),
    "dist_images": lambda s, t: image_relation(s, t, 1.0),
}
FEATURE_LOSSES = {
    "infonce": lambda s, t: info_nce(s, t, 0.07, "symmetric"),
    "infonce_one_way": lambda s, t: info_nce(s, t, 0.07, "one_way"),
    "mse": feature_mse,
    "simkd": simkd_loss,
    "fcfd": fcfd_loss,
    "cc_neighbours": neighbour_congruence,
    "cc_kernel": lambda s, t: kernel_congruence(s, t, 0.4, 2),
    "rkd_distances": distance_loss,
    "rkd_angles": angle_loss,
}
ALL_LOSSES = {**LOGIT_LOSSES, **FEATURE_LOSSES}
ZERO_WHERE_EQUAL = sorted(set(ALL_LOSSES) - {"ofa", "infonce", "infonce_one_way"})
BATCH_ORDER_MATTERS = {"cc_neighbours"}


def draw(seed, rows=3, columns=4, scale=2.0):
    return scale * torch.randn(
        rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


# --- numbers worked out by hand


def test_kl_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_divergence(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)
    assert kl_divergence(2 * student, 2 * teacher, 2.0).item() == pytest.approx(4 * expected, rel=1e-6)


def test_ofa_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    target = torch.tensor([0])
    # gamma 1: the label's class weighs (0.75 + 1) - 1 = 0.75, the other 0.25: cross-entropy with the teacher
    assert ofa_loss(student, teacher, target, 1.0, 1.0).item() == pytest.approx(math.log(2), rel=1e-6)
    weight = 1.75**1.5 - 1 + 0.25**1.5
    assert ofa_loss(student, teacher, target, 1.5, 1.0).item() == pytest.approx(
        weight * math.log(2), rel=1e-6
    )


def test_ofa_with_gamma_one_is_the_teachers_cross_entropy():
    student, teacher = draw(0), draw(1)
    expected = -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(ofa_loss(student, teacher, TARGET, 1.0, 1.0), expected)


def test_ofa_with_more_gamma_lifts_the_label_above_the_others():
    def pull(gamma):
        student = torch.zeros(1, 3, requires_grad=True)
        ofa_loss(student, torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([0]), gamma, 1.0).backward()
        return student.grad[0]

    assert pull(1.0)[0] == pull(1.0)[1]
    assert pull(1.5)[0] < pull(1.5)[1]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_parts_make_up_kd(temperature):
    """KD = TCKD + (1 - p_target of the teacher) NCKD for one image (Zhao et al. 2022, equation 5)."""
    for row in range(3):
        student, teacher, target = draw(0)[row : row + 1], draw(1)[row : row + 1], TARGET[row : row + 1]
        rest = 1 - (teacher / temperature).softmax(1)[0, target]
        parts = target_divergence(student, teacher, target, temperature)
        parts = parts + rest * other_divergence(student, teacher, target, temperature)
        torch.testing.assert_close(parts, kl_divergence(student, teacher, temperature).expand(1))


def test_dkd_by_hand():
    student = torch.zeros(1, 3)
    teacher = torch.tensor([[math.log(6.0), math.log(3.0), 0.0]])  # 0.6, 0.3, 0.1
    target = torch.tensor([0])
    expected_target = 0.6 * math.log(0.6 / (1 / 3)) + 0.4 * math.log(0.4 / (2 / 3))
    expected_others = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert target_divergence(student, teacher, target, 1.0).item() == pytest.approx(expected_target, rel=1e-5)
    assert other_divergence(student, teacher, target, 1.0).item() == pytest.approx(expected_others, rel=1e-5)


def test_pearson_by_hand():
    first = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 0.0, 1.0]])
    second = torch.tensor([[2.0, 4.0, 6.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    # correlations 1, -1 and 0 (a constant row): distances 0, 2, 1
    assert pearson_distance(first, second).item() == pytest.approx(1.0, abs=1e-6)


def test_dist_sees_classes_and_images():
    student, teacher = draw(0), draw(1)
    rows = [
        torch.corrcoef(torch.stack(pair))[0, 1]
        for pair in zip(student.softmax(1), teacher.softmax(1), strict=True)
    ]
    columns = [
        torch.corrcoef(torch.stack(p))[0, 1]
        for p in zip(student.softmax(1).t(), teacher.softmax(1).t(), strict=True)
    ]
    assert class_relation(student, teacher, 1.0).item() == pytest.approx(1 - sum(rows).item() / 3, rel=1e-5)
    assert image_relation(student, teacher, 1.0).item() == pytest.approx(
        1 - sum(columns).item() / 4, rel=1e-5
    )


def test_infonce_by_hand():
    """Two orthogonal pairs at temperature 1: log(1 + exp(-1)) for each image, in both ways."""
    learner, source = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.eye(2)
    expected = math.log(1 + math.exp(-1))
    for direction in ("symmetric", "one_way"):
        assert info_nce(learner, source, 1.0, direction).item() == pytest.approx(expected, rel=1e-6)


def test_infonce_directions_differ_where_similarities_do():
    learner, source = draw(0), draw(1)
    ways = info_nce(learner, source, 0.5, "one_way"), info_nce(source, learner, 0.5, "one_way")
    assert ways[0] != ways[1]
    torch.testing.assert_close(info_nce(learner, source, 0.5, "symmetric"), sum(ways) / 2)


def test_neighbour_congruence_by_hand():
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), torch.zeros(3, 2)
    # neighbours share 1*0 + 0*2 = 0 and 0*1 + 2*1 = 2: mean 1
    assert neighbour_congruence(student, teacher).item() == 1.0


def test_kernel_congruence_approaches_the_gaussian_kernel():
    student, teacher = functional.normalize(draw(0), dim=1), functional.normalize(draw(1), dim=1)
    kernels = [torch.exp(-0.4 * torch.cdist(x, x).square()) for x in (student, teacher)]
    torch.testing.assert_close(kernel_congruence(student, teacher, 0.4, 12), functional.mse_loss(*kernels))
    by_hand = [math.exp(-0.8) * (1 + 0.8 * x @ x.t() + 0.32 * (x @ x.t()) ** 2) for x in (student, teacher)]
    torch.testing.assert_close(kernel_congruence(student, teacher, 0.4, 2), functional.mse_loss(*by_hand))


def test_rkd_distances_by_hand():
    student = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    line = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 3, 2: relative 0.5, 1.5, 1
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert distance_loss(student, 7 * student).item() == pytest.approx(0, abs=1e-6)
    mean = (2 + math.sqrt(2)) / 3
    errors = [1 / mean - 0.5, 1 / mean - 1.5, math.sqrt(2) / mean - 1]
    expected = sum(2 * error**2 / 2 for error in errors) / 9
    assert distance_loss(triangle, line).item() == pytest.approx(expected, rel=1e-5)


def test_rkd_angles_by_hand():
    """A right triangle against a straight line: cosines at every vertex, both sides."""
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    line = torch.tensor([[0.0], [1.0], [3.0]])
    half = math.sqrt(0.5)
    pairs = [(0.0, 1.0), (half, -1.0), (half, 1.0)]  # at vertices 0, 1, 2
    # smooth L1: half of the square below 1, linear above; each vertex counts its angle twice, its sides agree
    each = [(error**2 / 2 if error < 1 else error - 0.5) for error in (abs(a - b) for a, b in pairs)]
    assert angle_loss(triangle, line).item() == pytest.approx(2 * sum(each) / 27, rel=1e-5)


def test_rkd_angles_in_chunks_are_the_same(monkeypatch):
    def measure():
        student = draw(0, rows=6).requires_grad_()
        loss = angle_loss(student, draw(1, rows=6))
        loss.backward()
        return loss.detach(), student.grad

    whole = measure()
    monkeypatch.setattr("fbt_core.methods.rkd.CHUNK", 72)
    torch.testing.assert_close(measure(), whole)


def test_noise_contrast_by_hand():
    """One positive with P = 3 and two negatives with P = 1 and 0.5; noise K/N = 2/4."""
    positive, negatives = torch.log(torch.tensor([3.0])), torch.log(torch.tensor([[1.0, 0.5]]))
    expected = -(math.log(3 / 3.5) + math.log(0.5 / 1.5) + math.log(0.5 / 1.0))
    assert noise_contrast(positive, negatives, 4).item() == pytest.approx(expected, rel=1e-6)


def test_hierarchical_context_by_hand():
    """A 4x4 map against zeros: the map itself weighs 1, its 2x2 averages 1/2, its mean 1/4."""
    student = torch.arange(16.0).view(1, 1, 4, 4)
    whole = student.square().mean()
    halves = functional.avg_pool2d(student, 2).square().mean()
    expected = (whole + halves / 2 + student.mean() ** 2 / 4) / 1.75
    torch.testing.assert_close(hierarchical_context(student, torch.zeros_like(student)), expected)
    single = torch.tensor([[[[3.0]]]])
    assert hierarchical_context(single, torch.zeros_like(single)).item() == 9.0


def test_cross_entropy_takes_classes_and_probabilities():
    logits = draw(0).float()
    expected = -logits.log_softmax(1)[range(3), TARGET].mean()
    torch.testing.assert_close(cross_entropy(logits, TARGET, 0.0), expected)
    soft = 0.7 * functional.one_hot(TARGET, 4) + 0.3 * functional.one_hot(TARGET.flip(0), 4)
    torch.testing.assert_close(
        cross_entropy(logits, soft, 0.1), -(soft * logits.log_softmax(1)).sum(1).mean()
    )
    assert torch.equal(target_class(soft), TARGET)


# --- invariances


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_shift_of_an_images_logits_changes_nothing(name):
    student, teacher, shift = draw(0), draw(1), 10 * torch.arange(3.0).view(3, 1)
    shifted = LOGIT_LOSSES[name](student + shift, teacher - shift)
    torch.testing.assert_close(shifted, LOGIT_LOSSES[name](student, teacher))


@pytest.mark.parametrize("name", sorted(set(ALL_LOSSES) - BATCH_ORDER_MATTERS))
def test_the_order_of_the_batch_changes_nothing(name, monkeypatch):
    student, teacher, order = draw(0), draw(1), torch.tensor([2, 0, 1])
    before = ALL_LOSSES[name](student, teacher)
    monkeypatch.setattr(f"{__name__}.TARGET", TARGET[order])
    torch.testing.assert_close(ALL_LOSSES[name](student[order], teacher[order]), before)


@pytest.mark.parametrize("name", ZERO_WHERE_EQUAL)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(name):
    teacher = draw(0)
    student = teacher.clone().requires_grad_()
    loss = ALL_LOSSES[name](student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-6, rtol=0)


def test_ofa_with_gamma_one_has_nothing_to_teach_an_equal_student():
    student = draw(0).requires_grad_()
    ofa_loss(student, student.detach(), TARGET, 1.0, 1.0).backward()
    torch.testing.assert_close(student.grad, torch.zeros(3, 4, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", sorted(set(ALL_LOSSES) - {"cc_neighbours", "rkd_angles", "rkd_distances"}))
def test_a_loss_falls_along_its_gradient(name):
    student, teacher = draw(0, rows=3).requires_grad_(), draw(1, rows=3)
    before = ALL_LOSSES[name](student, teacher)
    before.backward()
    moved = student.detach() - 1e-3 * student.grad / student.grad.norm()
    assert ALL_LOSSES[name](moved, teacher) < before


@pytest.mark.parametrize("name", ["rkd_distances", "rkd_angles", "infonce", "cc_kernel"])
def test_the_scale_of_features_changes_nothing(name):
    student, teacher = draw(0), draw(1)
    torch.testing.assert_close(
        FEATURE_LOSSES[name](5 * student, teacher / 3), FEATURE_LOSSES[name](student, teacher)
    )


def test_kl_at_temperature_t_is_kl_of_the_scaled_logits_times_t_squared():
    student, teacher = draw(0), draw(1)
    expected = 9 * kl_divergence(student / 3, teacher / 3, 1.0)
    torch.testing.assert_close(kl_divergence(student, teacher, 3.0), expected)


def test_logits_agree_with_scipy():
    student, teacher = draw(0), draw(1)
    p, q = softmax(teacher.numpy(), axis=1), softmax(student.numpy(), axis=1)
    expected = (p * torch.log(torch.tensor(p / q)).numpy()).sum(1).mean()
    assert kl_divergence(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-9)


# --- the extremes

EXTREMES = {
    "opposed": ([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], [[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]]),
    "certain_teacher": ([[0.3, 0.2, -0.1], [0.0, 1.0, 2.0]], [[0.0, 0.0, 1e4], [1e4, 0.0, 0.0]]),
    "certain_and_wrong": ([[0.3, 0.2, -0.1], [0.0, 1.0, 2.0]], [[1e4, 0.0, 0.0], [0.0, 0.0, 1e4]]),
    "untrained_student": ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]]),
    "both_constant": ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]),
    "equal_images": ([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], [[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]]),
    "tiny": ([[1e-20, 0.0, 0.0], [0.0, -1e-20, 0.0]], [[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]]),
    "large": ([[6e4, 6e4, -6e4], [-6e4, 0.0, 1.0]], [[6e4, 0.0, -6e4], [-6e4, 6e4, 1.0]]),
}


@pytest.mark.parametrize("name", ALL_LOSSES)
@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
def test_loss_and_gradient_stay_finite(name, case, precision):
    """A batch of two in each precision; the gradient is looked at in float32."""
    student, teacher = (torch.tensor(rows) for rows in EXTREMES[case])
    student = student.to(precision).float().requires_grad_()
    loss = ALL_LOSSES[name](student.to(precision), teacher.to(precision))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    if precision is torch.float32:
        loss.backward()
        assert torch.isfinite(student.grad).all()


def test_an_untrained_head_gets_no_gradient_from_a_relation_it_cannot_have():
    student = torch.zeros(3, 4, requires_grad=True)
    (class_relation(student, draw(1).float(), 1.0) + image_relation(student, draw(1).float(), 1.0)).backward()
    assert student.grad.abs().max() < 1


def test_a_feature_of_zeros_does_not_explode_infonce():
    learner = torch.zeros(3, 4, requires_grad=True)
    info_nce(learner, draw(1).float(), 1.0, "symmetric").backward()
    assert learner.grad.abs().max() == 0


@pytest.mark.parametrize("length", [0.0, 1e-7, 9e-5, 1.1e-4, 1e-2])
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_infonces_gradient_is_bounded_however_short_a_feature(length, precision):
    """One dead ReLU feature among others, at FBT's lowest temperature; float16 holds up to 65,504."""
    learner = draw(0).float()
    learner[1] *= length / learner[1].norm()
    learner = learner.to(precision).requires_grad_()
    info_nce(learner, draw(1).to(precision), 0.07, "symmetric").backward()
    assert learner.grad.abs().max() < 6e4
    assert length > 1e-4 or learner.grad[1].abs().max() == 0
    assert learner.grad[0].abs().max() > 0


def test_equal_features_do_not_explode_rkd():
    student = torch.ones(3, 4, requires_grad=True)
    teacher = draw(1).float()
    (distance_loss(student, teacher) + angle_loss(student, teacher)).backward()
    assert student.grad.abs().max() < 1


def test_noise_contrast_stays_finite():
    log_scores = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = noise_contrast(log_scores[:, 0], log_scores, 10)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(log_scores.grad).all()


def test_ofa_does_not_overflow_at_float16_logits():
    logits = torch.tensor([[60000.0, -60000.0], [60000.0, -60000.0]], dtype=torch.float16)
    loss = ofa_loss(logits, -logits, torch.tensor([0, 1]), 1.5, 1.0)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_autocast_does_not_reach_into_a_loss(name):
    student, teacher = draw(0), draw(1)
    exact = ALL_LOSSES[name](student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ALL_LOSSES[name](student.float(), teacher.float())
    assert inside.item() == pytest.approx(exact.item(), rel=1e-4)


def test_a_row_of_zeros_stays_zero():
    rows = unit_rows(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert rows.tolist() == [[0.0, 0.0], pytest.approx([0.6, 0.8])]
