"""Knowledge distillation: the student learns the teacher's softened probabilities."""

from __future__ import annotations

from fbt_core.losses.logits import kl_divergence
from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.staged.base import StagedOutput


class KD(Method):
    """Cross-entropy and KL divergence to the teacher's logits."""

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        divergence = kl_divergence(student.logits, teacher.logits, self.settings.temperature)
        return {
            "labels": self.settings.label_weight * self.label_loss(student.logits, batch),
            "logits": self.settings.logit_weight * divergence,
        }


METHOD = KD
