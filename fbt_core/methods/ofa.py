"""OFA: the student leaves early on four branches, and each branch learns the teacher's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fbt_core.branches import PAPER_DEPTHS, RELEASED_DEPTHS, ofa_branch
from fbt_core.losses.logits import ofa_loss
from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.staged.base import StagedOutput

REVISION = 1
TRAITS = {
    "title": "OFA",
    "transfers": "logits",
    "levels": 2,
    "losses": ["OFA"],
    "generic": True,
    "extra_parameters": True,
    "needs_teacher": True,
    "uses_fusion": False,
    "citation": "Z. Hao et al., One-for-All: Bridge the Gap Between Architectures in KD, NeurIPS 2023",
}


@dataclass(frozen=True)
class Parameters:
    """Weights of the three kinds of terms; branch_depth: as the FBT paper counts them, or as released."""

    label_weight: float
    logit_weight: float
    branch_weight: float
    gamma: float
    temperature: float
    branch_depth: Literal["released", "paper"]
    split: Literal["even", "ofa"]


class OFA(Method):
    """Cross-entropy, and the OFA loss on the logits and on the branches of all four stages."""

    Parameters = Parameters

    def build_extras(self) -> dict[str, nn.Module]:
        depths = PAPER_DEPTHS if self.settings.branch_depth == "paper" else RELEASED_DEPTHS
        widths = self.student.width, self.teacher.width
        return {
            f"branch{i + 1}": ofa_branch(shape, i, *widths, self.context.classes, depths)
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
