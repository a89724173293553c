"""RSD: over the batch, a channel of the student's projected feature correlates with its teacher's twin alone.

The feature is what enters the classifier, as released. The released code takes the statistics of each GPU's
own images; here they are those of the whole batch, so that the number of GPUs changes nothing.
"""

from __future__ import annotations

from torch import Tensor, nn

from fbt_core.collectives import gather_with_gradient
from fbt_core.losses.numerics import in_float32
from fbt_core.methods.base import COMPARES, Batch, Method, Terms
from fbt_core.methods.modules import feature_width, image_feature
from fbt_core.staged.base import StagedOutput

SMALLEST = 1e-5  # added to a standard deviation, as released


@in_float32
def redundancy_loss(student: Tensor, teacher: Tensor, kappa: float) -> Tensor:
    """sum_i (R_ii - 1)^2 + kappa sum_{i != j} R_ij^2, R the (D, D) correlation of both networks' channels.

    student, teacher (B, D). A sum over the matrix, not a mean, as released (ICCV 2025, arXiv:2507.21844).
    """
    # Each entry is a mean over the images: channel i of the teacher with channel j of the student.
    correlation = _standardised(teacher).t() @ _standardised(student) / len(student)
    own_channel = correlation.diagonal()
    # By subtraction: a mask of the diagonal would be another (D, D) tensor.
    others = correlation.square().sum() - own_channel.square().sum()
    return (own_channel - 1).square().sum() + kappa * others


def _standardised(features: Tensor) -> Tensor:
    """Each channel over the batch with mean 0 and (biased) standard deviation 1."""
    return (features - features.mean(dim=0)) / (features.std(dim=0, correction=0) + SMALLEST)


def build_projector(width: int, inner: int, target: int) -> nn.Sequential:
    """Linear, BatchNorm, GELU, Linear, without biases, from the student's width to the teacher's."""
    first, second = nn.Linear(width, inner, bias=False), nn.Linear(inner, target, bias=False)
    layers = nn.Sequential(first, nn.BatchNorm1d(inner), nn.GELU(), second)
    for linear in (first, second):
        nn.init.normal_(linear.weight, std=0.02)
    return layers


class RSD(Method):
    """Cross-entropy, and a projected feature that is correlated with the teacher's channel by channel.

    `kappa` weighs what a channel shares with the teacher's other channels, `expansion` is the projector's
    inner width over the student's.
    """

    needs_whole_batch = COMPARES

    def build_extras(self) -> dict[str, nn.Module]:
        s = self.settings
        width, target = feature_width(self.student, s.feature), feature_width(self.teacher, s.feature)
        return {"projector": build_projector(width, s.expansion * width, target)}

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        s = self.settings
        learner = self.extras["projector"](image_feature(self.student, student, s.feature))
        source = image_feature(self.teacher, teacher, s.feature)
        loss = redundancy_loss(gather_with_gradient(learner), gather_with_gradient(source), s.kappa)
        return {
            "labels": s.label_weight * self.label_loss(student.logits, batch),
            "relations": s.relation_weight * loss,
        }


METHOD = RSD
