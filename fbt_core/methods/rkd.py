"""RKD: the student keeps the distances and the angles that the teacher's features form.

What is compared is what enters the classifier, as in OFA's code: ConvNeXt's after the norm of
its head, the class token of a transformer that has one. `feature: pooled` takes the last stage's average.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fbt_core.collectives import gather_with_gradient
from fbt_core.losses.numerics import in_float32
from fbt_core.methods.base import COMPARES, Batch, Method, Terms
from fbt_core.methods.modules import feature_width, image_feature
from fbt_core.staged.base import StagedOutput

SMALLEST = 1e-12  # squared distances below it count as zero
CHUNK = 2**24  # angles held at once


@in_float32
def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the pairwise distances of both, each divided by its mean positive distance.

    student (B, D_s), teacher (B, D_t). Park et al. 2019, section 3.2.1.
    """
    return functional.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


@in_float32
def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the cosines at which two images are seen from a third, over all (B, B, B) triplets.

    student (B, D_s), teacher (B, D_t). Park et al. 2019, section 3.2.2. Computed for some vertices at a time.
    """
    count = len(student)
    # Some vertices at a time: all (B, B, B) cosines of a batch of 512 would take half a gigabyte.
    step = max(1, CHUNK // count**2)
    chunks = [slice(start, start + step) for start in range(0, count, step)]
    if len(chunks) == 1:
        return _sum_angles(student, teacher, chunks[0]) / count**3
    sums = [
        # Computed again in backward, else all chunks would be held at once after all.
        checkpoint(_sum_angles, student, teacher, chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]
    return torch.stack(sums).sum() / count**3


def _relative_distances(features: Tensor) -> Tensor:
    """Euclidean distances (B, B) over their mean positive value; all zero if all features are equal."""
    features = features - features.mean(dim=0)  # changes no distance, spares digits
    squares = features.square().sum(dim=1)
    # By products, so that no (B, B, D) differences are held.
    squared = squares[:, None] + squares[None, :] - 2 * features @ features.t()
    apart = (squared > SMALLEST) & ~torch.eye(len(features), dtype=torch.bool, device=features.device)
    # Clamped inside the root: the gradient at a distance of 0 is infinite, and where() would pass NaN on.
    distances = torch.where(apart, squared.clamp(min=SMALLEST).sqrt(), 0)
    # The teacher's and the student's widths differ, and with them the size of distances.
    return distances / (distances.sum() / apart.sum().clamp(min=1)).clamp(min=SMALLEST)


def _sum_angles(student: Tensor, teacher: Tensor, vertices: slice) -> Tensor:
    return functional.smooth_l1_loss(
        _cosines(student, vertices), _cosines(teacher, vertices), reduction="sum"
    )


def _cosines(features: Tensor, vertices: slice) -> Tensor:
    """The cosine of the angle at vertex v between images i and j, (V, B, B); 0 if one coincides with v."""
    offsets = features[None, :, :] - features[vertices, None, :]
    # An image has no direction from itself; such angles count as 0 in both networks.
    squared = offsets.square().sum(dim=2, keepdim=True)
    inverse = torch.where(squared > SMALLEST, squared.clamp(min=SMALLEST).rsqrt(), 0)
    directions = offsets * inverse
    return directions @ directions.transpose(1, 2)


class RKD(Method):
    """Cross-entropy and the two relations of the images' features, across all processes."""

    needs_whole_batch = COMPARES

    def build_extras(self) -> dict[str, nn.Module]:
        """None; a network that does not show the feature asked for is refused before the first step."""
        # Asked now and not at the first step, which comes much later.
        for network in (self.student, self.teacher):
            feature_width(network, self.settings.feature)
        return {}

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        s = self.settings
        learner = image_feature(self.student, student, s.feature)
        source = image_feature(self.teacher, teacher, s.feature)
        learner, source = gather_with_gradient(learner), gather_with_gradient(source)
        return {
            "labels": s.label_weight * self.label_loss(student.logits, batch),
            "distances": s.distance_weight * distance_loss(learner, source),
            "angles": s.angle_weight * angle_loss(learner, source),
        }


METHOD = RKD
