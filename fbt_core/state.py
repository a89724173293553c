"""What a run has done so far: the part of a checkpoint that is neither weights nor optimiser."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from fbt_core.loss_log import LossLog
from fbt_core.provenance import now

UNSAVED = ("losses", "clock")


@dataclass
class State:
    """How far a run is and what it has shown; times and GPU hours count all attempts.

    `epoch`: epochs finished; `step`: steps of the present epoch; `updates`: optimiser updates in all;
    `predictions`: the class of each test image at the last epoch, the best one and the EMA's best;
    `teacher_top1`: the teacher's own, in percent, measured before the first step; `pack`: the runs it shared
    the stream with; `too_large`: how many runs the memory did not hold together.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    best_ema: dict[str, Any] | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    predictions: dict[str, Tensor] = field(default_factory=dict)
    teacher_top1: float | None = None
    started: str = field(default_factory=now)
    resumed_at: list[str] = field(default_factory=list)
    seconds: float = 0.0
    training_seconds: float = 0.0
    epoch_seconds: float = 0.0
    gpu_seconds: float = 0.0
    pack: list[str] = field(default_factory=list)
    too_large: list[int] = field(default_factory=list)
    losses: LossLog = field(default_factory=LossLog)
    clock: float = field(default_factory=time.monotonic)

    def count_time(self, gpus: float, training: bool = True) -> None:
        """Add the seconds since the last call to the run's total, and to the epoch's if it was training.

        `gpus` are the run's share of the GPUs.
        """
        # The wall clock may be set while a run trains; this one only goes forward.
        before, self.clock = self.clock, time.monotonic()
        self.seconds += self.clock - before
        self.gpu_seconds += gpus * (self.clock - before)
        if training:
            self.epoch_seconds += self.clock - before

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, as plain values and tensors; `losses` were read before."""
        # Field by field: a new one is saved without anybody having to remember it.
        kept = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in UNSAVED}
        return {**kept, "losses": self.losses.state_dict()}

    @classmethod
    def from_checkpoint(cls, content: dict[str, Any]) -> State:
        """The state that a checkpoint holds; its clock starts now."""
        # Losses have a state of their own, and a clock of another process means nothing here.
        state = cls(**{name: value for name, value in content.items() if name not in UNSAVED})
        state.losses.load_state_dict(content["losses"])
        return state
