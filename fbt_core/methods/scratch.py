"""No distillation: cross-entropy with smoothed labels. Also how teachers are trained."""

from __future__ import annotations

from dataclasses import dataclass

from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.staged.base import StagedOutput

REVISION = 1
TRAITS = {
    "title": "From scratch",
    "transfers": "nothing",
    "levels": 1,
    "losses": ["cross-entropy"],
    "generic": True,
    "extra_parameters": False,
    "needs_teacher": False,
    "uses_fusion": False,
    "citation": "C. Szegedy et al., Rethinking the Inception Architecture, CVPR 2016 (label smoothing)",
}


@dataclass(frozen=True)
class Parameters:
    """None: the recipe states the label smoothing."""


class Scratch(Method):
    """The student alone; a teacher that is given is ignored."""

    Parameters = Parameters
    needs_teacher = False

    def terms(self, student: StagedOutput, teacher: StagedOutput | None, batch: Batch) -> Terms:
        return {"labels": self.label_loss(student.logits, batch)}


METHOD = Scratch
