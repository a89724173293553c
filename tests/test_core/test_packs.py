"""Which runs may share a pack, what a pack leaves behind, and how a run of it is published."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fbt_core.errors import UserError
from fbt_core.packs import check_together, read_marker, stream_key, teacher_key
from fbt_core.publish import main as publish
from tests.test_core.engine_runs import (
    EVERYTHING,
    PLAIN,
    arguments,
    at_step,
    in_child,
    make_spec,
    network,
    weights_of,
    write_images,
)

TEACHER = network("teacher", weights=f"file:{'0' * 64}")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


def pack(specs, runs: Path, root: Path, marker: Path | None, **settings) -> list[str]:
    """The command line of a pack."""
    command = arguments(specs[0], runs, root, **settings)
    command += [word for spec in specs[1:] for word in ("--spec", spec.model_dump_json())]
    return command + (["--pack", str(marker)] if marker else [])


def test_what_may_share_a_pack():
    """The student's network and the optimiser may differ; a run without teacher goes with any."""
    rate = {"recipe__optimizer__learning_rate": 0.01, "recipe__label_smoothing": 0.2}
    specs = [make_spec(), make_spec(**rate), make_spec(teacher=TEACHER), make_spec(student=network("other"))]
    check_together(specs)
    assert len({stream_key(spec) for spec in specs}) == 1
    assert [teacher_key(spec) is None for spec in specs] == [True, True, False, True]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 4}, "seed"),
        ({"dataset__image_size": 64}, "dataset"),
        ({"recipe__batch_size": 8}, "recipe.batch_size"),
        ({"recipe__epochs": 3}, "recipe.epochs"),
        ({"recipe__precision": "bfloat16"}, "recipe.precision"),
        ({"recipe__normalisation_batch": 8}, "recipe.normalisation_batch"),
        ({"recipe__allow_changed_batch": True}, "recipe.allow_changed_batch"),
        ({"recipe__augmentation": {**PLAIN, "flip": 0.0}}, "recipe.augmentation"),
        ({"student": {**network(), "mean": (0.5, 0.5, 0.5)}}, "student.mean"),
        ({"student": {**network(), "std": (0.5, 0.5, 0.5)}}, "student.std"),
        ({"test_crop": {"share": 0.9, "interpolation": "bilinear"}}, "test_crop"),
        ({"teacher": {**TEACHER, "weights": f"file:{'1' * 64}"}}, "teacher"),
        ({"recipe__teacher_normalisation": "student"}, "recipe.teacher_normalisation"),
    ],
)
def test_what_may_not(changes, name):
    specs = [make_spec(teacher=TEACHER), make_spec(**{"teacher": TEACHER, **changes})]
    with pytest.raises(UserError, match=f"cannot share a pack with {specs[0].id}: {name} differ"):
        check_together(specs)


def test_smoothing_counts_where_targets_are_mixed():
    specs = [make_spec(EVERYTHING), make_spec(EVERYTHING, recipe__label_smoothing=0.2)]
    with pytest.raises(UserError, match="recipe.label_smoothing differ"):
        check_together(specs)


def test_a_run_named_twice_is_refused():
    with pytest.raises(UserError, match="named more than once"):
        check_together([make_spec(), make_spec()])


@pytest.fixture(scope="module")
def three():
    return [make_spec(recipe__optimizer__learning_rate=rate) for rate in (0.05, 0.02, 0.01)]


def test_a_pack_leaves_results_that_are_published_run_by_run(three, root, tmp_path, capfd):
    """Nothing that a workflow declares is there before; published results come back if they are deleted."""
    marker, runs = tmp_path / "packs" / "one.json", tmp_path / "runs"
    assert in_child(arguments(three[2], runs, root)) == 0
    assert in_child(pack(three, runs, root, marker)) == 0
    states = {run: ending.state for run, ending in read_marker(marker).items()}
    assert states == dict(zip((spec.id for spec in three), ("ready", "ready", "complete"), strict=True))
    folder = runs / three[0].id
    assert {path.name for path in (folder / "ready").iterdir()} == {"metrics.json", "weights.safetensors"}
    assert not (folder / "metrics.json").exists() and not (folder / "weights.safetensors").exists()
    for _ in range(2):
        assert publish([three[0].id, "--runs", str(runs), "--pack", str(marker)]) == 0
        assert (folder / "metrics.json").stat().st_mtime_ns >= marker.stat().st_mtime_ns
        digest = json.loads((folder / "metrics.json").read_text())["weights_sha256"]
        assert (
            subprocess.check_output(["sha256sum", folder / "weights.safetensors"]).split()[0].decode()
            == digest
        )
        (folder / "metrics.json").unlink()
        (folder / "weights.safetensors").unlink()
    # Alone it is not trained again either.
    assert in_child(arguments(three[0], runs, root), at_step(1, lambda: os._exit(97))) == 0
    assert weights_of(runs, three[0])


def test_what_cannot_be_published_says_why(tmp_path, capsys):
    runs, marker = tmp_path / "runs", tmp_path / "pack.json"
    command = [make_spec().id, "--runs", str(runs), "--pack", str(marker)]
    assert publish(command) == 1
    assert "no pack has ended there" in capsys.readouterr().err
    marker.write_text(json.dumps({"members": {"other": {"state": "ready", "error": None}}}))
    assert publish(command) == 1
    assert f"did not train {command[0]}" in capsys.readouterr().err
    marker.write_text(json.dumps({"members": {command[0]: {"state": "failed", "error": "the loss is nan"}}}))
    assert publish(command) == 1
    assert capsys.readouterr().err == "error: the loss is nan\n"
    marker.write_text(json.dumps({"members": {command[0]: {"state": "ready", "error": None}}}))
    assert publish(command) == 1
    assert "are gone" in capsys.readouterr().err


def test_publishing_needs_no_torch():
    program = "import sys, fbt_core.publish; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_pack_is_interrupted_and_continued_like_a_run(three, root, tmp_path):
    marker, runs, alone = tmp_path / "pack.json", tmp_path / "runs", tmp_path / "alone"
    command = pack(three, runs, root, marker)
    assert in_child(command, at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))) == 75
    assert not marker.exists()
    assert in_child(command) == 0
    assert {ending.state for ending in read_marker(marker).values()} == {"ready"}
    for spec in three:
        assert in_child(arguments(spec, alone, root)) == 0
        assert publish([spec.id, "--runs", str(runs), "--pack", str(marker)]) == 0
        assert weights_of(runs, spec) == weights_of(alone, spec)
