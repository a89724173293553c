"""What a plan costs whoever pays: states, hours left, days, prices, and what a budget lets one judge."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fbt_paper.plan.decisions import Decisions, hours_of, on_the_wall, render_cells, render_decisions, total
from fbt_paper.plan.speeds import assumed_speeds
from fbt_paper.plan.targets import Flow

SPEEDS = assumed_speeds("a100", 8)
TABLES = ("table2", "table4")


@pytest.fixture
def flow(tmp_path, monkeypatch) -> Flow:
    flow = Flow({"scale": "paper"}, Path(__file__).parents[2] / "config")
    monkeypatch.chdir(tmp_path)
    return flow


def every(flow: Flow) -> tuple[str, ...]:
    return flow.plan.needed(run for key in TABLES for run in flow.plan.tables[key].runs)


def finish(flow: Flow, run: str, file: str = "metrics.json") -> None:
    folder = Path(flow.runs, run)
    folder.mkdir(parents=True)
    (folder / file).write_text("{}")


def test_finished_runs_are_not_left(flow):
    runs = every(flow)
    least, most = total(hours_of(flow.plan, runs, SPEEDS).values())
    text = render_decisions(flow, TABLES, SPEEDS, Decisions(price=3.0))
    assert f"{len(runs)} new, 0 begun, 0 done" in text
    assert f"{least:,.0f} to {most:,.0f} GPU hours (price {3 * least:,.0f} to {3 * most:,.0f})" in text
    finish(flow, runs[0])
    finish(flow, runs[1], "progress.json")
    left = total(hours_of(flow.plan, runs[1:], SPEEDS).values())
    text = render_decisions(flow, TABLES, SPEEDS, Decisions())
    assert f"{len(runs) - 2} new, 1 begun, 1 done" in text
    assert f"Left: {left[0]:,.0f} to {left[1]:,.0f}" in text


def test_days_fall_with_gpus_but_not_below_the_longest_chain(flow):
    hours = hours_of(flow.plan, every(flow), SPEEDS)
    days = {}
    for gpus in (1, 2, 10_000):
        text = on_the_wall(flow.plan, hours, gpus)
        days[gpus] = tuple(map(float, re.search(r"([\d.]+) to ([\d.]+) days", text).groups()))
    assert days[1][1] == pytest.approx(total(hours.values())[1] / 24, abs=0.06)
    assert days[2][1] == pytest.approx(days[1][1] / 2, abs=0.1)
    spec = flow.plan.runs
    chain = max(
        hours[run][1] + sum(hours[needed][1] for needed in spec[run].needed_runs())
        for run in hours
        if spec[run].needed_runs()
    )
    assert days[10_000][1] == pytest.approx(chain / 24, abs=0.06)


def test_a_budget_takes_the_cheapest_claims_and_counts_a_shared_run_once(flow):
    asked = Decisions(budget=60)
    lines = render_decisions(flow, TABLES, SPEEDS, asked).splitlines()
    steps = [re.match(r"  (\w+): ([\d.,]+) further hours, ([\d.,]+) in all", line) for line in lines]
    steps = [(m[1], float(m[2]), float(m[3])) for m in steps if m]
    assert steps and steps[-1][2] <= 60
    assert steps[-1][2] == pytest.approx(sum(further for _, further, _ in steps), abs=0.1 * len(steps))
    names = {name for name, _, _ in steps}
    assert {"infonce_above_mse", "pooled_above_spatial"} <= names
    # Both need the same teacher and share a row: the second costs less than its own runs.
    assert any(line.startswith("  not within it:") and "fbt_above_fcfd" in line for line in lines)
    assert not any("imagenet" in line for line in lines)


def test_two_calls_say_the_same():
    """The order of a set is another in each process."""
    command = [sys.executable, "-m", "fbt_paper.cli", "--scale", "paper", "plan", "--budget", "60"]
    first, second = (
        subprocess.check_output(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, cwd=Path(__file__).parents[2], text=True
        )
        for seed in "12"
    )
    assert "by name, e.g." in first
    assert second == first


def test_a_claim_whose_runs_are_done_costs_nothing(flow):
    for run in flow.plan.needed(flow.plan.tables["table4"].runs):
        finish(flow, run)
    text = render_decisions(flow, TABLES, SPEEDS, Decisions(budget=1))
    assert "infonce_above_mse: 0.0 further hours" in text


def test_cells_with_what_they_need(flow):
    lines = {line[0]: line[1:] for line in render_cells(flow, ["table4"], SPEEDS, Decisions(price=1.0))}
    assert lines["table4/mse_final/top1"][:2] == ["2", "2"]
    assert "price" in lines["table4/mse_final/top1"][2]
    finish(flow, flow.plan.tables["table4"].cells["teacher", "top1"].runs[0])
    lines = {line[0]: line[1:] for line in render_cells(flow, ["table4"], SPEEDS, Decisions())}
    assert lines["table4/mse_final/top1"][:2] == ["2", "1"]
    assert lines["table4/teacher/top1"][1] == "0"


def test_tiny_networks_have_states_and_no_bill(tmp_path, monkeypatch):
    flow = Flow({"scale": "smoke"}, Path(__file__).parents[2] / "config")
    monkeypatch.chdir(tmp_path)
    text = render_decisions(flow, ["table4"], SPEEDS, Decisions(gpus=4, budget=5, price=1))
    assert text.startswith("Runs: ") and "GPU hours" not in text
