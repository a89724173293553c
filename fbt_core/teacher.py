"""The frozen teacher: it looks at each batch once, for every student that learns from it.

A method holds a view of it (StagedModel.view): parameters shared, all else its own. What it differentiates
through or changes is the view; what it learns from is the one pass that all of them see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fbt_core.spec import RunSpec
from fbt_core.staged import StagedModel
from fbt_core.staged.base import StagedOutput

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per channel."""


class Teacher:
    """What the training loop asks of a teacher: its features and logits for a batch, without graph.

    A batch comes in the student's normalisation (`batches`), the teacher sees it in `its_own`.
    """

    def __init__(
        self, network: StagedModel, batches: Normalisation | None = None, its_own: Normalisation | None = None
    ) -> None:
        self.network = network
        self.scale: Tensor | None = None
        self.shift: Tensor | None = None
        # Two normalisations in one scale and shift: images are not undone and normalised again.
        if batches and its_own and batches != its_own:
            device = next(network.parameters()).device
            # Computed in float64: differences of nearly equal means would lose digits.
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
        entry = spec.student
        if spec.recipe.teacher_normalisation == "own":
            entry = spec.teacher
        return cls(network, (spec.student.mean, spec.student.std), (entry.mean, entry.std))

    @torch.no_grad()
    def observe(self, images: Tensor) -> StagedOutput:
        """Features and logits for images (B, 3, H, W) in the student's normalisation."""
        return self.network.features(self.normalise(images))

    def serve(self, views: Sequence[StagedModel | None]) -> None:
        """Observe from now on also what these views were asked to keep."""
        for view in views:
            if view is not None:
                self.network.keep_for(view)

    @torch.no_grad()
    def observe_for(self, views: Sequence[StagedModel | None], images: Tensor) -> list[StagedOutput | None]:
        """What each view's own pass would give for the images, from one pass; None for a run without."""
        # Views may deal the blocks differently; all of that comes from one pass.
        splits = {view.split for view in views if view is not None}
        if not splits:
            return [None] * len(views)
        outputs = self.network.features_by_split(self.normalise(images), splits)
        return [None if view is None else outputs[view.split] for view in views]

    def normalise(self, images: Tensor) -> Tensor:
        """The images in the teacher's normalisation; those of the batch stay as they are."""
        if self.scale is None:
            return images
        return images * self.scale + self.shift
