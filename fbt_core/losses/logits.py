"""Losses between the logits of two networks that several methods share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor

from fbt_core.losses.labels import target_class
from fbt_core.losses.numerics import SHORTEST, in_float32

SMALLEST = 1e-7  # added to a standard deviation, as released


@in_float32
def kl_divergence(
    student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None = None
) -> Tensor:
    """KL(teacher || student) of softened probabilities, times T^2, mean over the batch.

    student, teacher (B, C) logits; weight (B,) of the images, all 1 if None. Hinton et al. 2015, section 2;
    T^2 keeps the gradient's size as T changes.
    """
    # Logarithms of both, because a probability that underflows to 0 has none.
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    return mean_divergence(log_student, log_teacher, weight) * temperature**2


def mean_divergence(log_student: Tensor, log_teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """KL(teacher || student) of log-probabilities (B, C), the mean over images with these weights (B,)."""
    if weight is None:
        # batchmean: torch's plain mean would divide by the classes as well.
        return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    of_images = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
    return (weight * of_images).mean()


@in_float32
def standardise(logits: Tensor) -> Tensor:
    """Each image's logits (B, C) with mean 0 and (unbiased) standard deviation 1 over the classes.

    Sun et al. 2024 (LSKD), in the released form. An image whose logits hardly vary gets zeros and no
    gradient, which would be 1e7 for an untrained classifier.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    # By hand: torch's std has an infinite gradient at 0.
    variance = centred.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    # Clamped inside the root, so that the branch that is not taken has a finite gradient as well.
    deviation = variance.clamp(min=SHORTEST**2).sqrt()
    return torch.where(variance > SHORTEST**2, centred / (deviation + SMALLEST), 0)


@torch.no_grad()
@in_float32
def entropy_weight(student: Tensor, teacher: Tensor, temperature: float, bound: str) -> Tensor:
    """The weight (B,) of each image: (H_t + H_t H_s / U) / 2, H the entropy of the softened probabilities.

    student, teacher (B, C) logits. EA-KD (preprint, released code): U is the largest entropy, `log_classes`,
    or the number of classes, as its code has it for KD and DKD on CIFAR-100. No gradient; not normalised.
    """
    classes = student.shape[1]
    # Without the bound the product of both entropies would grow with the number of classes.
    largest = math.log(classes) if bound == "log_classes" else classes
    of_student, of_teacher = _entropy(student / temperature), _entropy(teacher / temperature)
    return (of_teacher + of_teacher * of_student / largest) / 2


def _entropy(logits: Tensor) -> Tensor:
    log_probability = functional.log_softmax(logits, dim=1)
    return -(log_probability.exp() * log_probability).sum(dim=1)


@in_float32
def ofa_loss(student: Tensor, teacher: Tensor, target: Tensor, gamma: float, temperature: float) -> Tensor:
    """OFA's adaptive target enhancement: the teacher's probabilities with the label's class lifted.

    mean_b sum_c -[(p_t + m)^gamma - m] log p_s with m the one-hot label (argmax of a soft target).
    student, teacher (B, C) logits; target (B,) or (B, C). Hao et al. 2023 (NeurIPS), in the released form.
    """
    log_student = functional.log_softmax(student / temperature, dim=1)
    probability = functional.softmax(teacher / temperature, dim=1)
    # The heaviest class of a mixed target: lifting needs one class per image.
    mask = functional.one_hot(target_class(target), student.shape[1]).to(probability.dtype)
    # As released the label's own m is taken off after the power, so gamma 1 is plain cross-entropy to p_t.
    weight = (probability + mask) ** gamma - mask
    return -(weight * log_student).sum(dim=1).mean()
