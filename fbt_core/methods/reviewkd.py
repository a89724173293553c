"""ReviewKD: the student's early stages learn from the teacher's, its later stages reviewed on the way.

Made for CNN pairs; adapted to any pair: every layout becomes a map (class tokens dropped), and a level is
compared on the smaller of the two grids. As released, a stage that ends in a ReLU is compared before it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fbt_core.losses.numerics import in_float32
from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.methods.modules import common_grid, shrink
from fbt_core.staged.base import FeatureShape, StagedOutput
from fbt_core.staged.layout import to_map

PYRAMID = (4, 2, 1)
LEVELS = ("stage1", "stage2", "stage3", "stage4", "pooled")


@in_float32
def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """MSE of two maps and of their averages at 4x4, 2x2 and 1x1, each level weighing half of the one before.

    student, teacher (B, C, H, W); levels not smaller than the map are left out; divided by the weights' sum.
    Chen et al. 2021.
    """
    # A level as large as the map is the map itself, which counts already.
    sides = [side for side in PYRAMID if side < min(student.shape[2:])]
    losses = [functional.mse_loss(student, teacher)]
    losses += [functional.mse_loss(_average(student, side), _average(teacher, side)) for side in sides]
    weights = [0.5**i for i in range(len(losses))]
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def _average(feature_map: Tensor, side: int) -> Tensor:
    return shrink(feature_map, (side, side))


class AttentionFusion(nn.Module):
    """ABF: a student's map meets what later levels passed down, weighed position by position."""

    def __init__(self, width_in: int, width: int, width_out: int, is_last: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attention = None
        # The last level has nothing passed down, so no attention to weigh it by.
        if not is_last:
            self.attention = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())
        self.expand = nn.Sequential(
            nn.Conv2d(width, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out)
        )
        for convolution in (self.reduce[0], self.expand[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, feature_map: Tensor, passed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map at the teacher's width, and the fused map (B, width, H, W) for the level before."""
        fused = self.reduce(feature_map)
        if self.attention is not None and passed is not None:
            # nearest: as released; each position of the later level is repeated.
            passed = functional.interpolate(passed, fused.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([fused, passed], dim=1))
            fused = fused * weights[:, :1] + passed * weights[:, 1:]
        return self.expand(fused), fused


class ReviewKD(Method):
    """Cross-entropy and the review of five levels: four stages and the pooled feature.

    `width` of the fused features; the review's weight rises linearly over `ramp_epochs`, from
    `ramp_start` / `ramp_epochs` in the first epoch.
    """

    def build_extras(self) -> dict[str, nn.Module]:
        # A tensor: torch.compile would compile anew for each value of a Python number.
        self.register_buffer("review_weight", torch.zeros(()), persistent=False)
        self.start_epoch(0)
        pairs = zip(LEVELS, self._widths(self.student), self._widths(self.teacher), strict=True)
        width = self.settings.width
        # Both networks: the distillation loss compares what both were before their ReLU.
        if self.settings.features == "before_relu":
            self.student.keep_preactivations()
            self.teacher.keep_preactivations()
        return {
            name: AttentionFusion(student, width, teacher, name == LEVELS[-1])
            for name, student, teacher in pairs
        }

    def start_epoch(self, epoch: int) -> None:
        """The review's weight in this epoch."""
        super().start_epoch(epoch)
        ramp = self.ramp(self.settings.ramp_epochs, self.settings.ramp_start)
        self.review_weight.fill_(self.settings.review_weight * ramp)

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        terms = {"labels": self.settings.label_weight * self.label_loss(student.logits, batch)}
        # All levels first: each one needs what the later ones passed down.
        reviewed = self._review(self._maps(student, self.student.shapes))
        for name, feature_map in self._maps(teacher, self.teacher.shapes).items():
            grid = common_grid(reviewed[name].shape[2:], feature_map.shape[2:])
            learner, source = shrink(reviewed[name], grid), shrink(feature_map, grid)
            terms[name] = self.review_weight * hierarchical_context(learner, source)
        return terms

    def _widths(self, staged: nn.Module) -> list[int]:
        return [*(shape.width for shape in staged.shapes), staged.width]

    def _maps(self, output: StagedOutput, shapes: tuple[FeatureShape, ...]) -> dict[str, Tensor]:
        """The five levels as maps; the pooled feature is a map of one position."""
        features = output.stages
        if self.settings.features == "before_relu":
            features = output.preactivations
        maps = [to_map(feature, shape) for feature, shape in zip(features, shapes, strict=True)]
        return dict(zip(LEVELS, [*maps, output.pooled[:, :, None, None]], strict=True))

    def _review(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """The student's levels, last to first, each fused with what the later ones passed down."""
        # From the last level to the first, as later levels guide earlier ones.
        passed, reviewed = None, {}
        for name in reversed(LEVELS):
            reviewed[name], passed = self.extras[name](maps[name], passed)
        return reviewed


METHOD = ReviewKD
