"""DKD: KD taken apart into the target class (TCKD) and the other classes among themselves (NCKD).

For one image KD = TCKD + (1 - p_target) NCKD with the teacher's p_target; DKD = alpha TCKD + beta NCKD.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from fbt_core.losses.labels import target_class
from fbt_core.losses.logits import mean_divergence
from fbt_core.losses.numerics import in_float32
from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.methods.modules import logits_to_compare
from fbt_core.staged.base import StagedOutput


@in_float32
def target_divergence(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float, weight: Tensor | None = None
) -> Tensor:
    """TCKD: KL between (p_target, 1 - p_target) of teacher and student, times T^2, mean over the batch.

    student, teacher (B, C) logits; target (B,) or (B, C); weight (B,) of the images. Zhao et al. 2022,
    section 3.1.
    """
    # One class per image: a mixed target has no single rest.
    target = target_class(target)
    binary_student = _target_against_rest(student / temperature, target)
    binary_teacher = _target_against_rest(teacher / temperature, target)
    return mean_divergence(binary_student, binary_teacher, weight) * temperature**2


@in_float32
def other_divergence(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float, weight: Tensor | None = None
) -> Tensor:
    """NCKD: KL between the probabilities of the non-target classes alone, times T^2, mean over the batch.

    student, teacher (B, C) logits; target (B,) or (B, C); weight (B,) of the images. Zhao et al. 2022,
    section 3.1.
    """
    target = target_class(target)
    # Taken out before the softmax, so that the probabilities of the others sum to 1.
    others_student = functional.log_softmax(_without_target(student, target) / temperature, dim=1)
    others_teacher = functional.log_softmax(_without_target(teacher, target) / temperature, dim=1)
    return mean_divergence(others_student, others_teacher, weight) * temperature**2


def _target_against_rest(logits: Tensor, target: Tensor) -> Tensor:
    """log p_target and log(1 - p_target), (B, 2); the second from the other classes, finite if p = 1."""
    log_target = logits.gather(1, target[:, None])
    # log(1 - p) from the others' sum: 1 - p itself is 0 in float32 long before p is 1.
    log_rest = _without_target(logits, target).logsumexp(dim=1, keepdim=True)
    return functional.log_softmax(torch.cat([log_target, log_rest], dim=1), dim=1)


def _without_target(logits: Tensor, target: Tensor) -> Tensor:
    """The logits of the C - 1 other classes, (B, C - 1)."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    # Columns from the target's on move by one, so none but the target's is left out.
    return logits.gather(1, columns + (columns >= target[:, None]))


class DKD(Method):
    """Cross-entropy, and the two parts of KD with weights of their own: `alpha` TCKD's, `beta` NCKD's.

    `standardise` (LSKD) compares shapes of logits alone, `image_weight: entropy` (EA-KD) weighs the images.
    """

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        s = self.settings
        learner, source, weight = logits_to_compare(s, student.logits, teacher.logits)
        return {
            "labels": s.label_weight * self.label_loss(student.logits, batch),
            "target": s.alpha * target_divergence(learner, source, batch.target, s.temperature, weight),
            "others": s.beta * other_divergence(learner, source, batch.target, s.temperature, weight),
        }


METHOD = DKD
