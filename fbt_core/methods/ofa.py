"""OFA: the student leaves early on four branches, and each branch learns the teacher's logits."""

from __future__ import annotations

from torch import nn

from fbt_core.branches import PAPER_DEPTHS, RELEASED_DEPTHS, ofa_branch
from fbt_core.losses.logits import ofa_loss
from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.staged.base import StagedOutput


class OFA(Method):
    """Cross-entropy, and the OFA loss on the logits and on the branches of all four stages.

    `branch_depth`: blocks of the branches as the FBT paper counts them, or as released.
    """

    def build_extras(self) -> dict[str, nn.Module]:
        depths = RELEASED_DEPTHS
        if self.settings.branch_depth == "paper":
            depths = PAPER_DEPTHS
        student, teacher = self.student.width, self.teacher.width
        return {
            f"branch{i + 1}": ofa_branch(shape, i, student, teacher, self.context.classes, depths)
            for i, shape in enumerate(self.student.shapes)
        }

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        s = self.settings
        terms = {
            "labels": s.label_weight * self.label_loss(student.logits, batch),
            "logits": s.logit_weight
            * ofa_loss(student.logits, teacher.logits, batch.target, s.gamma, s.temperature),
        }
        for name, feature in zip(self.extras, student.stages, strict=True):
            loss = ofa_loss(self.extras[name](feature), teacher.logits, batch.target, s.gamma, s.temperature)
            terms[name] = s.branch_weight * loss
        return terms


METHOD = OFA
