"""The results of a plan's tables, of either kind, and all of them as one tidy frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from fbt_paper.tables.cost_table import UNITS, CostResults, collect_costs
from fbt_paper.tables.frame import TableResults, collect, make_frame, rows_of
from fbt_paper.tables.leads import find_leads
from fbt_paper.tables.recipe_table import RecipeResults, collect_recipes

if TYPE_CHECKING:
    from fbt_paper.plan.targets import Flow

Results = TableResults | CostResults | RecipeResults


def collect_tables(
    flow: Flow, keys: Iterable[str], unfinished: Mapping[str, str] | None = None
) -> list[Results]:
    """These tables from the results on disk; of runs in `unfinished` they show how they stand."""
    tables: list[Results] = []
    for key in keys:
        if flow.plan.tables[key].kind == "cost":
            tables.append(collect_costs(flow.config, key, Path(flow.results, "costs", f"{key}.json")))
            continue
        if flow.plan.tables[key].kind == "recipes":
            tables.append(collect_recipes(flow.config, key))
            continue
        table = collect(flow.config, flow.plan, key, Path(flow.runs), unfinished)
        leads = find_leads(flow.config, flow.plan, table, Path(flow.runs))
        tables.append(replace(table, leads=leads))
    return tables


def ready_tables(flow: Flow, keys: Iterable[str]) -> list[str]:
    """Those of these tables that can be shown while runs go on: one of costs only when it is counted."""
    return [
        key
        for key in keys
        if flow.plan.tables[key].kind != "cost" or Path(flow.results, "costs", f"{key}.json").exists()
    ]


def tidy(tables: Iterable[Results]) -> pd.DataFrame:
    """All results as one frame: a row per table, row, column and seed; costs by the paper's rule."""
    # Settings are no results: a table of recipes has no part in them.
    measured = [table for table in tables if not isinstance(table, RecipeResults)]
    frames = [_count_rows(table) if isinstance(table, CostResults) else table.frame for table in measured]
    return pd.concat(frames, ignore_index=True)


def _count_rows(costs: CostResults) -> pd.DataFrame:
    rows = [
        {
            "row": count.row,
            "column": f"{count.part}_{count.quantity}",
            "row_label": count.row_label,
            "column_label": f"{count.label}, {UNITS[count.quantity][0]}",
            "unit": UNITS[count.quantity][2],
            "score": count.rule,
            "printed": count.printed,
        }
        for count in rows_of(costs.frame)
    ]
    return make_frame(rows, table=costs.key, scale="full size")
