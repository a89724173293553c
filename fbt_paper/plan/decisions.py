"""What a plan means for whoever pays: what is left, days on so many GPUs, a price, what a budget decides.

Hours are those of the bill, least and most: every run on a GPU of its own, at the speeds of plan/speeds.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fbt_core.run_files import METRICS_FILE, PROGRESS_FILE
from fbt_paper.config.claims import Observation, Ratio
from fbt_paper.plan.bill import estimate, read_macs, read_training_macs
from fbt_paper.plan.claims import ClaimPlan
from fbt_paper.plan.names import run_names
from fbt_paper.plan.runs import Plan, runs_of_claim
from fbt_paper.plan.speeds import Range, Speeds
from fbt_paper.plan.targets import Flow

STATES = ("new", "begun", "done")


@dataclass(frozen=True)
class Decisions:
    """GPUs at a time, hours of one GPU that may be spent, the price of such an hour; None: not asked."""

    gpus: float | None = None
    budget: float | None = None
    price: float | None = None


def states_of(flow: Flow, runs: Iterable[str]) -> dict[str, str]:
    """Of each run whether it is new, begun or done, from its folder."""
    return {run: _state(Path(flow.runs, run)) for run in runs}


def _state(folder: Path) -> str:
    if (folder / METRICS_FILE).exists():
        return "done"
    return "begun" if (folder / PROGRESS_FILE).exists() else "new"


def hours_of(plan: Plan, runs: Iterable[str], speeds: Speeds) -> dict[str, Range]:
    """GPU hours of each run, least and most."""
    macs, training = read_macs(), read_training_macs()
    return {run: estimate([plan.runs[run]], macs, training).gpu_hours(speeds) for run in runs}


def render_decisions(flow: Flow, tables: Sequence[str], speeds: Speeds, asked: Decisions) -> str:
    """States of the runs of these tables; at full size what is left in hours, days and money."""
    plan = flow.plan
    every = plan.needed(run for key in tables for run in plan.tables[key].runs)
    states = states_of(flow, every)
    counts = ", ".join(f"{sum(s == state for s in states.values())} {state}" for state in STATES)
    text = f"Runs: {counts}."
    if not plan.size.is_full_size:
        return text
    left = [run for run in every if states[run] != "done"]
    hours = hours_of(plan, left, speeds)
    lines = [f"{text} Left: {_range(total(hours.values()))} GPU hours{_price(hours.values(), asked)}."]
    if asked.gpus:
        lines += [on_the_wall(plan, hours, asked.gpus)]
    if asked.budget:
        lines += within_budget(ClaimPlan(flow), set(every), hours, asked)
    return "\n".join(lines)


def total(ranges: Iterable[Range]) -> Range:
    """The sum of ranges, least and most."""
    ranges = list(ranges)
    return sum(least for least, _ in ranges), sum(most for _, most in ranges)


def on_the_wall(plan: Plan, hours: Mapping[str, Range], gpus: float) -> str:
    """How long runs take on so many GPUs; no sooner than the longest chain of runs that need each other."""
    ends: dict[str, Range] = {}
    for run in plan.needed(hours):
        # A run starts when the last of those it needs has ended; finished ones take no time.
        needed = [ends[name] for name in plan.runs[run].needed_runs()]
        itself = hours.get(run, (0.0, 0.0))
        starts = [max((end[side] for end in needed), default=0.0) for side in (0, 1)]
        ends[run] = (starts[0] + itself[0], starts[1] + itself[1])
    whole = total(hours.values())
    days = [max(max(end[side] for end in ends.values()), whole[side] / gpus) / 24 for side in (0, 1)]
    return f"On {gpus:g} GPUs at a time: {_range((days[0], days[1]))} days, without waiting in a queue."


def within_budget(
    claims: ClaimPlan, chosen: Collection[str], hours: Mapping[str, Range], asked: Decisions
) -> list[str]:
    """Claims in the order in which the least further hours let one be judged, until the budget is spent.

    Counted at the most hours, so that what is listed fits even on the slower side of the range.
    """
    plan, config = claims.flow.plan, claims.flow.config
    trained = [claim for claim in claims.claims if not isinstance(claim, Ratio | Observation)]
    # The runs that the cells of a claim need, done or not.
    needed = {claim.key: set(plan.needed(runs_of_claim(config, plan, claim))) for claim in trained}
    # Claims about tables that were not asked for need runs that nobody asked the price of.
    wanted = {key: runs & hours.keys() for key, runs in needed.items() if runs <= set(chosen)}
    paid: set[str] = set()
    spent, lines = 0.0, [f"With {asked.budget:g} GPU hours, cheapest evidence first (at most these hours):"]
    while wanted:
        further = {key: sum(hours[run][1] for run in runs - paid) for key, runs in wanted.items()}
        key = min(further, key=lambda name: (further[name], name))
        if spent + further[key] > (asked.budget or 0.0):
            break
        spent += further[key]
        paid |= wanted.pop(key)
        lines.append(f"  {key}: {further[key]:,.1f} further hours, {spent:,.1f} in all")
    if wanted:
        lines.append(f"  not within it: {', '.join(sorted(wanted))}")
    names = run_names(plan)
    first = [names[run] for run in plan.needed(sorted(paid)) if run in hours][:3]
    if first:
        lines.append(f"  {len(paid)} runs; `fbt run` takes them by name, e.g. {', '.join(map(repr, first))}")
    return lines


def render_cells(flow: Flow, tables: Sequence[str], speeds: Speeds, asked: Decisions) -> list[list[str]]:
    """A line per cell: its name, its runs that are left with all they need, and what these cost."""
    plan = flow.plan
    every = plan.needed(run for key in tables for run in plan.tables[key].runs)
    states = states_of(flow, every)
    hours = hours_of(plan, every, speeds) if plan.size.is_full_size else {}
    lines = [["cell", "runs", "left", "GPU hours left"]]
    for key in tables:
        for (row, column), cell in plan.tables[key].cells.items():
            needed = plan.needed(cell.runs)
            left = [run for run in needed if states[run] != "done"]
            cost = "-"
            if hours:
                ranges = [hours[run] for run in left]
                cost = f"{_range(total(ranges))}{_price(ranges, asked)}"
            lines.append([f"{key}/{row}/{column}", str(len(needed)), str(len(left)), cost])
    return lines


def _price(ranges: Iterable[Range], asked: Decisions) -> str:
    if asked.price is None:
        return ""
    least, most = total(ranges)
    return f" (price {_range((least * asked.price, most * asked.price))})"


def _range(values: Range) -> str:
    digits = 1 if values[1] < 100 else 0
    least, most = (f"{value:,.{digits}f}" for value in values)
    return least if least == most else f"{least} to {most}"
