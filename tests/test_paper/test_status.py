"""`fbt status`, `fbt show` and `fbt diff` on made-up run folders in every state."""

from __future__ import annotations

import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from fbt_paper import show, status
from fbt_paper.journal import read_jobs
from fbt_paper.run_folder import read_history, read_tail
from fbt_paper.show_status import render_overview
from fbt_paper.status import JobRecord, observe_tables
from tests.test_paper.made_up_results import make_spec, write_progress, write_run

NOW = datetime(2026, 11, 22, 21, 0, 0, tzinfo=UTC)
JUST_NOW = (NOW - timedelta(seconds=3)).isoformat()
LONG_AGO = (NOW - timedelta(hours=2)).isoformat()


def as_text(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, dict[str, object]]:
    """One run in each state, as files only."""
    teacher = make_spec("swin_t")
    specs = {"done": teacher, "waiting": make_spec("swin_p")}
    specs["running"] = make_spec("resnet18", "swin_t", teacher.id, "kd", seed=1)
    specs["failed"] = make_spec("resnet18", "swin_t", teacher.id, "kd", seed=2)
    specs["silent"] = make_spec("resnet18", "swin_t", teacher.id, "kd", seed=3)
    specs["interrupted"] = make_spec("resnet18", "swin_t", teacher.id, "kd", seed=4)
    specs["queued"] = make_spec("resnet18", "swin_t", teacher.id, "kd", seed=5)
    write_run(tmp_path, teacher, top1=85.0)
    write_progress(tmp_path, specs["running"], "running", JUST_NOW)
    write_progress(tmp_path, specs["failed"], "failed", JUST_NOW, error="loss is not finite at step 7")
    write_progress(tmp_path, specs["silent"], "running", LONG_AGO)
    write_progress(tmp_path, specs["interrupted"], "interrupted", JUST_NOW, attempt=2)
    return tmp_path, specs


def observe(world: tuple[Path, dict], jobs: dict[str, JobRecord] | None = None) -> status.Overview:
    runs, specs = world
    tables = {"table5": [spec.id for spec in specs.values()], "table2": [specs["done"].id]}
    jobs = jobs or {specs["queued"].id: JobRecord("17_3", "PENDING", "Resources")}
    return observe_tables(runs, tables, {spec.id: spec for spec in specs.values()}, jobs, NOW)


def test_every_state_is_recognised(world):
    _, specs = world
    by_run = {entry.run: entry for entry in observe(world).tables["table5"]}
    assert {name: by_run[spec.id].state for name, spec in specs.items()} == {name: name for name in specs}


def test_running_says_epoch_score_speed_and_time_left(world):
    entry = {e.run: e for e in observe(world).tables["table5"]}[world[1]["running"].id]
    assert (entry.epoch, entry.epochs, entry.best_top1, entry.images_per_second) == (2, 4, 71.5, 512.0)
    assert entry.seconds_left == 20.0
    assert entry.top1 == pytest.approx(76.44, abs=0.01)


def test_failed_run_names_error_log_and_last_lines(world):
    entry = {e.run: e for e in observe(world).tables["table5"]}[world[1]["failed"].id]
    assert entry.note == "loss is not finite at step 7"
    assert entry.last_lines[-1].startswith("epoch 2 top-1")
    assert entry.log.endswith("log.txt")


def test_totals_count_a_shared_run_once(world):
    overview = observe(world)
    assert sum(overview.totals.values()) == 7
    assert overview.tables["table2"][0] is overview.tables["table5"][0]


def test_restarts_come_from_the_newest_source(world):
    run = world[1]["interrupted"].id
    entry = {
        e.run: e
        for e in observe(world, {run: JobRecord("4", "PENDING", "Priority", restarts=3)}).tables["table5"]
    }
    assert (entry[run].state, entry[run].restarts) == ("queued", 3)


def test_waiting_names_the_run_it_needs(tmp_path):
    teacher = make_spec("swin_t")
    student = make_spec("resnet18", "swin_t", teacher.id, "kd")
    overview = observe_tables(tmp_path, {"t": [student.id]}, {student.id: student}, {}, NOW)
    assert overview.tables["t"][0].note == f"needs {teacher.id.removeprefix('fashion_mnist-')}"


