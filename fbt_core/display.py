"""A progress bar on a terminal and, where asked for, TensorBoard: shown besides what the run's files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from fbt_core.errors import UserError


class Display:
    """The bar of the present epoch and the curves of all; only the process that writes files shows them."""

    def __init__(self, folder: Path, steps: int, epochs: int, shown: bool, tensorboard: bool) -> None:
        self.steps, self.epochs = steps, epochs
        self.hidden = None if shown else True  # None: only on a terminal
        self.board = make_board(folder) if shown and tensorboard else None
        self._bar: tqdm | None = None

    def start_epoch(self, epoch: int, step: int) -> None:
        """A fresh bar, standing where the epoch is taken up."""
        title = f"epoch {epoch + 1}/{self.epochs}"
        self._bar = tqdm(
            total=self.steps, initial=step, desc=title, leave=False, disable=self.hidden, unit="step"
        )

    def move(self, step: int, loss: float) -> None:
        """Move the bar, which draws itself ten times a second at most; `loss` is the one read last."""
        if self._bar is not None and not self._bar.disable:
            if loss == loss:
                self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update(step - self._bar.n)

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Take the bar away and add the epoch to TensorBoard's curves."""
        if self._bar is not None:
            self._bar.close()
        if self.board is not None:
            self._draw(line)

    def _draw(self, line: dict[str, Any]) -> None:
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        numbers |= {f"terms/{name}": value for name, value in line["terms"].items()}
        for name, value in numbers.items():
            self.board.add_scalar(name, value, line["epoch"])
        self.board.flush()


def make_board(folder: Path) -> Any:
    """TensorBoard's writer for a run; a UserError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        hint = "pip install tensorboard, or set it to false"
        raise UserError("TensorBoard is not installed", where="tensorboard: true", hint=hint) from None
    return SummaryWriter(str(folder / "tensorboard"))
