"""SimKD: the student's last feature, projected, is read by the teacher's own classifier.

The score is that of student, projector and the teacher's classifier together, as in the paper. The exported
weights are the bare student's: its own classifier was never trained, so they serve as an initial student,
not as a network that classifies. Adapted to any pair: the features compared are those after the teacher's
last normalisation, on the smaller of the two grids, and class tokens are regressed from the student's
pooled feature.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fbt_core.losses.numerics import in_float32
from fbt_core.methods.base import Batch, Method, Terms, Trainable
from fbt_core.methods.modules import common_grid, rectified_features, shrink
from fbt_core.staged import StagedModel
from fbt_core.staged.base import FeatureShape, StagedOutput
from fbt_core.staged.layout import from_map, prefix_of, to_map


@in_float32
def feature_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of what enters the classifier (any shape). Chen et al. 2022."""
    return functional.mse_loss(projected, teacher)


class Projector(nn.Module):
    """Turns the student's last feature into what the teacher's last stage would have given.

    A bottleneck of 1x1, 3x3 and 1x1 convolutions with BatchNorm and ReLU; the last ReLU stays only if the
    teacher's own feature is rectified. Class tokens, if the teacher has them, come from the student's
    pooled feature.
    """

    def __init__(self, student: StagedModel, shape: FeatureShape, reduction: int, rectified: bool) -> None:
        super().__init__()
        self.student_shape = student.shapes[3]
        # The smaller of both grids: an enlarged one would make up positions.
        self.shape = replace(shape, grid=common_grid(self.student_shape.grid, shape.grid))
        inner = max(1, shape.width // reduction)
        # A last ReLU only if the teacher's own feature has one: else its negative part could not be met.
        last = nn.ReLU() if rectified else nn.Identity()
        self.convolutions = nn.Sequential(
            nn.Conv2d(self.student_shape.width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, shape.width, 1, bias=False),
            nn.BatchNorm2d(shape.width),
            last,
        )
        tokens = shape.prefix_tokens
        self.prefix = nn.Linear(student.width, tokens * shape.width) if tokens else None

    def forward(self, feature: Tensor, pooled: Tensor) -> Tensor:
        """The student's stage 4 and pooled feature -> one in the teacher's layout, on the common grid."""
        feature_map = shrink(to_map(feature, self.student_shape), self.shape.grid)
        prefix = None
        if self.prefix is not None:
            prefix = self.prefix(pooled).unflatten(1, (self.shape.prefix_tokens, self.shape.width))
        return from_map(self.convolutions(feature_map), self.shape, prefix)


class ReusedClassifier(nn.Module):
    """Student, projector and the teacher's classifier as one network: images (B, 3, H, W) to logits."""

    def __init__(self, student: StagedModel, projector: Projector, teacher: StagedModel) -> None:
        super().__init__()
        self.student, self.projector, self.teacher = student, projector, teacher

    def forward(self, images: Tensor) -> Tensor:
        output = self.student.features(images)
        return self.teacher.head(self.teacher.norm(self.projector(output.stages[3], output.pooled)))


class SimKD(Method):
    """The features before the teacher's classifier alone; no labels, no logits."""

    unused_parameters = True  # the student's own classifier

    def build_extras(self) -> dict[str, nn.Module]:
        # Looked at once, on the frozen teacher: it says the same in every run.
        rectified = rectified_features(self.teacher)[-1]
        shape = self.teacher.shapes[3]
        return {"projector": Projector(self.student, shape, self.settings.reduction, rectified)}

    def step(self, batch: Batch, teacher: StagedOutput | None) -> dict[str, Any]:
        student = self.student.features(batch.images)
        normed = self.teacher.norm(self.extras["projector"](student.stages[3], student.pooled))
        # No gradient: logits are what is reported; the loss is on the features alone.
        with torch.no_grad():
            logits = self.teacher.head(normed)
        # The teacher's last stage through the same norm: both are compared as the classifier reads them.
        return self.collect(logits, self._compare(normed, self.teacher.norm(teacher.stages[3])))

    def _compare(self, projected: Tensor, teacher: Tensor) -> Terms:
        """The loss on the positions, and on the class tokens if there are any."""
        shape, common = self.teacher.shapes[3], self.extras["projector"].shape
        if teacher.dim() == 2:  # a network that averages before it normalises
            return {"features": self.settings.feature_weight * feature_loss(projected, teacher)}
        target = shrink(to_map(teacher, shape), common.grid)
        # Positions and class tokens apart: one mean over both would weigh tokens by their share.
        terms = {"features": feature_loss(to_map(projected, common), target)}
        if shape.prefix_tokens:
            terms["class_token"] = feature_loss(prefix_of(projected, common), prefix_of(teacher, shape))
        return {name: self.settings.feature_weight * term for name, term in terms.items()}

    def eval_network(self, trainable: Trainable) -> nn.Module:
        return ReusedClassifier(trainable.student, trainable.extras["projector"], self.teacher)


METHOD = SimKD
