"""`fbt status`, `fbt show` and `fbt diff` on made-up run folders in every state."""

from __future__ import annotations

import io
import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from fbt_core.errors import UserError
from fbt_core.run_files import read_history, read_json, read_tail
from fbt_paper.plan.packs import PackFiles
from fbt_paper.status import show, states
from fbt_paper.status.jobs import Job, newest_jobs
from fbt_paper.status.overview import Overview, observe_tables
from fbt_paper.status.show_status import render_overview
from fbt_paper.status.states import (
    STATE_TABLE,
    STATES,
    RunStatus,
    epoch_seconds,
    format_duration,
    without_dataset,
)
from tests.test_paper.made_up_results import make_history, make_spec, write_history, write_progress, write_run

NOW = datetime(2026, 11, 22, 21, 0, 0, tzinfo=UTC)
JUST_NOW = (NOW - timedelta(seconds=3)).isoformat()
LONG_AGO = (NOW - timedelta(hours=2)).isoformat()


def as_text(renderable: object, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
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


def observe(world: tuple[Path, dict], jobs: dict[str, Job] | None = None) -> Overview:
    runs, specs = world
    tables = {"table5": [spec.id for spec in specs.values()], "table2": [specs["done"].id]}
    jobs = jobs or {specs["queued"].id: Job("17_3", "PENDING", "Resources")}
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
        e.run: e for e in observe(world, {run: Job("4", "PENDING", "Priority", restarts=3)}).tables["table5"]
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
    jobs = {spec.id: Job("9", "RUNNING")}
    overview = observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, jobs, NOW)
    text = as_text(render_overview(overview, "smoke", each_run=True))
    assert "> running" in text and "starting" in text
    assert "Under way; the expected end is known once every kind of run has finished an epoch." in text


def test_no_end_is_shown_while_nothing_is_known_of_an_unfinished_run(tmp_path):
    """The first steps say nothing of evaluations to come, and runs of one dataset nothing of another's."""
    first, second = make_spec(seed=1), make_spec(seed=2)
    specs = {spec.id: spec for spec in (first, second)}
    folder = write_progress(tmp_path, first, "running", JUST_NOW, epoch=1, seconds_left=4.0)
    write_history(tmp_path, first, [])
    overview = observe_tables(tmp_path, {"t": list(specs)}, specs, {}, NOW)
    assert overview.expected_end is None
    assert overview.tables["t"][0].seconds_left is None
    other = make_spec(seed=3)
    other = other.model_copy(update={"dataset": other.dataset.model_copy(update={"name": "cifar100"})})
    write_run(tmp_path, other)
    specs[other.id] = other
    assert observe_tables(tmp_path, {"t": list(specs)}, specs, {}, NOW).expected_end is None
    like_them = make_spec("swin_t")  # the same dataset: 10 s an epoch, four epochs
    write_run(tmp_path, like_them)
    specs[like_them.id] = like_them
    overview = observe_tables(tmp_path, {"t": list(specs)}, specs, {}, NOW)
    assert overview.expected_end == NOW + timedelta(seconds=40 + 40)
    assert folder.exists()


def test_an_epoch_lasts_until_the_next_one_ends(tmp_path):
    history = [{"epoch": n, "seconds": 10.0, "attempt": 0} for n in (1, 2, 3)]
    for record, minute in zip(history, (0, 1, 2), strict=True):
        record["finished"] = f"2026-11-22T21:{minute:02d}:00+00:00"
    assert epoch_seconds(history) == 60.0
    history[2]["attempt"] = 1  # a restart lies between
    history[2]["finished"] = "2026-11-23T09:00:00+00:00"
    assert epoch_seconds(history) == 60.0
    assert epoch_seconds(history[:1]) == 10.0
    assert epoch_seconds([]) is None


def test_nothing_running_has_no_expected_end(tmp_path):
    spec = make_spec()
    assert observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, {}, NOW).expected_end is None


def test_failed_job_without_a_started_engine(tmp_path):
    spec = make_spec()
    log = tmp_path / "job.err"
    log.write_text("No space left on device\n")
    jobs = {spec.id: Job("9", "OUT_OF_MEMORY", "exceeded memory limit", log=str(log))}
    entry = observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, jobs, NOW).tables["t"][0]
    assert (entry.state, entry.note, entry.last_lines) == (
        "failed",
        "exceeded memory limit",
        ("No space left on device",),
    )


def look_at(tmp_path: Path, spec, job: Job) -> RunStatus:
    return observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, {spec.id: job}, NOW).tables["t"][0]


