"""LFCC, contrast in a compact space: the low frequencies of all four stages, compared image by image.

After the paper's abstract alone (multi-scale low-pass filters on intermediate features, a compact space,
sample-level contrast); the filters here are averages over cells, the contrast is InfoNCE, and all numbers
are this repository's own. A score under this name is not one of the paper's method, and the title says so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fbt_core.collectives import gather_with_gradient
from fbt_core.losses.contrast import info_nce
from fbt_core.losses.logits import kl_divergence
from fbt_core.methods.base import COMPARES, Batch, Method, Terms
from fbt_core.methods.modules import Grid, Temperature, common_grid, shrink
from fbt_core.staged.base import FeatureShape, StagedOutput
from fbt_core.staged.layout import to_map


class LowPass(nn.Module):
    """The low frequencies of a feature at several scales, as one vector per image."""

    def __init__(self, shape: FeatureShape, largest: Grid, width: int, scales: int) -> None:
        super().__init__()
        self.shape = shape
        # No finer than the coarser of both networks: enlarged positions would not be low frequencies.
        self.grids = [(min(2**i, largest[0]), min(2**i, largest[1])) for i in range(scales)]
        self.compact = nn.Conv2d(shape.width, width, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """A feature in its own layout -> (B, width * positions of all scales); class tokens are dropped.

        Averaging over cells is the low-pass filter: it keeps what varies more slowly than the cells.
        """
        feature_map = to_map(feature, self.shape)
        return torch.cat([self.compact(shrink(feature_map, grid)).flatten(1) for grid in self.grids], dim=1)


class LowFrequencyContrast(Method):
    """Cross-entropy, KD and the contrast of both networks' low frequencies in every stage.

    `scales` low-pass filters average a map of `width` channels to 1x1, 2x2, ... 2^(scales-1) positions.
    """

    needs_whole_batch = COMPARES

    def build_extras(self) -> dict[str, nn.Module]:
        s = self.settings
        extras: dict[str, nn.Module] = {"temperature": Temperature(s)}
        for i, (learner, source) in enumerate(zip(self.student.shapes, self.teacher.shapes, strict=True)):
            largest = common_grid(learner.grid, source.grid)
            extras[f"student{i + 1}"] = LowPass(learner, largest, s.width, s.scales)
            extras[f"teacher{i + 1}"] = LowPass(source, largest, s.width, s.scales)
        return extras

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        s = self.settings
        divergence = kl_divergence(student.logits, teacher.logits, s.logit_temperature)
        terms = {
            "labels": s.label_weight * self.label_loss(student.logits, batch),
            "logits": s.logit_weight * divergence,
        }
        for i in range(4):
            learner = gather_with_gradient(self.extras[f"student{i + 1}"](student.stages[i]))
            source = gather_with_gradient(self.extras[f"teacher{i + 1}"](teacher.stages[i]))
            contrast = info_nce(learner, source, self.extras["temperature"](), s.direction)
            terms[f"stage{i + 1}"] = s.feature_weight * contrast
        return terms


METHOD = LowFrequencyContrast
