"""A progress bar on a terminal, shown besides what the run's files say."""

from __future__ import annotations

from tqdm import tqdm


class Display:
    """The bar of the present epoch; only the process that writes files shows it."""

    def __init__(self, steps: int, epochs: int, shown: bool) -> None:
        self.steps, self.epochs = steps, epochs
        self.hidden = None if shown else True  # None: only on a terminal
        self._bar: tqdm | None = None

    def start_epoch(self, epoch: int, step: int) -> None:
        """A fresh bar, standing where the epoch is taken up."""
        title = f"epoch {epoch + 1}/{self.epochs}"
        # disable=None asks tqdm to look for a terminal: a log file gets no bars.
        self._bar = tqdm(
            total=self.steps, initial=step, desc=title, leave=False, disable=self.hidden, unit="step"
        )

    def move(self, step: int, loss: float) -> None:
        """Move the bar, which draws itself ten times a second at most; `loss` is the one read last."""
        if self._bar is not None and not self._bar.disable:
            # NaN is the only value unequal to itself: no loss was read yet.
            if loss == loss:
                self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            # By difference: a resumed epoch begins in its middle, and tqdm counts steps of its own.
            self._bar.update(step - self._bar.n)

    def end_epoch(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