def test_a_job_killed_from_outside_shows_the_jobs_own_log(tmp_path):
    spec = make_spec()
    write_progress(tmp_path, spec, "running", JUST_NOW)
    log = tmp_path / "17_0_log.err"
    log.write_text("slurmstepd: error: Detected 1 oom-kill event\n")
    job = Job("17", "OUT_OF_MEMORY", "exceeded its memory", log=str(log), begun=1.0, ended=NOW.timestamp())
    entry = look_at(tmp_path, spec, job)
    assert (entry.state, entry.log) == ("failed", str(log))
    assert entry.last_lines == ("slurmstepd: error: Detected 1 oom-kill event",)
    log.write_text("")  # nothing in it: the run's own log is named, with its own lines
    entry = look_at(tmp_path, spec, job)
    assert entry.log.endswith(f"{spec.id}/log.txt") and entry.last_lines[-1].startswith("epoch 2 top-1")


def test_the_engines_own_failure_shows_the_runs_log(tmp_path):
    spec = make_spec()
    write_progress(tmp_path, spec, "failed", JUST_NOW, error="loss is not finite")
    log = tmp_path / "job.err"
    log.write_text("srun: error: task 0: Exited with exit code 1\n")
    entry = look_at(tmp_path, spec, Job("17", "FAILED", "exit code 1", log=str(log)))
    assert (entry.note, Path(entry.log).name) == ("loss is not finite", "log.txt")
    assert entry.last_lines[-1].startswith("epoch 2 top-1")


LATER, EARLIER = NOW.timestamp() + 5, (NOW - timedelta(hours=3)).timestamp()


@pytest.mark.parametrize(
    ("written", "updated", "job", "expected"),
    [
        ("failed", JUST_NOW, Job("9", "PENDING", "Priority", begun=LATER), "queued"),
        ("failed", JUST_NOW, Job("9", "RUNNING", begun=LATER), "running"),
        ("failed", JUST_NOW, Job("9", "RUNNING", begun=EARLIER), "failed"),
        ("running", LONG_AGO, Job("9", "RUNNING", begun=LATER), "running"),
        ("running", LONG_AGO, Job("9", "PENDING", begun=LATER), "queued"),
        ("interrupted", LONG_AGO, Job("9", "RUNNING", begun=LATER), "running"),
        ("running", JUST_NOW, Job("9", "TIMEOUT", begun=EARLIER, ended=EARLIER), "running"),
        ("running", JUST_NOW, Job("9", "TIMEOUT", begun=EARLIER, ended=NOW.timestamp() - 9), "failed"),
        ("running", JUST_NOW, Job("9", "LOST", begun=EARLIER), "failed"),
    ],
)
def test_the_newest_evidence_counts(tmp_path, written, updated, job, expected):
    spec = make_spec()
    write_progress(tmp_path, spec, written, updated, error="disk full" if written == "failed" else None)
    entry = look_at(tmp_path, spec, job)
    assert entry.state == expected
    assert ("failed before: disk full" in entry.note) == (written == "failed" and expected != "failed")


def test_half_written_files_do_not_disturb(tmp_path):
    spec = make_spec()
    folder = write_progress(tmp_path, spec, "running", JUST_NOW, epoch=2)
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"epoch": 3, "top1"')
    assert [record["epoch"] for record in read_history(folder)] == [1, 2]
    (folder / "progress.json").write_text('{"epoch": 1, "sta')
    entry = observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, {}, NOW).tables["t"][0]
    assert (entry.state, entry.note) == ("running", "starting")


