"""DIST: the student keeps the teacher's correlations between classes and between images."""

from __future__ import annotations

import torch
from torch import Tensor

from fbt_core.collectives import gather_with_gradient
from fbt_core.losses.numerics import in_float32
from fbt_core.methods.base import COMPARES, Batch, Method, Terms
from fbt_core.staged.base import StagedOutput

SMALLEST = 1e-8  # as released
ROUNDING = 1e-6  # a row that varies less, relative to its size, is constant


@in_float32
def pearson_distance(first: Tensor, second: Tensor) -> Tensor:
    """1 - the Pearson correlation of each row pair, mean over rows; a constant row correlates with nothing.

    first, second (N, M). Huang et al. 2022, section 3.
    """
    # Centred, so that the cosine is Pearson's correlation.
    centred = [rows - rows.mean(dim=1, keepdim=True) for rows in (first, second)]
    norms = [rows.norm(dim=1) for rows in centred]
    correlation = (centred[0] * centred[1]).sum(dim=1) / (norms[0] * norms[1] + SMALLEST)
    # An untrained head gives equal probabilities: without this its gradient would be 1 / SMALLEST.
    varies = (norms[0] > ROUNDING * first.norm(dim=1)) & (norms[1] > ROUNDING * second.norm(dim=1))
    return 1 - torch.where(varies, correlation, 0).mean()


@in_float32
def class_relation(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Inter-class relation: correlation over the classes of one image, times tau^2. (B, C) logits."""
    # tau^2 keeps the gradient's size as tau changes, as in KD.
    return pearson_distance((student / tau).softmax(1), (teacher / tau).softmax(1)) * tau**2


@in_float32
def image_relation(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Intra-class relation: correlation over the images for one class, times tau^2. (B, C) logits."""
    # Transposed: a row is a class over the images of the batch.
    return pearson_distance((student / tau).softmax(1).t(), (teacher / tau).softmax(1).t()) * tau**2


class DIST(Method):
    """Cross-entropy and the two relations; images are related across all processes.

    `beta` weighs the relation between classes, `gamma` that between images; `tau` softens both.
    """

    needs_whole_batch = COMPARES

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        s = self.settings
        # Whole batch: a class over a part of the images would correlate otherwise.
        learner, source = gather_with_gradient(student.logits), gather_with_gradient(teacher.logits)
        return {
            "labels": s.label_weight * self.label_loss(student.logits, batch),
            "classes": s.beta * class_relation(learner, source, s.tau),
            "images": s.gamma * image_relation(learner, source, s.tau),
        }


METHOD = DIST
