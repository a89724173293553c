"""The score of one network on the test split: top-1, top-5, loss and the class of every image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fbt_core import collectives
from fbt_core.errors import NonFiniteLoss
from fbt_core.spec import RunSpec


class Score:
    """Counts over the test images, batch by batch; every image counts once over all processes."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network = network.eval()
        # float64 and on the device: counts stay exact, and no batch waits to be read.
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.predicted: list[Tensor] = []

    def add(self, counts: Tensor, classes: Tensor) -> None:
        """What `count_correct` says of a batch, and the predicted class of each of its images."""
        self.sums += counts
        self.predicted.append(classes)

    def read(self, spec: RunSpec, epoch: int) -> dict[str, Any]:
        """Top-1 and top-5 (percent), cross-entropy and, as `predicted`, the class of each test image.

        NonFiniteLoss before such a number reaches the history or a checkpoint.
        """
        # One sum over processes at the end; each of them has counted its share.
        first, fifth, loss, images = collectives.total(self.sums).tolist()
        if not math.isfinite(loss):
            what = f"the loss on the test images is not finite ({loss}), epoch {epoch}"
            raise NonFiniteLoss(what, spec.id)
        # A process may have no share at all if there are fewer images than processes.
        none = self.sums.new_zeros(0, dtype=torch.int32)
        mine = torch.cat(self.predicted) if self.predicted else none
        return {
            "top1": 100 * first / images,
            "top5": 100 * fifth / images,
            "loss": loss / images,
            "predicted": collectives.interleave(mine, spec.dataset.test_images),
        }


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Images right at first, images right among five, sum of cross-entropies, number of images."""
    top = logits.topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)
    # A sum, not a mean: batches differ in size, and the mean is taken over all images.
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum").double()
    return torch.stack([top[:, 0].sum().double(), top.sum().double(), loss, loss.new_tensor(len(labels))])