def test_a_run_that_never_wrote_its_progress_is_silent_after_a_while(tmp_path):
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
        "2/4",
        "512",
        "20 s",
        "loss is not finite at step 7",
        "log.txt",
        "job 17_3; Resources",
    ):
        assert words in text
    assert "7 runs: 1 running, 1 silent, 1 interrupted, 1 failed, 1 queued, 1 waiting, 1 done" in text
    assert "wrote nothing for 2 h 00" in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_run_loses_its_name_on_a_narrow_terminal(world, width):
    overview = observe(world)
    text = as_text(render_overview(overview, "smoke", each_run=True, width=width), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for entry in overview.tables["table5"]:
        name = without_dataset(entry.run)
        shown = [line for line in lines if line.startswith(f"{name} ")]
        assert shown and all(entry.state in line and f"{entry.epoch}/" in line for line in shown)
    running = next(line for line in lines if "> running" in line)
    assert "71.50" in running and "20 s" in running
    assert "512" in running
    note = next(i for i, line in enumerate(lines) if line.strip() == "job 17_3; Resources")
    assert "~ queued" in lines[note - 1]


def test_the_longest_names_of_the_plan_fit_80_columns(tmp_path):
    runs = [f"cifar100-reviewkd-convnext_t-resmlp_s12-{number:010x}" for number in range(3)]
    made = [RunStatus(run, "interrupted", 299, 300, best_top1=81.61, restarts=2) for run in runs]
    made[0] = RunStatus(runs[0], "running", 299, 300, best_top1=81.61, seconds_left=187200)
    overview = Overview({"t": tuple(made)}, {"running": 1, "interrupted": 2}, 0.0, None)
    lines = as_text(render_overview(overview, "paper", each_run=True, width=80), 80).splitlines()
    assert max(map(len, lines)) <= 80
    for run in runs:
        (line,) = [line for line in lines if line.startswith(run.removeprefix("cifar100-"))]
        assert "299/300" in line and "81.61" in line
    assert "    requeued 2x" in lines


def many(failed: int, running: int, waiting: int) -> Overview:
    states = ["failed"] * failed + ["running"] * running + ["waiting"] * waiting
    runs = tuple(
        RunStatus(
            f"cifar100-fbt-swin_t-resnet18-{i:010x}",
            state,
            1,
            300,
            note="disk full" if state == "failed" else "",
            log=f"results/paper/runs/{i}/log.txt" if state == "failed" else "",
            last_lines=("one", "two", "three") if state == "failed" else (),
        )
        for i, state in enumerate(states)
    )
    counts = {state: states.count(state) for state in STATES if state in states}
    return Overview({"cifar100": runs, "table2": runs[:2]}, counts, 0.0, NOW)


@pytest.mark.parametrize(("failed", "running", "waiting"), [(0, 2, 3), (1, 2, 300), (40, 40, 300), (3, 0, 0)])
@pytest.mark.parametrize("each_run", [True, False])
def test_a_screen_of_24_lines_shows_totals_end_and_failures(failed, running, waiting, each_run):
    overview = many(failed, running, waiting)
    lines = as_text(render_overview(overview, "paper", each_run, 80, 23), 80).splitlines()
    assert len(lines) <= 23 and max(map(len, lines)) <= 80
    assert lines[1].startswith(f"{failed + running + waiting} runs:")
    assert any(line.startswith("Expected end") for line in lines[:4])
    text = "\n".join(lines)
    assert (" failed: disk full" in text and "log: results/paper/runs/0/log.txt" in text) == bool(failed)
    assert ("> running" in text) == bool(running)
    assert ("more failed" in text) == (failed > 5)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (42, "42 s"), (400, "7 min"), (11100, "3 h 05"), (187200, "2 d 4 h"), (3599, "1 h 00")],
)
def test_durations(seconds, words):
    assert format_duration(seconds) == words


def test_find_run_by_any_unique_part():
    ids = ["fashion_mnist-kd-swin_t-resnet18-aaaaaaaaaa", "fashion_mnist-fbt-swin_t-resnet18-bbbbbbbbbb"]
    assert show.find_run("bbbb", ids, {}) == ids[1]
    with pytest.raises(UserError, match="fits 2 runs.*kd-swin_t"):
        show.find_run("resnet18", ids, {})
    with pytest.raises(UserError, match="nearest: fashion_mnist-kd-swin_t"):
        show.find_run("fashion_mnist-kd-swin_t-resnet34-aaaaaaaaaa", ids, {})


def test_diff_lists_exactly_what_differs():
    first, second = make_spec(seed=0, method="kd", weight=1.0), make_spec(seed=1, method="kd", weight=2.0)
    differences = show.compare_settings(first.model_dump(mode="json"), second.model_dump(mode="json"))
    assert differences == [("method.parameters.weight", 1.0, 2.0), ("seed", 0, 1)]


def test_show_and_diff_print_settings_history_and_gap(tmp_path):
    specs = [make_spec(seed=seed) for seed in (0, 1)]
    runs = [write_run(tmp_path, spec) for spec in specs]
    metrics = [read_json(run / "metrics.json") for run in runs]
    sides = [show.ShownRun(m["run"], m["spec"], m["history"], m) for m in metrics]
    text = as_text(show.render_run(sides[0]))
    for words in (
        "recipe.optimizer.learning_rate",
        "0.001",
        "cross entropy",
        "provenance.git_sha",
        "best top-1",
    ):
        assert words in text
    text = as_text(show.render_difference(sides[:1], sides[1:]))
    assert "seed" in text and "+0.50" in text


