"""Jobs of one node start up a few at a time."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
from snakemake_executor_plugin_submitit import gate
from snakemake_executor_plugin_submitit.gate import place_to_start
from snakemake_executor_plugin_submitit.job import SnakemakeJob


def start_another(folder: Path) -> tuple[threading.Thread, list[Path | None]]:
    """Another job of the node that wants a place."""
    got: list[Path | None] = []

    def wait() -> None:
        with place_to_start(folder, 1) as place:
            got.append(place)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, got


def test_a_job_waits_until_a_place_is_given_back(tmp_path: Path) -> None:
    with place_to_start(tmp_path, 1) as place:
        assert place is not None
        thread, got = start_another(tmp_path)
        time.sleep(0.3)
        assert not got
        place.unlink()  # the program begins, the job goes on
        thread.join(10)
        assert got == [place]


def test_there_are_as_many_places_as_asked(tmp_path: Path) -> None:
    with place_to_start(tmp_path, 2) as one, place_to_start(tmp_path, 2) as other:
        assert {one, other} == {tmp_path / "place0", tmp_path / "place1"}
    assert not list(tmp_path.iterdir())


def test_a_place_that_nobody_gives_back_is_free_again(tmp_path: Path) -> None:
    left = tmp_path / "place0"
    left.write_text("a job that was killed")
    os.utime(left, (1.0, 1.0))
    with place_to_start(tmp_path, 1) as place:
        assert place == left


def test_a_place_taken_over_by_another_job_stays_its(tmp_path: Path) -> None:
    with place_to_start(tmp_path, 1) as place:
        assert place is not None
        place.write_text("another job")
    assert place.exists()


def test_a_job_starts_without_a_place_where_none_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with place_to_start(tmp_path / "file", 1) as place:
        assert place is None
    monkeypatch.setattr(gate, "PATIENCE_S", 0.1)
    (tmp_path / "place0").touch()
    with place_to_start(tmp_path, 1) as place:
        assert place is None


def test_the_rules_shell_gives_the_place_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the program runs, the place is free for another job."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = tmp_path / "script.sh"
    places = f"{tmp_path}/snakemake-submitit-{os.getuid()}"
    (tmp_path / "program").write_text(f'ls {places} > during\necho "<$SNAKEMAKE_SUBMITIT_PLACE>" >> during\n')
    script.write_text(f"#!/bin/sh\nls {places} > before\nbash program\n")
    job = SnakemakeJob(
        script, tmp_path, tmp_path / "record.json", cluster="local", runtime_s=60.0, signal_s=10.0,
        max_timeouts=1, gpus=0, launcher="", submitted=time.time(),
    )  # fmt: skip
    assert job() == {"exit_code": 0}
    assert (tmp_path / "before").read_text() == "place0\n"
    assert (tmp_path / "during").read_text() == "<>\n"
