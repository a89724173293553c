"""SRD: the logarithm of a summed power of the difference between projected and teacher's feature.

The ImageNet form of the released code; its form for DeiT students is another formula and cannot run. The
released statistics are each GPU's own; here they are those of the whole batch.
"""

from __future__ import annotations

from torch import Tensor, nn

from fbt_core.collectives import gather_with_gradient
from fbt_core.losses.logits import kl_divergence
from fbt_core.losses.numerics import in_float32
from fbt_core.methods.base import COMPARES, Batch, Method, Terms
from fbt_core.methods.modules import feature_width, image_feature
from fbt_core.staged.base import StagedOutput

EPSILON = 1e-4  # added to a variance, as released
SMALLEST = 1e-12  # of the sum: equal features would have the logarithm of 0


@in_float32
def log_sum_loss(learner: Tensor, source: Tensor, power: float) -> Tensor:
    """log of the sum over images and channels of |difference|^power of the normalised features (B, D).

    Each channel is normalised by the batch, without scale and shift; the value may be negative. Miles and
    Mikolajczyk 2024 (AAAI), in the released form.
    """
    difference = _normalised(learner) - _normalised(source)
    # Clamped: equal features have the logarithm of 0.
    return difference.abs().pow(power).sum().clamp(min=SMALLEST).log()


def _normalised(features: Tensor) -> Tensor:
    variance = features.var(dim=0, correction=0)
    return (features - features.mean(dim=0)) / (variance + EPSILON).sqrt()


class SRD(Method):
    """Cross-entropy, KL, and a linearly projected feature that comes near the teacher's."""

    needs_whole_batch = COMPARES

    def build_extras(self) -> dict[str, nn.Module]:
        feature = self.settings.feature
        student, teacher = feature_width(self.student, feature), feature_width(self.teacher, feature)
        return {"projector": nn.Linear(student, teacher)}

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        s = self.settings
        learner = self.extras["projector"](image_feature(self.student, student, s.feature))
        source = image_feature(self.teacher, teacher, s.feature)
        loss = log_sum_loss(gather_with_gradient(learner), gather_with_gradient(source), s.power)
        return {
            "labels": s.label_weight * self.label_loss(student.logits, batch),
            "logits": s.logit_weight * kl_divergence(student.logits, teacher.logits, s.temperature),
            "features": s.feature_weight * loss,
        }


METHOD = SRD
