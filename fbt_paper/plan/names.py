"""What people call a run: the cell that shows it, or what it is trained for."""

from __future__ import annotations

from collections.abc import Sequence

from fbt_paper.plan.runs import Plan


def run_names(plan: Plan, first: Sequence[str] = ()) -> dict[str, str]:
    """A name for every run: table/row/column, the seed if the cell has several; else what needs it.

    Of several cells one in the tables `first` is named, then one in the tables of `snakemake all`.
    """
    names: dict[str, str] = {}
    for key in dict.fromkeys([*first, *plan.all_tables, *plan.tables]):
        for (row, column), cell in plan.tables[key].cells.items():
            for run in cell.runs:
                seed = f", seed {plan.runs[run].seed}" if len(cell.runs) > 1 else ""
                names.setdefault(run, f"{key}/{row}/{column}{seed}")
    # Backwards: whatever needs a run comes after it, and so has its name already.
    for run, spec in reversed(list(plan.runs.items())):
        for needed in spec.needed_runs():
            is_teacher = spec.teacher is not None and spec.teacher.weights == f"run:{needed}"
            role = "teacher" if is_teacher else "first phase"
            names.setdefault(needed, f"{role} of {names[run]}")
    return names


def name_cells(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The runs behind every cell, by table/row/column."""
    return {
        f"{key}/{row}/{column}": cell.runs
        for key, table in plan.tables.items()
        for (row, column), cell in table.cells.items()
    }
