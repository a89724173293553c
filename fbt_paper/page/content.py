"""What the results page says, as plain values: tables, cells, runs and figures from the results on disk."""

from __future__ import annotations

import base64
import csv
import io
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup, escape
from PIL import Image

from fbt_core.run_files import read_history, read_json, read_tail
from fbt_core.spec import RunSpec
from fbt_paper.config.records import AccuracyTable
from fbt_paper.page.evidence import KINDS, describe_sources
from fbt_paper.page.grid import group_columns, is_matrix, summarise
from fbt_paper.plan.on_disk import is_finished
from fbt_paper.plan.runs import Plan
from fbt_paper.plan.targets import Flow
from fbt_paper.tables.frame import TableResults, rows_of
from fbt_paper.tables.latex import SYMBOL, latex_cell, to_latex
from fbt_paper.tables.reference import STATUS_MARKS
from fbt_paper.tables.render import cell_text, make_sheet, note_of, signed, to_csv
from fbt_paper.tables.results import Results, collect_tables, ready_tables

Record = dict[str, Any]
POINTS = 40
"""A curve on the page has at most so many points; the whole history is in the run's metrics.json."""
LOG_LINES = 12
VERDICTS = ("holds", "contradicted", "undecided", "not measured")


def pretty(label: str) -> Markup:
    """A label of config/ as HTML: arrows, and L_MSE with a subscript."""
    # Escaped first: the label is anybody's text, the markup below is ours.
    text = str(escape(label)).replace("-&gt;", "→")
    return Markup(SYMBOL.sub(r"<i>\1</i><sub>\2</sub>", text))


def plain(label: str) -> str:
    """A label as one line of text, for names that only a screen reader speaks."""
    return label.replace("->", "to").replace("_", " ")


# ---------------------------------------------------------------- tables


def describe_table(flow: Flow, results: Results) -> Record:
    """A table's title, caption, header, lines and the texts to copy; of a grid its matrix and summary."""
    sheet, entry = make_sheet(results), flow.config.tables[results.key]
    groups: list[tuple[str, int]] = []
    order, summary = list(range(len(sheet.head) - 1)), []
    if isinstance(results, TableResults) and isinstance(entry, AccuracyTable) and is_matrix(entry):
        parts = group_columns(flow.config, entry)
        order = [index for _, indices in parts for index in indices]
        groups = [(heading, len(indices)) for heading, indices in parts]
        if entry.gain:
            summary = summarise(flow.config, flow.plan, results, Path(flow.runs))
    if not isinstance(results, TableResults):
        lines = [{"label": pretty(str(line[0])), "texts": line[1:], "closing": False} for line in sheet.lines]
    else:
        lines = list(_describe_lines(results, order))
    return {
        "key": results.key,
        "title": results.title,
        "caption": pretty(results.caption),
        "kind": "accuracy" if isinstance(results, TableResults) else "cost",
        "head": [pretty(sheet.head[0]), *(pretty(sheet.head[1 + i]) or "part" for i in order)],
        "groups": groups,
        "summary": summary,
        "lines": lines,
        "remarks": sheet.remarks,
        "warnings": sheet.warnings,
        "latex": to_latex(results),
        "csv": to_csv(results),
    }


def _describe_lines(table: TableResults, order: Sequence[int]) -> Iterator[Record]:
    """The lines of an accuracy table, columns in this order; a last one of mean gains is set apart."""
    columns = [table.columns[index] for index in order]
    cells = {cell.Index: cell for cell in rows_of(table.cells)}
    for row, label in table.rows:
        line = [
            describe_cell(table, row, column, f"{plain(label)}, {plain(title)}", cells.get((row, column)))
            for column, title in columns
        ]
        closing = not any(cell["runs"] for cell in line) and row == table.rows[-1][0]
        yield {"label": pretty(label), "cells": line, "closing": closing}


def describe_cell(table: TableResults, row: str, column: str, name: str, cell: Any) -> Record:
    """One cell: ours, deviation, paper with its mark, gap, and the runs that it opens; None: no such cell."""
    names = {"id": f"{table.key}/{row}/{column}", "name": f"{table.title}: {name}"}
    names |= {"row": plain(dict(table.rows)[row]), "column": plain(dict(table.columns)[column])}
    if cell is None:
        return {**names, "there": False, **dict.fromkeys(("ours", "paper", "gap_value", "gain")), "runs": []}
    printed = pd.notna(cell.printed)
    return {
        **names,
        "there": True,
        "ours": _known(cell.mean),
        "spread": _known(cell.spread),
        "one_seed": pd.isna(cell.deviation),
        "lead": table.leads.get((row, column), ""),
        "state": cell.state,
        "scratch": _known(cell.scratch),
        "gain": _known(cell.gain),
        "printed_gain": _known(cell.printed_gain),
        "paper": _known(cell.printed),
        "mark": STATUS_MARKS[cell.status] if printed else "",
        # Of unlike things a gap means nothing: it is there for who asks for it by the table's switch.
        "gap": "" if table.scale_label else signed(cell.gap),
        "gap_value": _known(cell.gap),
        "runs": list(cell.runs),
        "optimism": _known(cell.optimism),
        "latex": latex_cell(cell_text(cell, table.leads.get((row, column), ""), paper=False)),
        "note": note_of(cell),
        "source": cell.source if printed else "",
    }


