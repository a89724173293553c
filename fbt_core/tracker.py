"""A run's numbers where you watch everything: TensorBoard, Weights & Biases or Trackio, an epoch at a time.

    execution: {tracker: wandb}         in config/config.yaml

The tracker's program runs in a process of its own, which reads one line of JSON an epoch from a pipe. So a
training never imports it, never waits for it, and ends as it would have without it: a full quota, a network
that is gone or a program that hangs costs the curves, not the run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fbt_core.errors import UserError
from fbt_core.run_files import SPEC_FILE
from fbt_core.spec import parse_spec

KINDS = ("tensorboard", "wandb", "trackio")
TRACKER_LOG = "tracker.log"
PROJECT = "fbt-repro"
END_SECONDS = 30.0
"""How long a finished training waits for its tracker to send the rest."""


class Tracker:
    """The training's end of the pipe; nothing here raises once the tracker has been started."""

    def __init__(self, kind: str, folder: Path, note: Callable[[str], None]) -> None:
        # Asked before training: a missing package would show only at the end of an epoch.
        if importlib.util.find_spec(kind) is None:
            hint = f"pip install {kind}, or set it to none"
            raise UserError(f"{kind} is not installed", where=f"execution.tracker: {kind}", hint=hint)
        self.kind, self.note, self.ended = kind, note, False
        command = [sys.executable, "-m", "fbt_core.tracker", kind, str(folder)]
        with (folder / TRACKER_LOG).open("ab") as log:
            # A session of its own: Ctrl-C reaches the training alone, and the tracker ends after it.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
        assert self.process.stdin is not None
        self.pipe = self.process.stdin
        # Never waits: a tracker that does not read must not stop a training.
        os.set_blocking(self.pipe.fileno(), False)

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Hand over an epoch's line of history; a tracker that does not take it is given up."""
        if self.ended:
            return
        try:
            # A line in one write: pipes take so few bytes whole or not at all.
            os.write(self.pipe.fileno(), (json.dumps(numbers_of(line)) + "\n").encode())
        except BlockingIOError:  # it has not read for hundreds of epochs
            self._give_up("does not answer")
        except OSError:
            self._give_up("has ended")

    def close(self) -> None:
        """No more epochs come; wait a little until the tracker has sent what it has."""
        if self.ended:
            return
        with contextlib.suppress(OSError):
            self.pipe.close()
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._give_up(f"was still busy after {END_SECONDS:.0f} s")
            return
        self.ended = True
        if code:
            self._give_up("has ended")

    def _give_up(self, why: str) -> None:
        self.ended = True
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self.pipe.close()
        self.note(f"warning: {self.kind} {why}; the run is whole without it (see {TRACKER_LOG})")


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's line of history: its own, and the loss terms as terms/NAME."""
    # Numbers only: trackers plot, and text has no curve.
    numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
    return {**numbers, **{f"terms/{name}": value for name, value in line["terms"].items()}}


# ---------------------------------------------------------------- the tracker's process


class Sink(Protocol):
    """All that is asked of a tracker's program."""

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        """The numbers of an epoch."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoard:
    """Curves in runs/<run id>/tensorboard, for `tensorboard --logdir results`."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any], key: str) -> None:
        from tensorboard.summary import Writer

        self.writer = Writer(str(folder / "tensorboard"))

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of W&B with the run's id as its name; WANDB_MODE=offline keeps it in runs/<run id>/wandb."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any], key: str) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.run = wandb.init(
            project=project, id=key, name=run, config=dict(config), dir=str(folder), resume="allow"
        )

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(numbers), step=epoch)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of Trackio, which keeps its files on this machine (TRACKIO_DIR)."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any], key: str) -> None:
        import trackio

        self.trackio = trackio
        trackio.init(project=PROJECT, name=run, config=dict(config), resume="allow")

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        self.trackio.log(dict(numbers), step=epoch)

    def close(self) -> None:
        self.trackio.finish()


SINKS: dict[str, Callable[[Path, str, Mapping[str, Any], str], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def follow(kind: str, folder: Path, lines: Iterable[str]) -> None:
    """Give a tracker's program the epochs of a run until the training has ended or is gone."""
    spec = parse_spec((folder / SPEC_FILE).read_text())
    # W&B takes keys of 64 characters at most, which an id may exceed.
    sink = SINKS[kind](folder, spec.id, spec.model_dump(mode="json"), spec.digest()[:32])
    for line in lines:
        numbers = json.loads(line)
        sink.log(numbers, numbers.pop("epoch"))
    sink.close()


def main(arguments: list[str] | None = None) -> int:
    """The command line of the tracker's process."""
    parser = argparse.ArgumentParser(prog="python -m fbt_core.tracker", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path, help="the run's folder")
    chosen = parser.parse_args(arguments)
    # What stops the training closes the pipe: the last epochs are sent before this process ends.
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    follow(chosen.kind, chosen.folder, sys.stdin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
