"""FBT, Fuse Before Transfer: a fused model of early and late stages stands between teacher and student.

L_FBT = L(K_t, K_s) + L(K_t, K_f) + L(K_f, K_s), with L(K_i, K_j) = L_InfoNCE(f_i, f_j) + L_OFA(p_i, p_j);
t, f, s = teacher, fused model, student; f_i = the final stage's feature after average pooling, not the class
token that a transformer's classifier may read instead; p_i = the logits. Every part can be switched off: the
main paper's ablation and rows B, C and E of the appendix's Table 3 are its settings.

What the paper leaves open is a parameter, or fixed as follows: InfoNCE's negatives come from all processes,
with gradient; the teacher's parts of the fused model stay in eval mode and pass the gradient on; a CNN
teacher's three stages get no loss of their own; L2G is trained with the student's learning rate and weight
decay. The fused model's loss reaches only the student's stages that are in it, but for one way: if a
student with class tokens ends the fused model, `class_token: gradient` lets it reach S1-S3 through them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from torch import Tensor, nn

from fbt_core.collectives import gather_with_gradient
from fbt_core.fusion import FusedModel, choose_direction
from fbt_core.losses.contrast import info_nce
from fbt_core.losses.logits import kl_divergence, ofa_loss
from fbt_core.methods.base import COMPARES, Batch, Method, Terms
from fbt_core.methods.modules import Temperature
from fbt_core.staged.base import StagedOutput

MSA_AND_MLP = {"msa", "mlp"}


class Knowledge(NamedTuple):
    """K_i: the pooled final feature (B, D_i) and the logits (B, classes) of one of the three models."""

    feature: Tensor
    logits: Tensor


class FBT(Method):
    """Student and fused model learn from the teacher, and the student from the fused model.

    `projection`: a linear map on the learner's feature if the widths differ, or in every pair.
    `fused_cross_entropy`: the weight of the fused model's labels, used if its head is trainable.
    `msa_mlp_direction`: whose stage 4 ends the fused model if one network is an MSA and the other an MLP.
    """

    @property
    def unused_parameters(self) -> bool:
        """Whether parts of the fused model may learn nothing: unless it is taught both logits and feature."""
        # A frozen part of the fused model, or a path that is off, leaves parameters without gradient.
        s = self.settings
        is_taught = s.teacher_to_fused and s.logit_loss != "none" and s.feature_loss != "none"
        return self._uses_fused() and not is_taught

    @property
    def needs_whole_batch(self) -> str | None:
        """InfoNCE's negatives are the other images of the batch."""
        return COMPARES if self.settings.feature_loss == "infonce" else None

    def build_extras(self) -> dict[str, nn.Module]:
        # The fused model first: its width decides which projections are needed.
        extras = self._build_fused()
        widths = self._widths(extras)
        if self.settings.feature_loss != "infonce":
            return extras
        # A temperature and projection per pair: the three pairs differ in scale and width.
        for source, learner in self._transfers():
            extras[f"temperature_{source}_to_{learner}"] = Temperature(self.settings)
            if self.settings.projection == "always" or widths[source] != widths[learner]:
                extras[f"projection_{source}_to_{learner}"] = nn.Linear(widths[learner], widths[source])
        return extras

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        knowledge = self._collect_knowledge(student, teacher)
        # Labels first, so that the terms stand in the log in the order of the formula.
        terms = self._label_terms(knowledge, batch)
        for source, learner in self._transfers():
            taught_by = knowledge[source]
            # Detached, the fused model is a teacher only: it does not bend towards the student.
            if source == "fused" and self.settings.detach_fused:
                taught_by = Knowledge(taught_by.feature.detach(), taught_by.logits.detach())
            pair = f"{source}_to_{learner}"
            terms.update(self._transfer(pair, taught_by, knowledge[learner], batch))
        return terms

    @property
    def has_fused_model(self) -> bool:
        return self._uses_fused()

    def fused_logits(self, images: Tensor, teacher: StagedOutput) -> Tensor:
        return self.extras["fused"](self.student.features(images), teacher)[1]

    def _transfers(self) -> Iterator[tuple[str, str]]:
        """The (source, learner) pairs that are switched on."""
        for source, learner in (("teacher", "student"), ("teacher", "fused"), ("fused", "student")):
            if getattr(self.settings, f"{source}_to_{learner}"):
                yield source, learner

    def _uses_fused(self) -> bool:
        return self.settings.teacher_to_fused or self.settings.fused_to_student

    def _build_fused(self) -> dict[str, nn.Module]:
        # Not built if nothing uses it: its parameters would be saved, and never learn.
        if not self._uses_fused():
            return {}
        s = self.settings
        fused = FusedModel(
            self.student,
            self.teacher,
            self._choose_direction(),
            stage4=s.stage4,
            block=s.block,
            block_heads=s.block_heads,
            block_window=s.block_window,
            block_mlp_ratio=s.block_mlp_ratio,
            class_token=s.class_token,
        )
        return {"fused": fused}

    def _choose_direction(self) -> Literal["teacher_head", "student_head"]:
        """Whose stage 4 ends the fused model: the families say it, but for MSA and MLP together."""
        student, teacher = self.context.student_family, self.context.teacher_family
        # The paper gives no equation for this pair of families, so it is a parameter.
        if {student, teacher} == MSA_AND_MLP:
            return self.settings.msa_mlp_direction
        return choose_direction(student, teacher)

    def _widths(self, extras: dict[str, nn.Module]) -> dict[str, int]:
        """The width of each model's pooled feature."""
        widths = {"student": self.student.width, "teacher": self.teacher.width}
        if "fused" in extras:
            widths["fused"] = extras["fused"].width
        return widths

    def _collect_knowledge(self, student: StagedOutput, teacher: StagedOutput) -> dict[str, Knowledge]:
        """K_s, K_t and, if it is used, K_f."""
        knowledge = {
            "student": Knowledge(student.pooled, student.logits),
            "teacher": Knowledge(teacher.pooled, teacher.logits),
        }
        # A pass of the fused model costs a stage: only if a term asks for it.
        if self._uses_fused():
            feature, logits = self.extras["fused"](student, teacher)
            knowledge["fused"] = Knowledge(feature, logits)
        return knowledge

    def _label_terms(self, knowledge: dict[str, Knowledge], batch: Batch) -> Terms:
        """Cross-entropy of the student, and of the fused model if its head is trainable."""
        s = self.settings
        terms = {"labels": s.student_cross_entropy * self.label_loss(knowledge["student"].logits, batch)}
        # A teacher's frozen classifier cannot learn labels; L2G alone would be bent towards them.
        if "fused" in knowledge and self.extras["fused"].head_is_trainable and s.fused_cross_entropy:
            terms["fused_labels"] = s.fused_cross_entropy * self.label_loss(knowledge["fused"].logits, batch)
        return terms

    def _transfer(self, pair: str, source: Knowledge, learner: Knowledge, batch: Batch) -> Terms:
        """L(K_source, K_learner): the logit term and the feature term, if they are on."""
        terms = {}
        if self.settings.logit_loss != "none":
            loss = self._logit_loss(learner.logits, source.logits, batch.target)
            terms[f"{pair}_logits"] = self.settings.logit_weight * loss
        if self.settings.feature_loss != "none":
            loss = self._feature_loss(pair, learner.feature, source.feature)
            terms[f"{pair}_features"] = self.settings.feature_weight * loss
        return terms

    def _logit_loss(self, learner: Tensor, source: Tensor, target: Tensor) -> Tensor:
        temperature = self.settings.logit_temperature
        if self.settings.logit_loss == "kl":
            return kl_divergence(learner, source, temperature)
        return ofa_loss(learner, source, target, self.settings.gamma, temperature)

    def _feature_loss(self, pair: str, learner: Tensor, source: Tensor) -> Tensor:
        """InfoNCE with the learner's feature at the source's width, negatives from all processes."""
        # The learner is projected: a projected source would be a target that the loss itself can move.
        name = f"projection_{pair}"
        learner = self.extras[name](learner) if name in self.extras else learner
        # More negatives with more processes, as in one process with the whole batch.
        learner, source = gather_with_gradient(learner), gather_with_gradient(source)
        return info_nce(learner, source, self.extras[f"temperature_{pair}"](), self.settings.direction)


METHOD = FBT
