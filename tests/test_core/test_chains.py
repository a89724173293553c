"""Chains of runs: a student goes on from an earlier run's best weights, or learns from that run's network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fbt_core import train as training
from fbt_core.learner import Learner
from fbt_core.run import main
from fbt_core.run_files import WEIGHTS_FILE
from fbt_core.weights import file_sha256, state_sha256
from tests.test_core.engine_runs import KD, arguments, make_spec, metrics_of, network, write_images

SMALL = {"channels": (4, 4, 4, 4)}
EPOCHS = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


def train(spec, folder: Path, root: Path) -> Path:
    """Run the engine in a child whose first epoch counts as the best; the weights at chosen moments.

    The folder that is returned holds the digests of student and teacher right before the first step, and of
    the student after each epoch.
    """
    seen = folder / f"seen-{spec.id}"
    seen.mkdir(parents=True)
    child = os.fork()
    if not child:
        code = 99
        try:
            watch(seen)
            code = main(arguments(spec, folder, root))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return seen


def watch(seen: Path) -> None:
    step, note = training.train_step, Learner.note_epoch

    def watched_step(learners, stream, teacher, key, raw):
        if (key.epoch, key.step) == (0, 0):
            method = learners[0].method
            networks = {"student": method.student, "teacher": method.teacher}
            digests = {name: state_sha256(model.network) for name, model in networks.items() if model}
            (seen / "start.json").write_text(json.dumps(digests))
        step(learners, stream, teacher, key, raw)

    def watched_epoch(learner, score, ema, fused):
        epoch = learner.state.epoch + 1
        (seen / f"epoch{epoch}").write_text(state_sha256(learner.method.student.network))
        note(learner, {**score, "top1": 50.0 - epoch}, ema, fused)

    training.train_step, Learner.note_epoch = watched_step, watched_epoch


def start_of(seen: Path) -> dict[str, str]:
    return json.loads((seen / "start.json").read_text())


def best_of(folder: Path, spec, seen: Path) -> str:
    """The digest of a run's weights, which are those after its best epoch, the first."""
    metrics = metrics_of(folder, spec)
    epochs = [(seen / f"epoch{epoch}").read_text() for epoch in range(1, EPOCHS + 1)]
    assert metrics["best"]["epoch"] == 1
    assert len(set(epochs)) == EPOCHS
    assert file_sha256(folder / spec.id / WEIGHTS_FILE) == metrics["weights_sha256"] == epochs[0]
    return metrics["weights_sha256"]


def kd_spec(student, teacher, **changes):
    method = {"name": "kd", "parameters": KD, "revision": 1}
    return make_spec(student=student, teacher=teacher, method=method, recipe__epochs=EPOCHS, **changes)


def of_run(spec, architecture: str = "resnet18", **options):
    return network(architecture, f"run:{spec.id}", **options)


def test_each_phase_starts_from_the_best_weights_of_the_phase_before(root, tmp_path):
    """MTPD: one student, two teachers one after the other."""
    teachers = [make_spec(student=network("teacher"), recipe__epochs=EPOCHS, seed=seed) for seed in (1, 2)]
    taught = [best_of(tmp_path, spec, train(spec, tmp_path, root)) for spec in teachers]
    first = kd_spec(network(**SMALL), of_run(teachers[0], "teacher"))
    seen = train(first, tmp_path, root)
    assert start_of(seen)["teacher"] == taught[0]
    end_of_first = best_of(tmp_path, first, seen)
    second = kd_spec(of_run(first, **SMALL), of_run(teachers[1], "teacher"))
    seen = train(second, tmp_path, root)
    assert start_of(seen) == {"student": end_of_first, "teacher": taught[1]}
    metrics = metrics_of(tmp_path, second)
    assert metrics["initial_weights_sha256"] == end_of_first
    assert metrics["teacher_weights_sha256"] == taught[1]
    assert best_of(tmp_path, second, seen) != end_of_first


def test_the_assistant_teaches_with_its_best_weights(root, tmp_path):
    """TAKD: teacher, assistant, student."""
    teacher = make_spec(student=network("teacher"), recipe__epochs=EPOCHS)
    train(teacher, tmp_path, root)
    assistant = kd_spec(network("assistant", **SMALL), of_run(teacher, "teacher"))
    best = best_of(tmp_path, assistant, train(assistant, tmp_path, root))
    student = kd_spec(network(), of_run(assistant, "assistant", **SMALL))
    assert start_of(train(student, tmp_path, root))["teacher"] == best
    metrics = metrics_of(tmp_path, student)
    assert metrics["teacher_weights_sha256"] == best
    assert metrics["initial_weights_sha256"] not in (best, metrics["weights_sha256"])


def test_a_run_without_teacher_notes_its_random_start(root, tmp_path):
    spec = make_spec(recipe__epochs=EPOCHS)
    seen = train(spec, tmp_path, root)
    metrics = metrics_of(tmp_path, spec)
    assert metrics["teacher_weights_sha256"] is None
    assert metrics["initial_weights_sha256"] == start_of(seen)["student"]
