"""The commands behind `fbt status`, `fbt show` and `fbt diff`, on made-up results of the smoke scale."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from fbt_paper import live
from fbt_paper.config import ConfigError
from fbt_paper.workflow import Flow
from tests.test_paper.made_up_results import write_progress
from tests.test_paper.page_results import write_results


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return write_results(tmp_path, pictures=False)


def test_all_done_is_said_and_watching_ends(flow, capsys):
    only_tables = {"table2": flow.plan.needed(flow.plan.tables["table2"].runs)}
    assert live.show_status(flow, list(only_tables), watch=60.0) == 0
    assert "All done." in capsys.readouterr().out


def test_exit_code_tells_of_a_failed_run(flow, capsys):
    run = flow.plan.tables["table5"].runs[0]
    Path(flow.runs, run, "metrics.json").unlink()
    write_progress(Path(flow.runs), flow.spec(run), "failed", datetime.now().isoformat(), error="disk full")
    assert live.show_status(flow, ["table5"]) == 1
    printed = capsys.readouterr().out
    assert f"{run} failed: disk full" in printed
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


def test_unknown_table_and_unknown_run(flow):
    with pytest.raises(ConfigError, match="unknown table 'tabel5'.*did you mean 'table5'"):
        live.show_status(flow, ["tabel5"])
    with pytest.raises(ValueError, match="no run is called 'nothing-like-it'"):
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
    modules = "fbt_paper.live, fbt_paper.show_status, fbt_paper.figures.draw, fbt_paper.page.build"
    code = f"import sys, {modules}; print([m for m in ('torch', 'timm') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
