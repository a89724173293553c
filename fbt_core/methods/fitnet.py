"""FitNet in the four variants of the paper's Table 4: which features are matched, and by which loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as functional
from torch import Tensor, nn

from fbt_core.collectives import gather_with_gradient
from fbt_core.losses.contrast import info_nce
from fbt_core.losses.logits import kl_divergence
from fbt_core.losses.numerics import in_float32
from fbt_core.methods.base import COMPARES, Batch, Method, Terms
from fbt_core.methods.modules import Aligned, Temperature
from fbt_core.staged.base import StagedOutput


@in_float32
def feature_mse(learner: Tensor, source: Tensor) -> Tensor:
    """Mean squared difference of two features of one shape, Romero et al. 2015, equation 3 as a mean."""
    return functional.mse_loss(learner, source)


class FitNet(Method):
    """Cross-entropy, and a hint on all stages, on the last, or on the last after average pooling."""

    @property
    def needs_whole_batch(self) -> str | None:
        """InfoNCE's negatives are the other images of the batch."""
        return COMPARES if self.settings.loss == "infonce" else None

    def build_extras(self) -> dict[str, nn.Module]:
        if self.settings.features != "final_pooled":
            student, teacher = self.student.shapes, self.teacher.shapes
            return {f"stage{i + 1}": Aligned(student[i], teacher[i]) for i in self._stages()}
        extras: dict[str, nn.Module] = {"pooled": nn.Linear(self.student.width, self.teacher.width)}
        if self.settings.loss == "infonce":
            extras["temperature"] = Temperature(self.settings)
        return extras

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        terms = {"labels": self.settings.label_weight * self.label_loss(student.logits, batch)}
        for name, hint in self._hints(student, teacher):
            terms[name] = self.settings.feature_weight * hint
        # A weight of 0 leaves the term out altogether, so the log shows no column of zeros.
        if self.settings.logit_weight:
            divergence = kl_divergence(student.logits, teacher.logits, temperature=1.0)
            terms["logits"] = self.settings.logit_weight * divergence
        return terms

    def _stages(self) -> range:
        if self.settings.features == "all_stages":
            return range(4)
        return range(3, 4)

    def _hints(self, student: StagedOutput, teacher: StagedOutput) -> Iterator[tuple[str, Tensor]]:
        if self.settings.features == "final_pooled":
            yield "pooled", self._pooled_hint(student.pooled, teacher.pooled)
            return
        for i in self._stages():
            learner, source = self.extras[f"stage{i + 1}"](student.stages[i], teacher.stages[i])
            yield f"stage{i + 1}", feature_mse(learner, source)

    def _pooled_hint(self, student: Tensor, teacher: Tensor) -> Tensor:
        learner = self.extras["pooled"](student)
        if self.settings.loss == "mse":
            return feature_mse(learner, teacher)
        # MSE counts every image alone; InfoNCE needs the whole batch's negatives.
        learner, source = gather_with_gradient(learner), gather_with_gradient(teacher)
        return info_nce(learner, source, self.extras["temperature"](), self.settings.direction)


METHOD = FitNet
