"""CC, correlation congruence: the student's images relate to each other as the teacher's do.

What is embedded and compared is what enters the classifier, as in OFA's code: ConvNeXt's after the norm of
its head, the class token of a transformer that has one. `feature: pooled` takes the last stage's average.
"""

from __future__ import annotations

import math

import torch.nn.functional as functional
from torch import Tensor, nn

from fbt_core.collectives import gather_with_gradient
from fbt_core.losses.numerics import in_float32, unit_rows
from fbt_core.methods.base import COMPARES, Batch, Method, Terms
from fbt_core.methods.modules import feature_width, image_feature
from fbt_core.staged.base import StagedOutput


@in_float32
def neighbour_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over b of sum_d |s - t|_(b,d) |s - t|_(b+1,d): differences that neighbours in the batch share.

    student, teacher (B, D), B >= 2. The form that CRD's and OFA's repositories use in place of the kernel;
    it depends on the order of the batch.
    """
    # Signs are dropped first, as released: what matters is where both are off, not which way.
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum(dim=1).mean()


@in_float32
def kernel_congruence(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    """Mean squared difference of the two Gaussian kernel matrices (Taylor series up to `order`).

    student, teacher (B, D), L2-normalised here; Peng et al. 2019, section 3.
    """
    return functional.mse_loss(
        _gaussian_kernel(student, gamma, order), _gaussian_kernel(teacher, gamma, order)
    )


def _gaussian_kernel(features: Tensor, gamma: float, order: int) -> Tensor:
    """exp(-gamma |x - y|^2) of unit vectors = exp(-2 gamma) sum_p (2 gamma)^p / p! (x . y)^p, (B, B)."""
    # |x - y|^2 = 2 - 2 x.y for unit vectors, so the kernel needs only the cosines.
    cosine = unit_rows(features) @ unit_rows(features).t()
    series = sum((2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))
    return math.exp(-2 * gamma) * series


class CC(Method):
    """Cross-entropy and the congruence of the embedded final features of both networks.

    `correlation`: between neighbours in the batch, as CRD's and OFA's codes have it, or the paper's kernel;
    `kernel_gamma` and `kernel_order` (of its Taylor series) act with the kernel only.
    """

    needs_whole_batch = COMPARES

    def build_extras(self) -> dict[str, nn.Module]:
        feature, width = self.settings.feature, self.settings.width
        return {
            "student": nn.Linear(feature_width(self.student, feature), width),
            "teacher": nn.Linear(feature_width(self.teacher, feature), width),
        }

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        s = self.settings
        learner = self.extras["student"](image_feature(self.student, student, s.feature))
        source = self.extras["teacher"](image_feature(self.teacher, teacher, s.feature))
        # Whole batch: neighbours and kernels of a part would be other pairs.
        learner, source = gather_with_gradient(learner), gather_with_gradient(source)
        if s.correlation == "neighbours":
            congruence = neighbour_congruence(learner, source)
        else:
            congruence = kernel_congruence(learner, source, s.kernel_gamma, s.kernel_order)
        return {
            "labels": s.label_weight * self.label_loss(student.logits, batch),
            "relations": s.relation_weight * congruence,
        }


METHOD = CC
