"""Losses of an epoch, kept on the device and read every few steps: no synchronisation per step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fbt_core.collectives import average
from fbt_core.errors import NonFiniteLoss


class LossLog:
    """Sums of the loss and its terms over an epoch; finds the step at which one stopped being finite."""

    def __init__(self, latest: float = math.nan) -> None:
        self.names: list[str] = []
        self.sums: list[float] = []
        self.steps, self.latest = 0, latest
        self._pending: list[Tensor] = []

    def add(self, results: list[dict[str, Any]]) -> None:
        """Remember a step's values, the mean over the parts of its batch; nothing leaves the device."""
        # Names of the latest step: the terms of a run are the same at each of them.
        self.names = ["loss", *results[0]["terms"]]
        # Detached: a kept graph would hold a step's activations until the next read.
        parts = [[result["loss"].detach(), *result["terms"].values()] for result in results]
        self._pending.append(torch.stack([torch.stack([v.float() for v in part]) for part in parts]).mean(0))

    def read(self, where: str, rate: float) -> None:
        """Fetch what has gathered; NonFiniteLoss names the term, the step and the learning rate."""
        if not self._pending:
            return
        # Averaged over processes here, once for all steps since the last read.
        rows = average(torch.stack(self._pending)).double().cpu()
        self._pending.clear()
        # Checked before it is added: sums stay those of good steps, which a checkpoint may hold.
        self._check(rows, where, rate)
        before = self.sums or [0.0] * len(self.names)
        self.sums = [total + new for total, new in zip(before, rows.sum(0).tolist(), strict=True)]
        self.steps += len(rows)
        self.latest = rows[-1, 0].item()

    def _check(self, rows: Tensor, where: str, rate: float) -> None:
        bad = (~torch.isfinite(rows)).nonzero()
        if not len(bad):
            return
        # The first bad step is the one that explains the others.
        step = int(bad[0, 0])
        wrong = [i for i in range(len(self.names)) if not math.isfinite(rows[step, i])]
        names = ", ".join(f"{self.names[i]} = {rows[step, i].item()}" for i in wrong)
        what = f"the loss is not finite ({names}), step {self.steps + step + 1}, learning rate {rate:.3g}"
        raise NonFiniteLoss(what, where)

    def means(self) -> dict[str, float]:
        """Mean of the loss and of each term over the steps read so far."""
        return {name: total / self.steps for name, total in zip(self.names, self.sums, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; read() comes first."""
        return {"names": self.names, "sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names, self.sums, self.steps = state["names"], state["sums"], state["steps"]