FBT_TERMS = tuple(
    f"{pair}_{what}"
    for what in ("logits", "features")
    for pair in ("teacher_to_fused", "teacher_to_student", "fused_to_student")
)


def test_a_run_of_fbt_can_be_read_at_80_columns(tmp_path):
    spec = make_spec("resnet18", "swin_t", "x" * 40, "fbt", learnable_temperature_of_the_loss=True)
    history = make_history(3, terms=("labels", "fused_labels", *FBT_TERMS))
    shown = show.ShownRun(spec.id, spec.model_dump(mode="json"), history, None)
    lines = as_text(show.render_run(shown), 80).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "method.parameters.learnable_temperature_of_the_loss" in text
    epochs = [line.split() for line in lines if re.match(r" *2 ", line)]
    assert [len(cells) for cells in epochs] == [8, 6, 4]  # scores, five terms, three terms
    assert all(any(f" {word} " in line for line in lines) for word in ("labels", "test", "images/s"))
    words = " ".join(text.split())
    assert "…" not in text and "fused to student" in words


def write_entry(folder: Path, run: str, **fields: object) -> Path:
    """One file of the executor's journal, with the fields its journal.py lists."""
    journal = folder / "journal"
    journal.mkdir(parents=True, exist_ok=True)
    job: dict[str, object] = dict.fromkeys(("key", "name", "token", "script", "record"), "")
    job |= {"rule": "train", "wildcards": {"run": run}, "outputs": [], "cluster": "slurm"}
    job |= {"job_id": "12_3", "state": "PENDING", "submitted": 1.0, **fields}
    path = journal / f"{run}-{job['submitted']}.json"
    path.write_text(json.dumps(job))
    return path


def test_journal_gives_the_newest_job_of_a_run(tmp_path):
    write_entry(tmp_path, "r", state="TIMEOUT", submitted=5.0, job_id="4")
    write_entry(tmp_path, "r", state="PENDING", submitted=9.0, reason="Resources", restarts=2)
    (tmp_path / "journal" / "broken.json").write_text('{"wild')
    (tmp_path / "journal" / "table.json").write_text(json.dumps({"rule": "build_table", "wildcards": {}}))
    jobs = newest_jobs(tmp_path)
    assert list(jobs) == ["r"]
    assert (jobs["r"].job, jobs["r"].state, jobs["r"].reason, jobs["r"].restarts) == (
        "12_3",
        "PENDING",
        "Resources",
        2,
    )


def test_the_job_of_a_pack_is_the_job_of_each_of_its_runs(tmp_path):
    """Known by the pack's marker, beside which its runs are written; each has its share of the hours."""
    files = PackFiles(str(tmp_path / "packs"))
    files.record("0a", ["r", "s"])
    pack = {"rule": "pack", "wildcards": {"pack": "0a"}, "outputs": [files.marker("0a")]}
    write_entry(tmp_path, "r", state="FAILED", submitted=2.0)
    write_entry(tmp_path, "0a", state="RUNNING", submitted=5.0, gpu_hours=3.0, **pack)
    write_entry(tmp_path, "0b", state="RUNNING", submitted=6.0, **{**pack, "wildcards": {"pack": "0b"}})
    jobs = newest_jobs(tmp_path)
    assert {run: (job.state, job.gpu_hours) for run, job in jobs.items()} == {
        "r": ("RUNNING", 1.5), "s": ("RUNNING", 1.5),
    }  # fmt: skip


def test_results_of_a_pack_wait_to_be_published(tmp_path):
    folder = tmp_path / "r" / "ready"
    folder.mkdir(parents=True)
    for name in ("metrics.json", "weights.safetensors"):
        (folder / name).write_text("{}")
    status = states.observe_run(tmp_path / "r", None, None, lambda run: False, NOW)
    assert (status.state, status.note) == ("queued", "trained; snakemake publishes it")


def test_the_jobs_own_record_beats_a_journal_nobody_keeps(tmp_path):
    record = tmp_path / "record.json"
    record.write_text(
        json.dumps(
            {
                "submitted": 1.0,
                "starts": [{"time": 2.0}, {"time": 5.0}, {"time": 9.0}],
                "queue_wait_s": 90.0,
                "peak_memory_mb": 512.0,
                "ended": 3.0,
                "exit_code": 1,
            }
        )
    )
    write_entry(tmp_path, "r", state="RUNNING", record=str(record), error_log=str(tmp_path / "gone"))
    job = newest_jobs(tmp_path)["r"]
    assert (job.state, job.restarts, job.queue_wait_s, job.peak_memory_mb) == ("FAILED", 2, 90.0, 512.0)
    assert (job.begun, job.ended) == (9.0, 3.0)  # the last start counts


