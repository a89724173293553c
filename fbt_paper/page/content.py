"""What the results page says, as plain values: tables, cells, runs and figures from the results on disk."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from fbt_core.run_files import read_json, read_tail
from fbt_paper.figures.draw import claims_file
from fbt_paper.page import words
from fbt_paper.plan.figures import Drawing, FigurePlan
from fbt_paper.plan.runs import Plan
from fbt_paper.plan.targets import Flow
from fbt_paper.tables.collect import Collected, Entry, collect
from fbt_paper.tables.cost_table import Costs, collect_costs
from fbt_paper.tables.reference import STATUS_MARKS, legend
from fbt_paper.tables.render import (
    COST_HEAD,
    SMOKE_LABEL,
    cost_rows,
    costs_to_csv,
    costs_to_latex,
    signed,
    to_csv,
    to_latex,
)

Record = dict[str, Any]
POINTS = 60
"""A curve on the page has at most so many points; the whole history is in the run's metrics.json."""
LOG_LINES = 12
SYMBOL = re.compile(r"\b([LK])_([A-Za-z]+)\b")
PICTURE_TITLES = {"": "", "_numbers": "numbers", "_losses": "losses", "_gaps": "ours against the paper"}


def collect_tables(flow: Flow, keys: Iterable[str]) -> list[Collected | Costs]:
    """The tables of a page from the results on disk."""
    return [
        collect_costs(flow.config, key, Path(flow.results, "costs", f"{key}.json"))
        if flow.plan.tables[key].kind == "cost"
        else collect(flow.config, flow.plan, key, Path(flow.runs))
        for key in keys
    ]


def pretty(label: str) -> Markup:
    """A label of config/ as HTML: arrows, and L_MSE with a subscript."""
    text = str(escape(label)).replace("-&gt;", "→")
    return Markup(SYMBOL.sub(r"<i>\1</i><sub>\2</sub>", text))


def plain(label: str) -> str:
    """A label as one line of text, for names that only a screen reader speaks."""
    return label.replace("->", "to").replace("_", " ")


# ---------------------------------------------------------------- tables


def describe_table(table: Collected | Costs) -> Record:
    """A table's title, caption, header, lines and the texts to copy."""
    if isinstance(table, Costs):
        return _describe_costs(table)
    return {
        "key": table.key,
        "title": table.title,
        "caption": pretty(table.caption),
        "kind": "accuracy",
        "head": [pretty(table.corner), *(pretty(label) for _, label in table.columns)],
        "lines": [_describe_line(table, row, label) for row, label in table.rows],
        "remarks": _remarks(table),
        "warnings": list(table.warnings),
        "latex": to_latex(table),
        "csv": to_csv(table),
    }


def _describe_line(table: Collected, row: str, label: str) -> Record:
    cells = [
        describe_cell(table, row, column, f"{plain(label)}, {plain(title)}")
        for column, title in table.columns
    ]
    closing = not any(cell["runs"] for cell in cells) and row == table.rows[-1][0]
    return {"label": pretty(label), "cells": cells, "closing": closing}


def describe_cell(table: Collected, row: str, column: str, name: str) -> Record:
    """One cell: ours, deviation, paper with its mark, gap, and the runs that it opens."""
    entry: Entry = table.entry(row, column)
    reference = entry.reference
    return {
        "id": f"{table.key}/{row}/{column}",
        "name": f"{table.title}: {name}",
        "there": (row, column) in table.entries,
        "ours": entry.mean,
        "deviation": entry.deviation,
        "paper": reference.value if reference else None,
        "mark": STATUS_MARKS[reference.status] if reference else "",
        "gap": signed(entry.gap),
        "gap_value": entry.gap,
        "runs": list(entry.runs),
        "note": "; ".join(part for part in (entry.note, reference.note if reference else "") if part),
        "source": reference.source if reference else "",
    }


def _remarks(table: Collected) -> list[str]:
    marks = legend({place: e.reference for place, e in table.entries.items() if e.reference})
    seeds = sorted({len(entry.runs) for entry in table.entries.values() if entry.runs})
    counts = (
        [f"Seeds per cell: {', '.join(map(str, seeds))}; ± is the sample standard deviation."]
        if seeds
        else []
    )
    return [*marks, *counts]


def _describe_costs(costs: Costs) -> Record:
    return {
        "key": costs.key,
        "title": costs.title,
        "caption": pretty(costs.caption),
        "kind": "cost",
        "head": [pretty(text) or "part" for text in COST_HEAD],
        "lines": [{"label": pretty(r[0]), "texts": r[1:], "closing": False} for r in cost_rows(costs)],
        "remarks": [f"(a) {note}" for note in costs.footnotes],
        "warnings": [],
        "latex": costs_to_latex(costs),
        "csv": costs_to_csv(costs),
    }


# ---------------------------------------------------------------- runs


def list_runs(tables: Iterable[Collected | Costs], plan: Plan) -> list[str]:
    """Ids of all runs behind the tables' cells and of those they need, e.g. their teachers; each once."""
    entries = [entry for table in tables if isinstance(table, Collected) for entry in table.entries.values()]
    shown = list(dict.fromkeys(run for entry in entries for run in entry.runs))
    return list(dict.fromkeys([*shown, *plan.needed(shown)]))


