"""Knowledge distillation: the student learns the teacher's softened probabilities."""

from __future__ import annotations

from fbt_core.losses.logits import kl_divergence
from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.methods.modules import logits_to_compare
from fbt_core.staged.base import StagedOutput


class KD(Method):
    """Cross-entropy and KL divergence to the teacher's logits.

    `standardise` (LSKD) compares shapes of logits alone, `image_weight: entropy` (EA-KD) weighs the images.
    """

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        learner, source, weight = logits_to_compare(self.settings, student.logits, teacher.logits)
        divergence = kl_divergence(learner, source, self.settings.temperature, weight)
        return {
            "labels": self.settings.label_weight * self.label_loss(student.logits, batch),
            "logits": self.settings.logit_weight * divergence,
        }


METHOD = KD
