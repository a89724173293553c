"""The fused model: three early stages of one network, L2G, and the last stage and head of the other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fbt_core.errors import UserError
from fbt_core.fusion.l2g import L2G, BlockKind
from fbt_core.staged.base import FeatureShape, StagedOutput
from fbt_core.staged.layout import prefix_of, to_tokens
from fbt_core.staged.model import StagedModel

Direction = Literal["teacher_head", "student_head"]
Stage4 = Literal["fused", "none"]
ClassToken = Literal["gradient", "detached"]


def choose_direction(student_family: str, teacher_family: str) -> Direction:
    """Whose stage 4 ends the fused model (facts of the paper, equations 1 and 2).

    student_head for a CNN teacher of an MSA or MLP student, teacher_head for every other pair. The paper
    gives no equation for MSA and MLP together and leaves them open: they are taken as equation 2.
    """
    if teacher_family == "cnn" and student_family != "cnn":
        return "student_head"
    return "teacher_head"


class FusedModel(nn.Module):
    """Early stages -> L2G -> last stage, on features of passes already made.

    teacher_head: student S1-S3 -> L2G -> teacher S4 and head (frozen, but the gradient passes through).
    student_head: teacher S1-S3 (frozen) -> L2G -> student S4 and head (trained by it).
    stage4 "none" replaces S4 and head by average pooling and a new Linear. `class_token` says whether a
    student's class token carries the gradient back into its S1-S3: "gradient" makes it the one way by which
    the loss of a student_head model reaches the student's early stages; with "detached", or without a class
    token, it reaches neither network's. A teacher's is always detached. Only L2G and the new Linear are
    registered: the two networks belong to others.
    """

    def __init__(
        self,
        student: StagedModel,
        teacher: StagedModel,
        direction: Direction,
        *,
        block: BlockKind,
        stage4: Stage4,
        block_heads: int,
        block_window: int,
        block_mlp_ratio: float,
        class_token: ClassToken,
    ) -> None:
        super().__init__()
        # These names come from YAML: a wrong one is a user's mistake, and found before anything is built.
        _check_choices(
            direction=(direction, Direction), stage4=(stage4, Stage4), class_token=(class_token, ClassToken)
        )
        self.direction, self.class_token = direction, class_token
        # A tuple hides the networks from torch: as attributes they would be registered, and counted, twice.
        self._networks = (student, teacher.freeze())
        # The network that begins gives S1-S3, the other one its S4.
        early, last = self._networks
        if direction == "student_head":
            early, last = last, early
        # L2G must give what S4 of the other network takes: the output of that network's third stage.
        entry = last.shapes[2]
        # Without S4 nothing reads class tokens: L2G then makes a plain feature.
        if stage4 != "fused":
            entry = FeatureShape(entry.layout, entry.width, entry.grid)
        self.l2g = L2G(
            early.shapes[2], entry, block, heads=block_heads, window=block_window, mlp_ratio=block_mlp_ratio
        )
        self.classifier = nn.Linear(entry.width, last.classes) if stage4 != "fused" else None
        # The pooled feature is compared by InfoNCE, so its width must be known before a pass.
        self.width = last.width if self.classifier is None else entry.width
        self.classes = last.classes

    @property
    def head_is_trainable(self) -> bool:
        """Whether labels can teach the fused model's head: the student's own or the new Linear."""
        return self.direction == "student_head" or self.classifier is not None

    def forward(self, student_output: StagedOutput, teacher_output: StagedOutput) -> tuple[Tensor, Tensor]:
        """The pooled feature (B, width) and the logits (B, classes) of the fused model."""
        student, teacher = self._networks
        # Detached here as well: a teacher's output has no graph, but a caller's might.
        student_feature, teacher_feature = student_output.stages[2], teacher_output.stages[2].detach()
        if self.direction == "teacher_head":
            return self._finish(teacher, student_feature, teacher_feature)
        if self.class_token == "detached":
            student_feature = student_feature.detach()
        return self._finish(student, teacher_feature, student_feature)

    def _finish(self, last: StagedModel, early_feature: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
        """L2G, then the last stage; `entering` is what enters S4 of its own network in this batch."""
        shape = self.l2g.output_shape
        x = self.l2g(early_feature, prefix_of(entering, shape))
        if self.classifier is not None:
            pooled = to_tokens(x, shape).mean(1)
            return pooled, self.classifier(pooled)
        # The late network sees foreign features here: its running statistics are of its own passes alone.
        with kept_statistics(last):
            return last.finish(last.run(x, first=3)[-1])

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedModel:
        """A copy with its own L2G on the copied student; the frozen teacher is shared, not copied."""
        # The EMA copies the trained module; without this it would copy a frozen teacher of any size.
        student, teacher = self._networks
        memo[id(teacher)] = teacher
        twin = self.__class__.__new__(self.__class__)
        # Noted before its content is copied: modules inside that refer to it then find the copy.
        memo[id(self)] = twin
        twin.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return twin


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm normalises as its mode says (by the batch in training) but updates no statistic."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _check_choices(**options: tuple[str, Any]) -> None:
    for name, (value, choices) in options.items():
        if value not in get_args(choices):
            raise UserError(f"unknown {name} {value!r}", given=value, choices=get_args(choices))