def describe_run(runs: Path, run: str) -> Record:
    """One run as the page shows it: result, settings, curves, where it was made, the end of its log."""
    metrics = read_json(runs / run / "metrics.json") or {}
    execution, provenance = metrics.get("execution") or {}, metrics.get("provenance") or {}
    spec = metrics.get("spec") or {}
    return {
        "seed": spec.get("seed"),
        "best": metrics.get("best"),
        "last": metrics.get("last"),
        "ema": metrics.get("ema"),
        "seconds": metrics.get("seconds"),
        "images_per_second": metrics.get("images_per_second"),
        "peak_memory_mb": metrics.get("peak_memory_mb"),
        "parameters": metrics.get("parameters"),
        "weights_sha256": metrics.get("weights_sha256"),
        "spec": without_nulls(spec),
        "curves": thin_history(metrics.get("history") or []),
        "execution": {key: value for key, value in execution.items() if value not in (None, "", [])},
        "versions": provenance.get("versions") or {},
        "git_sha": provenance.get("git_sha"),
        "git_dirty": provenance.get("git_dirty"),
        "started": provenance.get("started"),
        "finished": provenance.get("finished"),
        "log": list(read_tail(runs / run / "log.txt", LOG_LINES)),
    }


def without_nulls(value: Any) -> Any:
    """The value without the keys that say nothing."""
    if not isinstance(value, Mapping):
        return value
    return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}


def thin_history(history: Sequence[Record]) -> Record:
    """Epochs, accuracy and loss terms as columns, at most POINTS of each, the last epoch among them."""
    step = max(1, -(-len(history) // POINTS))
    kept = [record for index, record in enumerate(history) if (len(history) - 1 - index) % step == 0]
    terms = list(dict.fromkeys(term for record in kept for term in record.get("terms") or {}))
    return {
        "epoch": [record["epoch"] for record in kept],
        "top1": [_rounded(record.get("top1")) for record in kept],
        "terms": {
            term: [_rounded((record.get("terms") or {}).get(term)) for record in kept] for term in terms
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


# ---------------------------------------------------------------- figures


def describe_figures(figures: FigurePlan, page: str) -> list[Record]:
    """The page's figures with their pictures inside the page itself."""
    found = []
    for name in figures.drawn(page):
        drawing, first = figures.drawings[name], Path(figures.pictures(name)[0])
        claims = words.read_claims(claims_file(first)) if drawing.kind == "features" else []
        found.append(
            {
                "key": name,
                "title": pretty(drawing.title),
                "caption": drawing.caption,
                "pictures": [
                    describe_picture(drawing, Path(stem), data) for stem, data in figures.data(name).items()
                ],
                "claims": claims,
            }
        )
    return found


def describe_picture(drawing: Drawing, stem: Path, data: Sequence[str]) -> Record:
    """One PNG as a data URI, what it shows in words, and links to its PDF and its numbers."""
    part = stem.name.removeprefix(drawing.name)
    content = base64.b64encode(stem.with_name(f"{stem.name}.png").read_bytes()).decode("ascii")
    name = plain(", ".join(filter(None, [drawing.title, PICTURE_TITLES.get(part, "")])))
    said = words.describe_figure(drawing.kind, part, stem, stem.with_name(drawing.name))
    files = [stem.with_name(f"{stem.name}.pdf"), *map(Path, data)]
    return {
        "uri": f"data:image/png;base64,{content}",
        "alt": f"{name}. {said}" if said else name,
        "part": PICTURE_TITLES.get(part, ""),
        "files": [(f"figures/{path.name}", _kind(path), path.name) for path in files],
    }


def _kind(path: Path) -> str:
    """What a link to a figure's file is called."""
    kind = path.suffix[1:].upper()
    return f"{kind} of the statements below" if path.stem.endswith("_claims") else kind


# ---------------------------------------------------------------- the page


def describe_page(flow: Flow, page: str) -> Record:
    """Everything the template needs."""
    figures = FigurePlan(flow)
    tables = collect_tables(flow, figures.tables(page))
    runs = {run: describe_run(Path(flow.runs), run) for run in list_runs(tables, flow.plan)}
    return {
        "title": "FBT: measured and printed" if page == "index" else "FBT: the grids, measured and printed",
        "scale": flow.scale,
        "smoke_label": SMOKE_LABEL if flow.scale == "smoke" else "",
        "gap_name": "gap (smoke)" if flow.scale == "smoke" else "gap",
        "facts": facts(flow, runs),
        "tables": [describe_table(table) for table in tables],
        "figures": describe_figures(figures, page),
        "runs": runs,
        "again": train_again(flow),
    }


def train_again(flow: Flow) -> dict[str, str]:
    """What trains a run again: its folder, which goes first, and the command; RUN stands for the run's id."""
    where = "--profile slurm" if flow.scale == "paper" else "--cores 2"
    given = {**flow.given, "scale": flow.scale}
    changes = " ".join(shlex.quote(f"{key}={_as_text(value)}") for key, value in given.items())
    folder = f"{flow.runs}/RUN"
    # the target comes before --config, which takes all that follows
    return {"folder": folder, "command": f"snakemake {where} {folder}/metrics.json --config {changes}"}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def facts(flow: Flow, runs: Mapping[str, Record]) -> dict[str, str]:
    """What this page is, in a line: scale, recipe set, runs, when and from which code they come."""
    dates = sorted(str(run["finished"])[:10] for run in runs.values() if run["finished"])
    shas = sorted(
        {
            f"{run['git_sha'][:10]}{' + changes' if run['git_dirty'] else ''}"
            for run in runs.values()
            if run["git_sha"]
        }
    )
    said = {
        "scale": flow.scale,
        "recipe set": "smoke" if flow.scale == "smoke" else flow.config.main.recipes,
        "runs": str(len(runs)),
        "results of": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "",
        "code": ", ".join(shas[:3]) + (f" and {len(shas) - 3} more" if len(shas) > 3 else ""),
    }
    return {name: value for name, value in said.items() if value}


def as_json_ready(value: Any) -> Any:
    """The value without Markup and other str subclasses, for json.dumps."""
    if isinstance(value, Mapping):
        return {str(key): as_json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json_ready(item) for item in value]
    return str(value) if isinstance(value, str) else value