def test_no_journal_no_jobs(tmp_path):
    assert newest_jobs(tmp_path) == {}


def test_costs_of_a_run_are_shown(tmp_path):
    spec = make_spec()
    write_run(tmp_path, spec)
    jobs = {spec.id: Job("9", "COMPLETED", restarts=3, queue_wait_s=600, gpu_hours=1.25, peak_memory_mb=900)}
    overview = observe_tables(tmp_path, {"t": [spec.id]}, {spec.id: spec}, jobs, NOW)
    text = as_text(render_overview(overview, "smoke", each_run=True))
    assert overview.gpu_hours == 1.25
    for words in ("3x", "10 min", "1.2", "900", "1.2 GPU hours used", "All done."):
        assert words in text


def test_every_line_of_the_state_table_is_in_the_docstring():
    """The table that people read names the same states in the same order as the one that decides."""
    from fbt_paper.status import states

    rows = states.__doc__.split("-----------\n")[1].splitlines()
    assert [row.split()[-1] for row in rows if row.strip()] == [state for _, state, _ in STATE_TABLE]


ESCAPE = "\x1b]0;title\x07\x1b[2J\x1b[31m\u202egnp.exe\x9b2J"


def test_no_escape_sequence_of_a_run_reaches_the_terminal(tmp_path):
    """Whoever writes log, progress, metrics or journal cannot move the reader's cursor."""
    failed, done = make_spec(seed=0), make_spec(seed=1)
    folder = write_progress(tmp_path, failed, "failed", JUST_NOW, error=f"disk {ESCAPE}")
    (folder / "log.txt").write_text(f"first\nlast {ESCAPE}\n")
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 3, "terms": {f"loss {ESCAPE}": 1.0}}) + "\n")
    path = write_run(tmp_path, done) / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["provenance"]["git_sha"] = ESCAPE
    metrics["provenance"][f"key {ESCAPE}"] = [ESCAPE]
    path.write_text(json.dumps(metrics))
    jobs = {done.id: Job(f"9{ESCAPE}", "PENDING", ESCAPE), failed.id: Job("1", "FAILED", ESCAPE, log=ESCAPE)}
    specs = {spec.id: spec for spec in (failed, done)}
    overview = observe_tables(tmp_path, {"t": list(specs)}, specs, jobs, NOW)
    shown = as_text(render_overview(overview, "smoke", each_run=True))
    metrics = read_json(path)
    shown += as_text(show.render_run(show.ShownRun(done.id, metrics["spec"], read_history(folder), metrics)))
    assert "\\x1b[2J" in shown and "disk" in shown and "last" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_two_cells_are_compared_by_the_means_of_their_seeds(tmp_path):
    specs = [make_spec(seed=seed) for seed in range(4)]
    runs = [write_run(tmp_path, spec) for spec in specs]
    metrics = [read_json(run / "metrics.json") for run in runs]
    shown = [show.ShownRun(m["run"], m["spec"], m["history"], m) for m in metrics]
    best = [m["best"]["top1"] for m in metrics]
    text = as_text(show.render_difference(shown[:2], shown[2:]))
    assert f"{(best[2] + best[3] - best[0] - best[1]) / 2:+.2f}" in text and "and 1 more, mean" in text
    text = as_text(show.render_several(shown, {specs[0].id: "table4/mse/top1, seed 0"}))
    assert f"{sum(best) / 4:.2f} ± " in text and "table4/mse/top1, seed 0" in text
    assert all(spec.id in text for spec in specs)


def test_a_row_or_a_table_stands_for_the_runs_behind_its_cells():
    ids = ["fashion_mnist-kd-a-b-aaaaaaaaaa", "fashion_mnist-kd-a-b-bbbbbbbbbb"]
    cells = {"table4/mse/top1": (ids[0],), "table4/mse_2/top1": (ids[1],)}
    assert show.find_runs("table4", ids, cells) == tuple(ids)
    assert show.find_runs("table4/mse", ids, cells) == (ids[0],)


def test_a_cell_with_several_seeds_shows_each_of_them():
    ids = ["fashion_mnist-kd-a-b-aaaaaaaaaa", "fashion_mnist-kd-a-b-bbbbbbbbbb"]
    cells = {"table4/mse/top1": tuple(ids)}
    assert show.find_runs("table4/mse/top1", ids, cells) == tuple(ids)
    with pytest.raises(show.UserError, match="has 2 runs; name one: fashion_mnist-kd-a-b-a"):
        show.find_run("table4/mse/top1", ids, cells)