def test_expected_end_shares_the_rest_among_the_running(tmp_path):
    done, running, waiting = make_spec(seed=0), make_spec(seed=1), make_spec(seed=2)
    write_run(tmp_path, done)  # 10 s an epoch, four epochs
    write_progress(tmp_path, running, "running", JUST_NOW, epoch=2)
    specs = {spec.id: spec for spec in (done, running, waiting)}
    overview = observe_tables(tmp_path, {"t": list(specs)}, specs, {}, NOW)
    assert overview.expected_end == NOW + timedelta(seconds=20 + 40)


def test_a_start_is_not_called_nothing(tmp_path):
    spec = make_spec()
    jobs = {spec.id: JobRecord("9", "RUNNING")}
    overview = observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, jobs, NOW)
    text = as_text(render_overview(overview, "smoke", each_run=True))
    assert "> running" in text and "starting" in text
    assert "Under way; the expected end is told after the first epoch." in text


def test_nothing_running_has_no_expected_end(tmp_path):
    spec = make_spec()
    assert observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, {}, NOW).expected_end is None


def test_failed_job_without_a_started_engine(tmp_path):
    spec = make_spec()
    log = tmp_path / "job.err"
    log.write_text("No space left on device\n")
    jobs = {spec.id: JobRecord("9", "OUT_OF_MEMORY", "exceeded memory limit", log=str(log))}
    entry = observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, jobs, NOW).tables["t"][0]
    assert (entry.state, entry.note, entry.last_lines) == (
        "failed",
        "exceeded memory limit",
        ("No space left on device",),
    )


def test_half_written_files_do_not_disturb(tmp_path):
    spec = make_spec()
    folder = write_progress(tmp_path, spec, "running", JUST_NOW, epoch=2)
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"epoch": 3, "top1"')
    assert [record["epoch"] for record in read_history(folder)] == [1, 2]
    (folder / "progress.json").write_text('{"epoch": 1, "sta')
    entry = observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, {}, NOW).tables["t"][0]
    assert (entry.state, entry.note) == ("running", "starting")


def test_a_run_that_never_told_its_progress_is_silent_after_a_while(tmp_path):
    spec = make_spec()
    folder = write_progress(tmp_path, spec, "running", JUST_NOW)
    (folder / "progress.json").unlink()
    os.utime(folder / "spec.json", times=((NOW - timedelta(hours=1)).timestamp(),) * 2)
    entry = observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, {}, NOW).tables["t"][0]
    assert (entry.state, entry.note) == ("silent", "wrote nothing for 1 h 00")


def test_tail_reads_only_the_end_of_a_large_log(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("x" * 200_000 + "\nlast but one\n\nlast\n")
    assert read_tail(log, 2) == ("last but one", "last")


def test_rendering_says_all_of_it_in_words(world):
    text = as_text(render_overview(observe(world), "smoke", each_run=True))
    for words in (
        "> running",
        "2 of 4",
        "512",
        "20 s",
        "loss is not finite at step 7",
        "log.txt",
        "job 17_3; Resources",
    ):
        assert words in text
    assert "7 runs: 1 running, 1 silent, 1 interrupted, 1 failed, 1 queued, 1 waiting, 1 done" in text
    assert "wrote nothing for 2 h 00" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (42, "42 s"), (400, "7 min"), (11100, "3 h 05"), (187200, "2 d 4 h"), (3599, "1 h 00")],
)
def test_durations(seconds, words):
    assert status.format_duration(seconds) == words


def test_find_run_by_any_unique_part():
    ids = ["fashion_mnist-kd-swin_t-resnet18-aaaaaaaaaa", "fashion_mnist-fbt-swin_t-resnet18-bbbbbbbbbb"]
    assert show.find_run("bbbb", ids) == ids[1]
    with pytest.raises(show.UnknownRunError, match="fits 2 runs.*kd-swin_t"):
        show.find_run("resnet18", ids)
    with pytest.raises(show.UnknownRunError, match="nearest: fashion_mnist-kd-swin_t"):
        show.find_run("fashion_mnist-kd-swin_t-resnet34-aaaaaaaaaa", ids)


