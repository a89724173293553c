"""Losses between the logits of two networks that several methods share."""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

from fbt_core.losses.labels import target_class
from fbt_core.losses.numerics import in_float32


@in_float32
def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened probabilities, times T^2, mean over the batch.

    student, teacher (B, C) logits. Hinton et al. 2015, section 2; T^2 keeps the gradient's size as T changes.
    """
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


@in_float32
def ofa_loss(student: Tensor, teacher: Tensor, target: Tensor, gamma: float, temperature: float) -> Tensor:
    """OFA's adaptive target enhancement: the teacher's probabilities with the label's class lifted.

    mean_b sum_c -[(p_t + m)^gamma - m] log p_s with m the one-hot label (argmax of a soft target).
    student, teacher (B, C) logits; target (B,) or (B, C). Hao et al. 2023 (NeurIPS), in the released form.
    """
    log_student = functional.log_softmax(student / temperature, dim=1)
    probability = functional.softmax(teacher / temperature, dim=1)
    mask = functional.one_hot(target_class(target), student.shape[1]).to(probability.dtype)
    weight = (probability + mask) ** gamma - mask
    return -(weight * log_student).sum(dim=1).mean()
