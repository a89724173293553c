"""The commands behind `fbt status`, `fbt show` and `fbt diff`, on made-up results of the smoke scale."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from datetime import datetime
from pathlib import Path

import pytest

from fbt_core.errors import UserError
from fbt_paper.plan.targets import Flow
from fbt_paper.status import commands as live
from tests.test_paper.made_up_results import write_progress
from tests.test_paper.page_results import write_results


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return write_results(tmp_path)


def test_all_done_is_shown_and_watching_ends(flow, capsys):
    only_tables = {"table2": flow.plan.needed(flow.plan.tables["table2"].runs)}
    assert live.show_status(flow, list(only_tables), watch=60.0) == 0
    assert "All done." in capsys.readouterr().out


def test_exit_code_reports_a_failed_run(flow, capsys):
    run = flow.plan.tables["table5"].runs[0]
    Path(flow.runs, run, "metrics.json").unlink()
    write_progress(Path(flow.runs), flow.spec(run), "failed", datetime.now().isoformat(), error="disk full")
    assert live.show_status(flow, ["table5"]) == 1
    printed = capsys.readouterr().out
    assert re.search(rf"{run} \(\S+\) failed: disk full", printed)
    assert printed.index("failed: disk full") < re.search(r"^ *table5 ", printed, re.M).start()
    assert live.show_status(flow, ["table4"]) == 0


def test_json_for_scripts(flow, capsys):
    assert live.show_status(flow, ["table2"], as_json=True) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["totals"] == {"done": len(record["tables"]["table2"])}


def test_runs_that_only_figures_need_are_a_group_of_their_own(flow, capsys):
    live.show_status(flow, [])
    assert "figures" in capsys.readouterr().out
    everything = {"all": tuple(flow.plan.runs)}
    assert live.figure_runs(flow, everything) == {}


def test_outside_the_repository_nothing_is_called_waiting(tmp_path, monkeypatch, capsys):
    flow = Flow({})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"results/{flow.scale}: there are no results here; call `fbt` from"):
        live.show_status(flow, ["table5"])
    Path("Snakefile").touch()  # a fresh clone: nothing has run yet
    assert live.show_status(flow, ["table5"]) == 0
    assert f"results/{flow.scale} is not there yet" in capsys.readouterr().out


def test_unknown_table_and_unknown_run(flow):
    with pytest.raises(UserError, match="unknown table 'tabel5'.*did you mean 'table5'"):
        live.show_status(flow, ["tabel5"])
    with pytest.raises(UserError, match="no run is called 'nothing-like-it'"):
        live.show_run(flow, "nothing-like-it")


def test_show_and_diff_of_runs_on_disk_and_only_planned(flow, capsys):
    first, second = flow.plan.tables["table5"].runs[:2]
    Path(flow.runs, second, "metrics.json").unlink()
    assert live.show_run(flow, second) == 0
    assert "Not done" in capsys.readouterr().out
    assert live.show_difference(flow, first, second) == 0
    printed = capsys.readouterr().out
    assert (
        "student.architecture" in printed
        or "teacher.architecture" in printed
        or "method.parameters" in printed
    )


def test_a_run_the_plan_no_longer_holds_can_still_be_shown(flow, capsys):
    run = flow.plan.tables["table5"].runs[0]
    old = "fashion_mnist-kd-swin_t-resnet18-0123456789"
    Path(flow.runs, run).rename(Path(flow.runs, old))
    assert live.show_run(flow, "0123456789") == 0
    assert "best top-1" in capsys.readouterr().out


def test_neither_status_nor_figures_nor_page_import_torch():
    modules = "fbt_paper.status.commands, fbt_paper.figures.draw, fbt_paper.page.build"
    code = f"import sys, {modules}; print([m for m in ('torch', 'timm') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_watching_in_a_terminal_of_24_lines(flow, tmp_path):
    """The last screen before Ctrl-C holds totals, failure and a running run; nothing scrolls away."""
    first, second = flow.plan.tables["table5"].runs[:2]
    for run in (first, second):
        Path(flow.runs, run, "metrics.json").unlink()
    now = datetime.now().astimezone().isoformat()
    write_progress(Path(flow.runs), flow.spec(first), "failed", now, error="disk full")
    write_progress(Path(flow.runs), flow.spec(second), "running", now)
    code = (
        "import os, signal, sys, threading\n"
        "from fbt_paper.status import commands as live\nfrom fbt_paper.plan.targets import Flow\n"
        f"flow = Flow({{}}); flow.results = {flow.results!r}; flow.runs = {flow.runs!r}\n"
        "threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "sys.exit(live.show_status(flow, [], each_run=True, watch=0.5))\n"
    )
    status, shown = in_a_terminal([sys.executable, "-c", code], lines=24, columns=80)
    assert status == 1
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.split("(Ctrl-C ends)")[1]).splitlines()[:23]
    text = "\n".join(screen)
    for words in ("1 running, 1 failed", "Expected end", "failed: disk full", "> running", "more runs"):
        assert words in text
    assert max(map(len, screen)) <= 80


def in_a_terminal(command: list[str], lines: int, columns: int) -> tuple[int, str]:
    """Exit status of a command and what it wrote to a terminal of this size."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError:  # the terminal's other end is closed
        pass
    os.close(ours)
    return process.wait(), b"".join(parts).decode()
