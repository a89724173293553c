"""Knowledge distillation: the student learns the teacher's softened probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from fbt_core.losses.logits import kl_divergence
from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.staged.base import StagedOutput

REVISION = 1
TRAITS = {
    "title": "KD",
    "transfers": "logits",
    "levels": 2,
    "losses": ["KL"],
    "generic": True,
    "extra_parameters": False,
    "needs_teacher": True,
    "uses_fusion": False,
    "citation": "G. Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531",
}


@dataclass(frozen=True)
class Parameters:
    """Weights of the two terms and the temperature of the second."""

    label_weight: float
    logit_weight: float
    temperature: float


class KD(Method):
    """Cross-entropy and KL divergence to the teacher's logits."""

    Parameters = Parameters

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        divergence = kl_divergence(student.logits, teacher.logits, self.settings.temperature)
        return {
            "labels": self.settings.label_weight * self.label_loss(student.logits, batch),
            "logits": self.settings.logit_weight * divergence,
        }


METHOD = KD
