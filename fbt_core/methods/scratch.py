"""No distillation: cross-entropy with smoothed labels. Also how teachers are trained."""

from __future__ import annotations

from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.staged.base import StagedOutput


class Scratch(Method):
    """The student alone; a teacher that is given is ignored."""

    def terms(self, student: StagedOutput, teacher: StagedOutput | None, batch: Batch) -> Terms:
        return {"labels": self.label_loss(student.logits, batch)}


METHOD = Scratch
