"""How `fbt plan` and `fbt recipe` look on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fbt_core.spec import RecipeSpec
from fbt_paper.config.load import Config
from fbt_paper.plan.bill import Bill, estimate, in_packs, read_macs, read_training_macs
from fbt_paper.plan.names import run_names
from fbt_paper.plan.packs import compose
from fbt_paper.plan.run_spec import find_recipe
from fbt_paper.plan.runs import Plan
from fbt_paper.plan.speeds import Speeds
from fbt_paper.plan.targets import Flow

BillCounter = Callable[[Iterable[str]], Bill]
USUAL_PACK = 8
HEAD = ("table", "cells", "runs", "of these shared", "teachers, phases", "PFLOPs", "GPU hours", "to")


def render_plan(plan: Plan, tables: Sequence[str], speeds: Speeds) -> str:
    """One line per table and the total over different runs; the bill is for full-size networks only."""
    count_bill = _bill_counter(plan)
    # Over all tables, also those not shown: a run is shared even if its other table was not asked for.
    sharing = Counter(run for key in plan.tables for run in plan.needed(plan.tables[key].runs))
    lines = [_line(plan, key, sharing, count_bill, speeds) for key in tables]
    # Not the sum of the lines: runs that tables share are trained and paid once.
    every = plan.needed(run for key in tables for run in plan.tables[key].runs)
    cells = sum(len(plan.tables[key].cells) for key in tables)
    bill = count_bill(every)
    total = ["all different runs", str(cells), str(len(every)), "", "", *_costs(bill, plan, speeds)]
    notes = _notes(plan, tables, bill, speeds)
    return "\n".join([f"scale {plan.scale}", "", align([HEAD, *lines, total]), "", *notes])


def _bill_counter(plan: Plan) -> BillCounter:
    """What gives the bill of some runs; there is none for networks that are not full-size."""
    if not plan.size.is_full_size:
        # MACs are counted at full size; for tiny networks they would be a wrong bill, not a rough one.
        return lambda runs: Bill((), ())
    macs, training = read_macs(), read_training_macs()
    return lambda runs: estimate((plan.runs[run] for run in runs), macs, training)


def _line(
    plan: Plan, key: str, sharing: Mapping[str, int], count_bill: BillCounter, speeds: Speeds
) -> list[str]:
    table = plan.tables[key]
    needed = plan.needed(table.runs)
    shared = sum(sharing[run] > 1 for run in needed)
    extra = len(needed) - len(table.runs)
    costs = _costs(count_bill(needed), plan, speeds)
    return [key, str(len(table.cells) or "-"), str(len(needed)), str(shared), str(extra), *costs]


def _costs(bill: Bill, plan: Plan, speeds: Speeds) -> list[str]:
    if not plan.size.is_full_size:
        return ["", "", ""]
    return [f"{bill.pflops:,.0f}", *(f"{hours:,.0f}" for hours in bill.gpu_hours(speeds))]


def _notes(plan: Plan, tables: Sequence[str], bill: Bill, speeds: Speeds) -> list[str]:
    notes = ["`runs` counts everything a table needs; `shared`: also needed by another table, trained once."]
    left_out = [key for key in tables if key not in plan.all_tables]
    if left_out:
        notes.append(f"Not part of `snakemake all` at this scale: {', '.join(left_out)} (`snakemake grid`).")
    if not plan.size.is_full_size:
        return [
            *notes,
            "These networks are not full-size and have no bill; `fbt --scale paper plan` shows the paper's.",
        ]
    notes.append(
        "From counted MACs, 2 FLOPs each: one training step of each method on each pair with all its extra\n"
        "modules (CRD's memory banks too), and the evaluation after every epoch.\n"
        f"{speeds.describe()} Loading alone: {bill.loading_hours(speeds):,.0f} hours.\n"
        "`fbt bench` measures a step and the loaders on the machine at hand."
    )
    if bill.uncounted:
        notes.append(
            f"Not in the bill, because never counted: {', '.join(bill.uncounted)}; "
            "`python -m fbt_core.measure.cost networks --out "
            "fbt_paper/plan/data/network_costs.json` counts them."
        )
    return notes


def render_packs(flow: Flow, tables: Sequence[str], speeds: Speeds) -> str:
    """What the runs of these tables cost in packs, of the sizes that the settings state, else of eight."""
    plan = flow.plan
    every = plan.needed(run for key in tables for run in plan.tables[key].runs)
    specs = {run: plan.runs[run] for run in every}
    if any(flow.pack_size(spec) != 1 for spec in specs.values()):
        title, packs = "In packs", compose(specs, every, flow.kind, flow.fits)
    else:
        # What packs would save is shown to whoever has none: nothing else says so.
        title = f"In packs of up to {USUAL_PACK} runs (not set: `execution: pack`; docs/packs.md)"
        packs = compose(specs, every, flow.kind, lambda runs: len(runs) <= USUAL_PACK)
    packed = {run for pack in packs for run in pack}
    jobs = [[specs[run] for run in pack] for pack in (*packs, *([run] for run in every if run not in packed))]
    text = f"{title}:\n{len(packs)} packs and {len(jobs) - len(packs)} runs alone"
    if not packs or not plan.size.is_full_size:
        return f"{text}."
    separate, bill = _bill_counter(plan)(every), in_packs(jobs, read_macs(), read_training_macs())
    least, most = bill.gpu_hours(speeds)
    kept = max(sum(flow.state_gb(spec) or 0.0 for spec in job) for job in jobs)
    return (
        f"{text}; a teacher looks at each image once for all runs of a pack:\n"
        f"{bill.pflops:,.0f} PFLOPs, {bill.pflops / separate.pflops:.2f} of the above; {least:,.0f} to "
        f"{most:,.0f} GPU hours.\n"
        f"Weights, gradients and optimisers of a pack keep up to {kept:.1f} GB of each GPU."
    )


def render_runs(plan: Plan, tables: Sequence[str]) -> str:
    """Run ids in an order they can be run, each with what it is and the other tables that show it."""
    every = plan.needed(run for key in tables for run in plan.tables[key].runs)
    names = run_names(plan, tables)
    lines = []
    for run in every:
        others = [f"also {key}" for key in plan.tables_of(run) if not names[run].startswith(f"{key}/")]
        lines.append([run, names[run], " ".join(others)])
    return align(lines)


def render_recipe(config: Config, dataset: str, family: str) -> str:
    """A recipe line by line: setting, value and its source, then the file and path it is read from."""
    if config.scale.recipes and family == "teacher":
        return f"At scale {config.main.scale} teachers are trained from scratch, with their family's recipe."
    recipe = find_recipe(config, dataset, family)
    released = _released_for(config, recipe.value, dataset)
    of_data = {path for path, _ in leaves(config.datasets[dataset].recipe, "")}
    lines = [["setting", "value", "source"]]
    for path, value in leaves(recipe.value.model_dump(), ""):
        if path in of_data:
            source = f"config/datasets.yaml: {dataset}.recipe"
        else:
            source = _source_of(config, released, family, path)
        lines.append([path, str(value), source])
    return f"{align(lines)}\nread from {recipe.file}: {recipe.path}; - is off"


def _released_for(config: Config, recipe: RecipeSpec, dataset: str) -> str:
    """The dataset of set `ofa` that has this recipe: a set that swaps datasets swaps no sources."""
    known = config.recipes.ofa
    return next((name for name, recipes in known.items() if recipe in recipes.values()), dataset)


def _source_of(config: Config, dataset: str, family: str, setting: str) -> str:
    """Where a number comes from: as stated of this very recipe, else of its family, else of all."""
    if config.scale.recipes:
        return config.scale.source
    if family == "teacher":
        return config.recipes.sources["teacher"]
    names = (f"{dataset}.{family}.{setting}", f"{family}.{setting}", setting)
    return next(
        (config.recipes.sources[name] for name in names if name in config.recipes.sources), "not stated"
    )


def leaves(content: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    """The settings of nested mappings by their dotted names; `-` if one is off."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "-" if value is None else value


def align(lines: Sequence[Sequence[str]]) -> str:
    """Text in columns; the first column to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(_pad(text, width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _pad(text: str, width: int) -> str:
    number = text.replace(",", "").replace(".", "").isdigit()
    return text.rjust(width) if number else text.ljust(width)
