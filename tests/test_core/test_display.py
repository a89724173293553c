"""The progress bar: on a terminal it is there and moves by itself; in a log there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from fbt_core import report
from fbt_core.loss_log import LossLog
from fbt_core.run import main
from tests.test_core.engine_runs import arguments, make_spec, write_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


def start(command: list[str], stderr: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    return subprocess.Popen(
        [sys.executable, "-m", "fbt_core.run", *command], cwd=ROOT, env=environment, stderr=stderr
    )


def read_terminal(command: list[str]) -> str:
    """All that a program writes to a terminal, which its stderr is."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start(command, theirs)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert process.wait() == 0
    return b"".join(parts).decode()


def test_a_bar_of_every_epoch_is_drawn_on_a_terminal(root, tmp_path):
    shown = read_terminal(arguments(make_spec(), tmp_path, root))
    bars = re.findall(r"epoch (\d)/2: +\d+%.*?(\d)/6 \[", shown)
    assert {epoch for epoch, _ in bars} == {"1", "2"}
    assert re.search(rf"{make_spec().id}: epoch 2/2  loss \d", shown)


def test_a_log_has_a_line_an_epoch_and_no_bar(root, tmp_path):
    log = tmp_path / "err.txt"
    with log.open("wb") as file:
        assert start(arguments(make_spec(), tmp_path / "runs", root), file.fileno()).wait() == 0
    lines = log.read_text().splitlines()
    name = make_spec().id
    assert [line.split("  ")[0] for line in lines] == [f"{name}: epoch 1/2", f"{name}: epoch 2/2"]
    assert "%|" not in log.read_text() and "\r" not in log.read_text()


def test_steps_are_told_between_two_readings_of_the_losses(root, tmp_path, monkeypatch):
    """The bar follows every step; the device is asked at the end of the epoch only."""
    moved, read = [], []
    monkeypatch.setattr(report.Display, "move", lambda self, step, loss: moved.append(step))
    fetch = LossLog.read

    def watched(self, *arguments):
        read.append(len(self._pending))
        fetch(self, *arguments)

    monkeypatch.setattr(LossLog, "read", watched)
    assert main(arguments(make_spec(recipe__epochs=1), tmp_path, root, log_steps=50)) == 0
    assert moved[:6] == [1, 2, 3, 4, 5, 6]
    assert [count for count in read if count] == [6]
