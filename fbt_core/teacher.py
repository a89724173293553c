"""The frozen teacher: it looks at each batch once, for every student that learns from it."""

from __future__ import annotations

import torch
from torch import Tensor

from fbt_core.spec import RunSpec
from fbt_core.staged import StagedModel
from fbt_core.staged.base import StagedOutput

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per channel."""


class Teacher:
    """What the training loop asks of a teacher: its features and logits for a batch, without graph.

    A batch comes in the student's normalisation (`batches`), the teacher sees it in `its_own`. Methods that
    differentiate through the teacher or run parts of it again hold the same network.
    """

    def __init__(
        self, network: StagedModel, batches: Normalisation | None = None, its_own: Normalisation | None = None
    ) -> None:
        self.network = network
        self.scale: Tensor | None = None
        self.shift: Tensor | None = None
        if batches and its_own and batches != its_own:
            device = next(network.parameters()).device
            mean, std, own_mean, own_std = (
                torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (*batches, *its_own)
            )
            self.scale = (std / own_std).float().to(device)
            self.shift = ((mean - own_mean) / own_std).float().to(device)

    @classmethod
    def of(cls, spec: RunSpec, network: StagedModel | None) -> Teacher | None:
        """The teacher of a run, normalised as its recipe says; None if the run has no teacher."""
        if network is None or spec.teacher is None:
            return None
        entry = spec.teacher if spec.recipe.teacher_normalisation == "own" else spec.student
        return cls(network, (spec.student.mean, spec.student.std), (entry.mean, entry.std))

    @torch.no_grad()
    def observe(self, images: Tensor) -> StagedOutput:
        """Features and logits for images (B, 3, H, W) in the student's normalisation."""
        return self.network.features(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """The images in the teacher's normalisation; those of the batch stay as they are."""
        if self.scale is None:
            return images
        return images * self.scale + self.shift