def _known(value: float) -> float | None:
    # NaN is no JSON: Python would write it, and the browser would refuse the whole of the page's data.
    return None if pd.isna(value) else float(value)


# ---------------------------------------------------------------- runs


def list_runs(tables: Iterable[Results], plan: Plan) -> list[str]:
    """Ids of all runs behind the tables' cells and of those they need, e.g. their teachers; each once."""
    frames = [table.frame for table in tables if isinstance(table, TableResults)]
    # Teachers as well: the page leads from a cell's run to the run of its teacher.
    return list(plan.needed(run for frame in frames for run in frame.run.dropna().unique()))


def describe_run(runs: Path, run: str, planned: RunSpec) -> Record:
    """One run as the page shows it: result, settings, curves, where it was made, the end of its log."""
    metrics = read_json(runs / run / "metrics.json") or {}
    execution, provenance = metrics.get("execution") or {}, metrics.get("provenance") or {}
    # Of a run that is not finished: what is planned, and the epochs that it has noted.
    spec = metrics.get("spec") or planned.model_dump(mode="json")
    return {
        "seed": spec.get("seed"),
        "best": metrics.get("best"),
        "last": metrics.get("last"),
        "ema": metrics.get("ema"),
        "teacher_top1": metrics.get("teacher_top1"),
        "fused_top1": metrics.get("fused_top1"),
        "seconds": metrics.get("seconds"),
        "images_per_second": metrics.get("images_per_second"),
        "peak_memory_mb": metrics.get("peak_memory_mb"),
        "parameters": metrics.get("parameters"),
        "weights_sha256": metrics.get("weights_sha256"),
        "spec": without_nulls(spec),
        "curves": thin_history(metrics.get("history") or read_history(runs / run)),
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
    # Counted from the end, so that the last epoch is always among them.
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


def describe_figures(about: Iterable[Path]) -> list[Record]:
    """The page's figures with their pictures inside the page itself, from what drawing them wrote of them."""
    figures = []
    for path in about:
        figure = json.loads(path.read_text(encoding="utf-8"))
        # The page draws curves by itself, from the runs' histories; the files are linked.
        describe = describe_links if figure["kind"] == "curves" else describe_picture
        pictures = [describe(picture) for picture in figure["pictures"]]
        figures.append({**figure, "title": pretty(figure["title"]), "pictures": pictures})
    return figures


def describe_links(picture: Record) -> Record:
    """A picture that is only linked: what it shows, and its files."""
    return {
        "uri": "",
        "part": picture["title"] or "accuracy",
        "files": [(f"figures/{name}", kind, name) for name, kind in picture["files"]],
    }


def describe_picture(picture: Record) -> Record:
    """One PNG as a data URI, itself in words, and links to its PDF and its numbers."""
    # Inside the page, so that it can be sent as one file; with 128 colours, which a figure does not exceed
    # by eye, as the page would be three times as large with all.
    with Image.open(picture["png"]) as image:
        width, height = image.size
        content = io.BytesIO()
        image.convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            content, "png", optimize=True
        )
    return {
        "uri": f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}",
        # In CSS pixels: figures have 300 dots an inch, and a page half as many is sharp on every screen.
        "width": max(1, width // 2),
        "height": max(1, height // 2),
        "alt": picture["words"],
        "part": picture["title"],
        "files": [(f"figures/{name}", kind, name) for name, kind in picture["files"]],
    }


# ---------------------------------------------------------------- the page


def describe_page(
    flow: Flow,
    page: str,
    about: Iterable[Path],
    claims: Path | None = None,
    unfinished: Mapping[str, str] | None = None,
) -> Record:
    """Everything the template needs; `about` are the files that drawing the page's figures wrote.

    Runs in `unfinished` are shown as they stand; all others must be finished.
    """
    shown = flow.plan.of_page(page)
    results = collect_tables(flow, shown if unfinished is None else ready_tables(flow, shown), unfinished)
    folder = Path(flow.runs)
    # A teacher that was deleted after its students had finished is not trained for the page.
    listed = [run for run in list_runs(results, flow.plan) if unfinished or is_finished(folder, run)]
    runs = {run: describe_run(folder, run, flow.plan.runs[run]) for run in listed}
    tables = [describe_table(flow, table) for table in results]
    return {
        "title": {"index": "FBT: measured and printed", "grid": "FBT: the grids, measured and printed"}[page],
        "tiles": count_tiles(tables, runs),
        "sources": describe_sources(flow.config, {flow.plan.runs[run].method.name for run in runs}),
        "kinds": KINDS,
        "titles": {key: entry.title for key, entry in flow.config.architectures.items()},
        "scale": flow.scale,
        "scale_label": flow.config.scale_label,
        "facts": facts(flow, runs),
        "claims": describe_claims(claims),
        "tables": tables,
        "figures": describe_figures(about),
        "runs": runs,
        "again": train_again(flow),
    }


def count_tiles(tables: Sequence[Record], runs: Mapping[str, Record]) -> list[tuple[str, str]]:
    """What the page begins with: (number, what it counts)."""
    cells = [cell for table in tables for line in table["lines"] for cell in line.get("cells", ())]
    planned = [cell for cell in cells if cell["runs"]]
    filled = sum(not cell["state"] for cell in planned)
    gpu = sum(float(run["execution"].get("gpu_hours") or 0) for run in runs.values())
    hours = sum(float(run["seconds"] or 0) for run in runs.values()) / 3600
    # Without a GPU there are no GPU hours; how long the trainings took is known all the same.
    time = (f"{hours:,.1f}", "hours of training")
    if gpu >= 1:
        time = (f"{gpu:,.0f}", "GPU hours")
    return [(f"{filled} of {len(planned)}", "cells filled"), time]


def describe_claims(path: Path | None) -> Record | None:
    """The verdicts of a claims file and how many there are of each; None without a file."""
    if path is None:
        return None
    # newline="": csv finds the ends of lines itself, as a quoted text may hold some.
    with path.open(newline="", encoding="utf-8") as file:
        claims = list(csv.DictReader(file))
    counted = Counter(claim["verdict"] for claim in claims)
    comparisons = draw_intervals(path.with_name(f"{path.stem}_intervals.csv"))
    for claim in claims:
        claim["comparisons"] = comparisons.get(claim["key"], [])
        claim["evidence"] = pretty(claim["evidence"])
    return {"claims": claims, "counts": {verdict: counted[verdict] for verdict in VERDICTS}}


def draw_intervals(path: Path) -> dict[str, list[Record]]:
    """The comparisons of each claim with what a small drawing of them needs: positions in % of its width.

    All share one axis, which reaches as far as the intervals do. A printed difference beyond it is an arrow.
    """
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["unit"] == "points"]
    ends = [float(line[end]) for line in lines for end in ("low", "high")]
    # Zero is always shown: an interval means nothing without it.
    least, most = min([-1.0, *ends]), max([1.0, *ends])

    def position(value: float) -> float:
        return round(4 + 92 * (min(max(value, least), most) - least) / (most - least), 2)

    drawn: dict[str, list[Record]] = {}
    for line in lines:
        low, mean, high = (float(line[number]) for number in ("low", "difference", "high"))
        record: Record = {
            "pair": pretty(line["pair"]),
            "verdict": line["verdict"],
            "mean": mean,
            "low": low,
            "high": high,
        }
        record |= {"at": [position(value) for value in (0.0, low, mean, high)], "printed": None}
        if line["printed"]:
            printed = float(line["printed"])
            beyond = ""
            if printed < least:
                beyond = "left"
            elif printed > most:
                beyond = "right"
            record |= {"printed": printed, "printed_at": position(printed), "beyond": beyond}
        drawn.setdefault(line["key"], []).append(record)
    return drawn


