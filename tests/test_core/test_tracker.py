"""A tracker gets each epoch's numbers, and whatever becomes of it, the training ends as without it."""

import importlib
import json
import os
import stat
import sys
import time

import pytest

from fbt_core import tracker
from fbt_core.errors import UserError
from fbt_core.run import main
from fbt_core.spec import ExecutionSettings
from fbt_core.tracker import KINDS, Tracker, numbers_of
from fbt_paper.config.load import ConfigError, load
from tests.test_core.engine_runs import arguments, make_spec, measured, write_images

LINE = {"epoch": 1, "loss": 0.5, "terms": {"labels": 0.2}, "top1_ema": None, "finished": "2026-01-01"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plain(root, tmp_path_factory):
    """What a run measures without a tracker."""
    runs, spec = tmp_path_factory.mktemp("plain"), make_spec()
    assert main(arguments(spec, runs, root)) == 0
    return measured(runs, spec)


def train_with(kind, root, tmp_path):
    """A run that is watched; its folder, what it measured, and its log."""
    spec = make_spec()
    assert main(arguments(spec, tmp_path, root, tracker=kind)) == 0
    folder = tmp_path / spec.id
    return folder, measured(tmp_path, spec), (folder / "log.txt").read_text()


def test_tensorboard_holds_the_run_s_history(root, tmp_path, plain):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, scores, log = train_with("tensorboard", root, tmp_path)
    assert scores == plain and "warning" not in log
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for name, of in (
        ("top1", lambda line: line["top1"]),
        ("terms/labels", lambda line: line["terms"]["labels"]),
    ):
        shown = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(name)]
        assert shown == [(line["epoch"], pytest.approx(of(line))) for line in history]


@pytest.mark.may_skip
@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_the_others_work_without_a_network(kind, root, tmp_path, plain, monkeypatch):
    pytest.importorskip(kind)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    folder, scores, log = train_with(kind, root, tmp_path)
    assert scores == plain
    assert "warning" not in log, (folder / tracker.TRACKER_LOG).read_text()
    written = {"wandb": folder.glob("wandb/offline-run-*/*.wandb"), "trackio": tmp_path.glob("trackio/*.db")}
    assert list(written[kind]), (folder / tracker.TRACKER_LOG).read_text()


def pretend(tmp_path, monkeypatch, script):
    """Put a program in the tracker's place."""  # words: allow
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(tracker, "END_SECONDS", 0.5)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize(
    ("script", "warning"),
    [
        ("raise SystemExit('quota')", "tensorboard has ended"),
        ("import sys; sys.stdin.readline(); sys.exit(3)", "tensorboard has ended"),
        ("import time; time.sleep(100)", "tensorboard was still busy after 0 s"),
    ],
)
def test_a_tracker_that_fails_or_hangs_stops_nothing(script, warning, root, tmp_path, plain, monkeypatch):
    pretend(tmp_path, monkeypatch, script)
    begun = time.monotonic()
    _, scores, log = train_with("tensorboard", root, tmp_path)
    assert scores == plain and time.monotonic() - begun < 60
    assert f"warning: {warning}; the run is whole without it (see tracker.log)" in log
    assert log.count("warning: tensorboard") == 1


def test_a_tracker_that_does_not_read_is_given_up_before_the_pipe_blocks(tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, "import time; time.sleep(100)")
    notes = []
    watched = Tracker("tensorboard", tmp_path, notes.append)
    for _ in range(3000):
        watched.epoch(LINE)
    watched.close()
    assert len(notes) == 1 and "does not answer" in notes[0]
    assert watched.process.poll() is not None


def test_one_that_is_not_installed_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="execution.tracker: wandb: wandb is not installed; pip install wandb"
    ):
        Tracker("wandb", tmp_path, print)


def test_only_numbers_are_sent():
    assert numbers_of(LINE) == {"epoch": 1, "loss": 0.5, "terms/labels": 0.2}


def test_the_former_key_says_what_it_is_now():
    with pytest.raises(ConfigError, match="`tensorboard: ...` is now `tracker: tensorboard`"):
        load(overrides={"execution": {"tensorboard": True}})
    assert ExecutionSettings.model_validate({"tensorboard": True}).tracker == "tensorboard"
    assert ExecutionSettings.model_validate({"tensorboard": False}).tracker == "none"
    assert set(KINDS) == set(tracker.SINKS)


def test_off_means_that_nothing_is_started(root, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker.subprocess, "Popen", lambda *_: os.abort())
    folder, _, _ = train_with("none", root, tmp_path)
    assert not (folder / tracker.TRACKER_LOG).exists()
