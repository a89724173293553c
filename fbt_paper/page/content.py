"""What the results page says, as plain values: tables, cells, runs and figures from the results on disk."""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from fbt_paper.collect import Collected, Entry, collect
from fbt_paper.cost_table import Costs, collect_costs
from fbt_paper.figures.plan import FigurePlan
from fbt_paper.reference import STATUS_MARKS, legend
from fbt_paper.render import (
    COST_HEAD,
    SMOKE_LABEL,
    cost_rows,
    costs_to_csv,
    costs_to_latex,
    signed,
    to_csv,
    to_latex,
)
from fbt_paper.run_folder import Record, read_json, read_tail
from fbt_paper.workflow import Flow

POINTS = 60
"""A curve on the page has at most so many points; the whole history is in the run's metrics.json."""
LOG_LINES = 12
SYMBOL = re.compile(r"\b([LK])_([A-Za-z]+)\b")
PICTURE_TITLES = {"": "", "_numbers": "numbers", "_losses": "loss terms", "_gaps": "ours against the paper"}


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


def list_runs(tables: Iterable[Collected | Costs]) -> list[str]:
    """Ids of all runs behind the tables' cells, each once."""
    entries = [entry for table in tables if isinstance(table, Collected) for entry in table.entries.values()]
    return list(dict.fromkeys(run for entry in entries for run in entry.runs))


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
        "spec": spec,
        "curves": thin_history(metrics.get("history") or []),
        "execution": {key: value for key, value in execution.items() if value not in (None, "", [])},
        "versions": provenance.get("versions") or {},
        "git_sha": provenance.get("git_sha"),
        "git_dirty": provenance.get("git_dirty"),
        "started": provenance.get("started"),
        "finished": provenance.get("finished"),
        "log": list(read_tail(runs / run / "log.txt", LOG_LINES)),
    }


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
        drawing, stems = figures.drawings[name], figures.pictures(name)
        pictures = [describe_picture(drawing.title, stem, name) for stem in stems]
        found.append(
            {
                "key": name,
                "title": pretty(drawing.title),
                "caption": drawing.caption,
                "pictures": pictures,
                "claims": read_claims(Path(f"{stems[-1]}.csv")) if drawing.kind == "features" else [],
            }
        )
    return found


def read_claims(path: Path) -> list[str]:
    """The appendix's statements about a features figure with the two measured means, one sentence each."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [_say_claim(line) for line in csv.DictReader(file)]


def _say_claim(line: Mapping[str, str]) -> str:
    verdict = "as stated" if line["holds"] == "True" else "not as stated"
    first = f"{line['first_group']} {float(line['first']):.2f}"
    second = f"{line['second_group']} {float(line['second']):.2f}"
    return f"{line['statement']}: {verdict} ({line['quantity'].replace('_', ' ')}: {first}, {second})."


def describe_picture(title: str, stem: str, name: str) -> Record:
    """One PNG as a data URI, with its alternative text and where its PDF and its numbers lie."""
    part = PICTURE_TITLES.get(Path(stem).name.removeprefix(name), "")
    content = base64.b64encode(Path(f"{stem}.png").read_bytes()).decode("ascii")
    return {
        "uri": f"data:image/png;base64,{content}",
        "alt": plain(f"{title}, {part}" if part else title),
        "part": part,
        "file": f"figures/{Path(stem).name}.pdf",
    }


# ---------------------------------------------------------------- the page


def describe_page(flow: Flow, page: str) -> Record:
    """Everything the template needs."""
    figures = FigurePlan(flow)
    tables = collect_tables(flow, figures.tables(page))
    runs = {run: describe_run(Path(flow.runs), run) for run in list_runs(tables)}
    return {
        "title": "FBT: measured and printed" if page == "index" else "FBT: the grids, measured and printed",
        "scale": flow.scale,
        "smoke_label": SMOKE_LABEL if flow.scale == "smoke" else "",
        "facts": facts(flow, runs),
        "tables": [describe_table(table) for table in tables],
        "figures": describe_figures(figures, page),
        "runs": runs,
        "results": flow.results,
    }


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
