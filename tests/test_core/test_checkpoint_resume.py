"""A run killed anywhere and started again ends with the same bytes as one that was never touched."""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path

import pytest

from tests.test_core.engine_runs import (
    EVERYTHING,
    arguments,
    at_event,
    at_test_batch,
    count_events,
    in_child,
    make_spec,
    measured,
    weights_of,
    write_images,
)

EVERY_STEP = 1e-9
KILL = signal.SIGKILL


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """An undisturbed run with every augmentation on, EMA too: its spec, its results, its number of events."""
    spec, runs = make_spec(EVERYTHING), tmp_path_factory.mktemp("whole")
    events = count_events(arguments(spec, runs, root, checkpoint_minutes=EVERY_STEP))
    return spec, (weights_of(runs, spec), measured(runs, spec)), events


def kill() -> None:
    os.kill(os.getpid(), KILL)


def killed_at(spec, runs, root, moments, **settings) -> int:
    """Kill the run at each of these events, one attempt after the other, then let it end; how many kills."""
    command = arguments(spec, runs, root, checkpoint_minutes=EVERY_STEP, **settings)
    codes = [in_child(command, at_event(moment, kill)) for moment in moments]
    assert set(codes) <= {0, -KILL}
    assert in_child(command) == 0
    return codes.count(-KILL)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_run_ends_with_the_same_bytes(whole, root, tmp_path, seed):
    spec, expected, events = whole
    moments = [random.Random(seed).randrange(1, events // 2) for _ in range(2)]
    assert killed_at(spec, tmp_path, root, moments) == 2
    assert (weights_of(tmp_path, spec), measured(tmp_path, spec)) == expected


def test_killed_with_loader_processes(whole, root, tmp_path):
    spec, expected, events = whole
    assert killed_at(spec, tmp_path, root, [events // 3], workers=2) == 1
    assert (weights_of(tmp_path, spec), measured(tmp_path, spec)) == expected


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("end", [kill, lambda: os.kill(os.getpid(), signal.SIGTERM)], ids=["kill", "save"])
def test_ended_during_an_evaluation(whole, root, tmp_path, batch, end):
    """Two batches of test images for the network, two for its averaged copy."""
    spec, expected, _ = whole
    command = arguments(spec, tmp_path, root, checkpoint_minutes=EVERY_STEP)
    code = 75 if end is not kill else -KILL
    assert in_child(command, at_test_batch(batch, end)) == code
    assert in_child(command) == 0
    # A kill costs the checkpoint that was being written, a signal nothing.
    steps = "56" if end is kill else "6"
    assert re.search(f"resumed at epoch 1, step [{steps}]", (tmp_path / spec.id / "log.txt").read_text())
    assert (weights_of(tmp_path, spec), measured(tmp_path, spec)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_twenty_kills(whole, root, tmp_path, seed):
    """Four kills each, at random events of what is left; with 0, 1 and 2 loader processes."""
    spec, expected, events = whole
    moments = [random.Random(100 + seed).randrange(1, events // 4) for _ in range(4)]
    assert killed_at(spec, tmp_path, root, moments, workers=seed % 3) == 4
    assert (weights_of(tmp_path, spec), measured(tmp_path, spec)) == expected


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_leaves_with_75(whole, root, tmp_path, number):
    spec, expected, _ = whole
    command = arguments(spec, tmp_path, root)
    assert in_child(command, at_event(8, lambda: os.kill(os.getpid(), number))) == 75
    folder = tmp_path / spec.id
    assert (folder / "last.pt").exists()
    assert not (folder / "metrics.json").exists()
    assert '"interrupted"' in (folder / "progress.json").read_text()
    assert in_child(command) == 0
    assert "resumed at epoch" in (folder / "log.txt").read_text()
    assert (weights_of(tmp_path, spec), measured(tmp_path, spec)) == expected
