"""`fbt run`, `fbt table`, tables as targets and their priority, with an engine that pretends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fbt_core.errors import UserError
from fbt_paper.config.load import RULES, load
from fbt_paper.config.problems import ConfigError
from fbt_paper.plan.names import run_names
from fbt_paper.plan.targets import Flow
from fbt_paper.status import run_workflow
from tests.test_paper.config_copy import ConfigCopy
from tests.test_workflow.workflow_copy import WorkflowCopy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> WorkflowCopy:
    return WorkflowCopy.make(tmp_path_factory.mktemp("run") / "copy")


def fbt(copy: WorkflowCopy, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fbt_paper.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(copy.folder)}
    return subprocess.run(
        command, cwd=copy.folder, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_a_cell_is_trained_with_what_it_needs_and_nothing_else(copy):
    flow = Flow({}, copy.folder / "config")
    key = next(iter(flow.plan.tables["table5"].cells))
    cell = flow.plan.tables["table5"].cells[key]
    done = fbt(copy, "run", "table5/" + "/".join(key), "--cores", "1")
    assert done.returncode == 0, done.stdout
    needed = flow.plan.needed(cell.runs)
    assert sorted(copy.trained()) == sorted(needed)
    assert f"{len(needed)} runs are done" in done.stdout
    # No table can be built from one cell, and none was.
    assert not (copy.folder / "results/smoke/tables").exists()

    done = fbt(copy, "table", "table5")
    assert done.returncode == 1 and "Traceback" not in done.stdout

    # The other cells complete the table: it is built, and printed.
    rest = ["table5/" + "/".join(other) for other in flow.plan.tables["table5"].cells if other != key]
    done = fbt(copy, "run", *rest, "--cores", "2")
    assert done.returncode == 0, done.stdout
    assert (copy.folder / "results/smoke/tables/table5.md").exists()
    assert "mean ±" not in done.stdout and flow.config.tables["table5"].rows[0].label in done.stdout
    assert len(copy.trained()) == len(set(copy.trained()))

    shown = fbt(copy, "table", "table5")
    assert shown.returncode == 0 and flow.config.tables["table5"].rows[-1].label in shown.stdout


@pytest.mark.slow
def test_a_failed_run_is_named_and_leaves_its_exit_code(copy, tmp_path, monkeypatch):
    other = copy.clone(tmp_path / "failing")
    flow = Flow({}, other.folder / "config")
    run = next(run for run in flow.plan.tables["table3"].runs if run not in other.trained())
    monkeypatch.setenv("FAILING_RUN", run)
    done = fbt(other, "run", run, "--cores", "1")
    assert done.returncode == 1
    assert "meant to fail" in done.stdout and "fbt_run.log" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_command_alone_ends_its_trainings_and_frees_the_folder(copy, tmp_path, number):
    other = copy.clone(tmp_path / "signalled")
    flow = Flow({}, other.folder / "config")
    run = next(run for run, spec in flow.plan.runs.items() if not spec.needed_runs())
    (other.folder / "results/smoke/runs" / run / "metrics.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "fbt_paper.cli", "run", run, "--cores", "1"]
    environment = {**os.environ, "PYTHONPATH": str(other.folder), "LASTING_RUN": run}
    process = subprocess.Popen(
        command, cwd=other.folder, env=environment, stdout=-1, stderr=subprocess.STDOUT
    )
    folder = other.folder / "results/smoke/runs" / run
    for _ in range(600):
        if (folder / "started").exists():
            break
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, said
    assert b"stopped: what was training has saved its state" in said and b"Traceback" not in said
    assert (folder / "saved").exists()
    assert [child for child in started if child.is_running() and child.status() != "zombie"] == []
    assert not list(other.folder.glob(f"{run_workflow.LOCKS}/*"))


def test_a_second_workflow_is_refused_while_one_holds_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_workflow.refuse_second_workflow()
    (tmp_path / run_workflow.LOCKS).mkdir(parents=True)
    (tmp_path / run_workflow.LOCKS / "0.input.lock").touch()
    with pytest.raises(UserError, match="holds this folder's lock.*fbt status"):
        run_workflow.refuse_second_workflow()


def test_each_table_is_a_target_and_no_table_is_called_like_a_rule(copy):
    jobs = copy.planned("--cores", "1", "table5", "table6")
    assert jobs["table5"] == jobs["table6"] == 1 and jobs["build_table"] == 2
    files = [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]
    rules = {name for file in files for name in re.findall(r"^ *rule (\w+):", file.read_text(), re.M)}
    assert rules <= set(RULES)


def test_a_table_with_the_name_of_a_rule_is_refused(tmp_path):
    config = ConfigCopy(tmp_path)
    table = config.folder / "tables" / "table5.yaml"
    (table.parent / "grid.yaml").write_text(table.read_text())
    with pytest.raises(ConfigError, match="grid.yaml: 'grid' is a target of the workflow"):
        load(config.folder)


def test_a_tables_priority_counts_for_all_that_it_needs(copy, tmp_path):
    config = copy.clone_of_config(tmp_path / "config_only")
    config.replace("config/tables/table5.yaml", "kind: accuracy\n", "kind: accuracy\npriority: 3\n")
    flow = Flow({}, config.folder / "config")
    first = flow.plan.needed(flow.plan.tables["table5"].runs)
    assert {flow.priority(run) for run in first} == {3}
    assert {flow.priority(run) for run in set(flow.plan.runs) - set(first)} == {0}


def test_a_claims_priority_counts_for_the_runs_of_its_cells(tmp_path):
    config = ConfigCopy(tmp_path)
    stated = "    better: table5/swin_block/swin_t__resnet18\n    than: table5/vit_block/swin_t__resnet18\n"
    claim = f"  - key: ours\n    where: here\n    says: Swin is better\n{stated}    priority: 2\n"
    config.append("claims.yaml", claim)
    # Below 0: the claims that state no priority must not raise it.
    config.replace("tables/table4.yaml", "kind: accuracy\n", "kind: accuracy\npriority: -1\n")
    flow = Flow({}, config.folder)
    cells = flow.plan.tables["table5"].cells
    named = [run for row in ("swin_block", "vit_block") for run in cells[row, "swin_t__resnet18"].runs]
    first = flow.plan.needed(named)
    assert {flow.priority(run) for run in first} == {2}
    others = {flow.priority(run) for run in set(flow.plan.runs) - set(first)}
    assert others == {0, -1}


def test_every_run_has_a_name_of_its_own():
    for scale in ("smoke", "paper"):
        plan = Flow({"scale": scale, "seeds": [0, 1]}, ROOT / "config").plan
        names = run_names(plan)
        assert names.keys() == plan.runs.keys()
        shown = [name for name in names.values() if " of " not in name]
        assert len(shown) == len(set(shown))
        teacher = plan.runs[plan.tables["table5"].runs[0]].needed_runs()[0]
        assert names[teacher].startswith("teacher of ") or names[teacher].endswith("/teacher")