def train_again(flow: Flow) -> dict[str, str]:
    """What trains a run again: its folder, which goes first, and the command; RUN stands for the run's id."""
    # A reader copies the command: it must run as it stands, at this scale.
    where = "--cores 2" if flow.config.scale.trainings.cpu else "--profile slurm"
    settings = {**flow.changes, "scale": flow.scale}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    changes = " ".join(shlex.quote(f"{key}={text}") for key, text in texts.items())
    folder = f"{flow.runs}/RUN"
    # the target comes before --config, which takes all that follows
    return {"folder": folder, "command": f"snakemake {where} {folder}/metrics.json --config {changes}"}


def facts(flow: Flow, runs: Mapping[str, Record]) -> dict[str, str]:
    """What this page is, in a line: scale, recipe set, runs, when and from which code they come."""
    dates = sorted(str(run["finished"])[:10] for run in runs.values() if run["finished"])
    # More than one, if so: the page must not hide that its results come from several states of the code.
    shas = sorted(
        {
            f"{run['git_sha'][:10]}{' + changes' if run['git_dirty'] else ''}"
            for run in runs.values()
            if run["git_sha"]
        }
    )
    said = {
        "scale": flow.scale,
        "recipe set": flow.scale if flow.config.scale.recipes else flow.config.main.recipes,
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