def test_diff_lists_exactly_what_differs():
    first, second = make_spec(seed=0, method="kd", weight=1.0), make_spec(seed=1, method="kd", weight=2.0)
    differences = show.compare_records(first.model_dump(mode="json"), second.model_dump(mode="json"))
    assert differences == [("method.parameters.weight", 1.0, 2.0), ("seed", 0, 1)]


def test_show_and_diff_print_settings_history_and_gap(tmp_path):
    specs = [make_spec(seed=seed) for seed in (0, 1)]
    runs = [write_run(tmp_path, spec) for spec in specs]
    records = [status.read_json(run / "metrics.json") for run in runs]
    text = as_text(show.render_run(specs[0].id, records[0]["spec"], records[0]["history"], records[0]))
    for words in (
        "recipe.optimizer.learning_rate",
        "0.001",
        "cross_entropy",
        "provenance.git_sha",
        "best top-1",
    ):
        assert words in text
    sides = [(spec.id, record["spec"], record) for spec, record in zip(specs, records, strict=True)]
    text = as_text(show.render_difference(*sides))
    assert "seed" in text and "+0.50" in text


def write_entry(folder: Path, run: str, **fields: object) -> Path:
    """One file of the executor's journal, with the fields its journal.py lists."""
    journal = folder / "journal"
    journal.mkdir(parents=True, exist_ok=True)
    entry = {
        "rule": "train",
        "wildcards": {"run": run},
        "job_id": "12_3",
        "state": "PENDING",
        "submitted": 1.0,
    }
    path = journal / f"{run}-{fields.get('submitted', 1.0)}.json"
    path.write_text(json.dumps({**entry, **fields}))
    return path


def test_journal_gives_the_newest_job_of_a_run(tmp_path):
    write_entry(tmp_path, "r", state="TIMEOUT", submitted=5.0, job_id="4")
    write_entry(tmp_path, "r", state="PENDING", submitted=9.0, reason="Resources", restarts=2)
    (tmp_path / "journal" / "broken.json").write_text('{"wild')
    (tmp_path / "journal" / "table.json").write_text(json.dumps({"rule": "build_table", "wildcards": {}}))
    jobs = read_jobs(tmp_path)
    assert list(jobs) == ["r"]
    assert (jobs["r"].job, jobs["r"].state, jobs["r"].reason, jobs["r"].restarts) == (
        "12_3",
        "PENDING",
        "Resources",
        2,
    )


def test_the_jobs_own_record_beats_a_journal_nobody_keeps(tmp_path):
    record = tmp_path / "record.json"
    record.write_text(
        json.dumps(
            {
                "starts": [{}, {}, {}],
                "queue_wait_s": 90.0,
                "peak_memory_mb": 512.0,
                "ended": 3.0,
                "exit_code": 1,
            }
        )
    )
    write_entry(tmp_path, "r", state="RUNNING", record=str(record), error_log=str(tmp_path / "gone"))
    job = read_jobs(tmp_path)["r"]
    assert (job.state, job.restarts, job.queue_wait_s, job.peak_memory_mb) == ("FAILED", 2, 90.0, 512.0)


def test_no_journal_no_jobs(tmp_path):
    assert read_jobs(tmp_path) == {}


def test_costs_of_a_run_are_shown(tmp_path):
    spec = make_spec()
    write_run(tmp_path, spec)
    jobs = {
        spec.id: JobRecord("9", "COMPLETED", restarts=3, queue_wait_s=600, gpu_hours=1.25, peak_memory_mb=900)
    }
    overview = observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, jobs, NOW)
    text = as_text(render_overview(overview, "smoke", each_run=True))
    assert overview.gpu_hours == 1.25
    for words in ("3x", "10 min", "1.2", "900", "1.2 GPU hours used", "All done."):
        assert words in text
