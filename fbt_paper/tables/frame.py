"""All results as one tidy data frame, and the cells of each table computed from it.

The frame has a row per table, row, column and seed (COLUMNS); cells without a run are rows without a score.
Every table, figure and page is made from it: `groupby` gives means and deviations.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fbt_paper.config.load import Config, ConfigError, Problem
from fbt_paper.config.records import AccuracyTable, ReferenceRow
from fbt_paper.plan.on_disk import describe_outdated
from fbt_paper.plan.runs import Cell as PlannedCell
from fbt_paper.plan.runs import Plan, table_label
from fbt_paper.tables.reference import independent_numbers, printed_numbers
from fbt_paper.tables.statistics import binomial_error

Metrics = Mapping[str, Any]
Cell = tuple[str, str]
"""Keys of a row and a column."""

SCORES = {
    "best": "the best epoch",
    "last": "the last epoch",
    "ema": "the averaged weights' best epoch (best epoch where a recipe has none)",
}
"""What config.yaml's `score` takes from a run, in words."""

SPREADS = (
    "±: the sample standard deviation over seeds; with † of one seed, the standard error of its test images."
)
LEADING = (
    "Bold: above every other of its pair beyond noise (95 % interval, last epoch); underlined, or in "
    "italics: the best and those that cannot be separated from it."
)
SIGNED_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
CELL_COLUMNS = ["scale", "table", "row", "column", "row_label", "column_label", "unit"]
PRINTED_COLUMNS = ["printed", "status", "source", "remark", "independent", "independent_source"]
MIXED = {
    "engine_revision": "revisions of the engine",
    "fusion_revision": "revisions of the fused model",
    "torch": "versions of torch",
    "timm": "versions of timm",
    "device": "devices",
}
"""What should be the same in all runs of a table, in words."""
COLUMNS = [
    *CELL_COLUMNS,
    *("seed", "run", "epoch", "score", "last", "images", "note", "state"),
    *("scratch", "printed_scratch"),
    *PRINTED_COLUMNS,
    *("method", "method_revision", *MIXED),
]


def score_remark(score: str, seeds: Sequence[int] | None = None) -> str:
    """Which epoch's top-1 is shown; with the seed counts of a table's cells: empty if none is measured."""
    if seeds is None:
        return f"Ours is top-1 in % of {SCORES[score]}, the mean over the seeds. {SPREADS}"
    if not seeds:
        return ""
    return f"Top-1 of {SCORES[score]}. Seeds per cell: {', '.join(map(str, seeds))}. {SPREADS}"


@dataclass(frozen=True)
class TableResults:
    """An accuracy table with its part of the frame; rows and columns are (key, label) pairs."""

    key: str
    title: str
    caption: str
    corner: str
    scale: str
    scale_label: str
    rows: Sequence[tuple[str, str]]
    columns: Sequence[tuple[str, str]]
    frame: pd.DataFrame
    score: str = "best"
    leads: Mapping[Cell, str] = field(default_factory=dict)
    """Cells that lead their pair or are tied with the best (fbt_paper/tables/leads.py)."""
    outdated: Sequence[str] = ()

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A line per cell, in reading order, by (row, column); see `cells_of`."""
        cells = cells_of(self.frame)
        # Of the cells that exist only: pandas raises KeyError for a label that is not there.
        order = [(row, column) for row, _ in self.rows for column, _ in self.columns]
        return cells.loc[[cell for cell in order if cell in cells.index]]

    @property
    def warnings(self) -> list[str]:
        """One warning for each revision, library version, device or teacher's weights that differ."""
        return [*mixed(self.frame), *self.outdated]

    @property
    def remarks(self) -> list[str]:
        """Which epoch's top-1 this is, what ± and bold mean, how optimistic it is; empty without a number."""
        remarks = [score_remark(self.score, sorted(set(self.cells.seeds) - {0})), self._progress()]
        remarks += [LEADING] if self.leads else []
        return [remark for remark in [*remarks, self._optimism()] if remark]

    def _progress(self) -> str:
        """How many cells are filled, while some are not."""
        planned = self.cells.runs.map(len)
        wanted, filled = (planned > 0).sum(), int(((planned > 0) & (self.cells.seeds == planned)).sum())
        if filled == wanted:
            return ""
        return f"{filled} of {wanted} cells are filled."

    def _optimism(self) -> str:
        """What choosing the epoch on the test images can add at most; empty if no epoch is chosen so."""
        above = self.cells.optimism.dropna()
        if self.score == "last" or not above.max() > 0:
            return ""
        # A maximum over epochs on the test set itself: the last epoch is what an honest user would have.
        return (
            "The epoch is chosen on the test images, which is optimistic: this score is above the last "
            f"epoch's by {above.mean():.2f} points on average, by {above.max():.2f} at most."
        )


def cells_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells of a table's frame: mean, seeds, runs, printed, gap, notes, and how sure the mean is.

    `deviation` is over seeds (from two on), `spread` is it or else the test images' standard error, `gain`
    the difference to `scratch` (the same recipe without a teacher), `optimism` the best epoch minus the last.
    """
    # Unsorted, here and below: a table's lines stand in the order of its file, not of the alphabet.
    keys = [frame.row, frame.column]
    groups = frame.groupby(keys, sort=False)
    mean, deviation = groups.score.mean(), groups.score.std()
    # The first value that is known: labels and printed numbers are the same in every seed of a cell.
    cells = groups[["row_label", "column_label", "unit", "note", *PRINTED_COLUMNS]].first()
    return cells.assign(
        mean=mean,
        deviation=deviation,
        spread=deviation.fillna(_of_images(mean, groups.images.first())),
        # Rows whose run is finished: a cell without one still has a row, for its printed number.
        seeds=frame.score.where(frame.run.notna()).groupby(keys, sort=False).count(),
        runs=groups.run.agg(lambda runs: tuple(runs.dropna())),
        state=groups.state.agg(lambda states: "; ".join(dict.fromkeys(states.dropna()))),
        gap=mean - cells.printed,
        scratch=groups.scratch.mean(),
        # Seed by seed: a seed whose baseline is not finished counts in neither mean.
        gain=(frame.score - frame.scratch).groupby(keys, sort=False).mean(),
        printed_gain=cells.printed - groups.printed_scratch.first(),
        optimism=(frame.score - frame["last"]).groupby(keys, sort=False).mean(),
    )


def _of_images(mean: pd.Series, images: pd.Series) -> pd.Series:
    """The standard error (points) of accuracies (percent) that were measured on so many test images."""
    known = zip(mean, images, strict=True)
    errors = [binomial_error(m, i) if pd.notna(m) and pd.notna(i) else math.nan for m, i in known]
    return pd.Series(errors, index=mean.index, dtype=float)


def collect(
    config: Config, plan: Plan, key: str, runs: Path, unfinished: Mapping[str, str] | None = None
) -> TableResults:
    """An accuracy table from the results of its runs; of those in `unfinished` it shows how they stand."""
    table = config.tables[key]
    if not isinstance(table, AccuracyTable):
        raise ConfigError([Problem(f"config/tables/{key}.yaml", "kind", "not an accuracy table")])
    rows = [(line.key, line.label) for line in table.rows]
    columns = [(line.key, line.label) for line in table.columns]
    if table.gain:
        (rows if table.gain.along == "rows" else columns).append((table.gain.key, table.gain.label))
    measured = list(_measured(config, plan, key, runs, unfinished or {}))
    frame = make_frame(measured, table=key, scale=plan.scale, unit="%")
    if table.gain:
        # Made twice: the closing line is a mean over cells, which only the frame gives.
        frame = make_frame([*measured, *_gains(table, frame)], table=key, scale=plan.scale, unit="%")
    frame["row_label"], frame["column_label"] = frame.row.map(dict(rows)), frame.column.map(dict(columns))
    _add_printed(config, key, frame)
    return TableResults(
        key=key,
        title=table.title,
        caption=table.caption,
        corner=table.corner,
        scale=plan.scale,
        scale_label=table_label(config, plan, key),
        rows=rows,
        columns=columns,
        frame=frame,
        score=config.main.score,
        outdated=describe_outdated(plan, plan.tables[key].runs, runs),
    )


def _measured(
    config: Config, plan: Plan, key: str, runs: Path, unfinished: Mapping[str, str]
) -> Iterator[dict[str, object]]:
    """A row per cell and seed; a cell without a run has one, which will hold the printed number alone."""
    results: dict[str, dict[str, object]] = {}
    for run in plan.tables[key].runs:
        if run in unfinished:
            results[run] = {"run": run, "seed": plan.runs[run].seed, "state": unfinished[run]}
        else:
            results[run] = _describe_run(run, runs, config.main.score)
            results[run] |= _baseline(config, plan, run, runs)
    for cell in plan.tables[key].cells.values():
        row = {"row": cell.row, "column": cell.column, **taught_score(cell, runs, unfinished)}
        for known in [results[run] for run in cell.runs] or [{}]:
            yield {**row, **known}


def _add_printed(config: Config, key: str, frame: pd.DataFrame) -> None:
    """Fill the columns of printed and independently measured numbers, which belong to cells."""
    printed, independent = printed_numbers(config, key), independent_numbers(config, key)
    numbers = [
        _printed(printed.get(cell)) | _independent(independent.get(cell, ()))
        for cell in zip(frame.row, frame.column, strict=True)
    ]
    # With the frame's own index: pandas aligns by index, not by position.
    frame[PRINTED_COLUMNS] = pd.DataFrame(numbers, columns=PRINTED_COLUMNS, index=frame.index)


def taught_score(cell: PlannedCell, runs: Path, unfinished: Mapping[str, str]) -> dict[str, object]:
    """The note of a cell, and the score of a teacher without a run of its own if a run has measured it."""
    if cell.teacher is None or not cell.measured_by or cell.measured_by in unfinished:
        return {"note": cell.note}
    metrics = read_metrics(cell.measured_by, runs)
    if metrics.get("teacher_top1") is None:  # trained before runs measured their teacher
        return {"note": cell.note}
    top1, images = float(metrics["teacher_top1"]), metrics["spec"]["dataset"]["test_images"]
    note = f"{cell.teacher.weights}, measured by {cell.measured_by}"
    return {"note": note, "score": top1, "last": top1, "images": images}


def make_frame(rows: Sequence[Mapping[str, object]], **same: str) -> pd.DataFrame:
    """A frame of these rows; `same` are values that all rows share."""
    frame = pd.DataFrame([{**same, **row} for row in rows], columns=COLUMNS)
    # Rows without a run have no seed: Int64 can say so, while int cannot and float would write 0.0.
    numbers = dict.fromkeys(("score", "last", "scratch", "printed_scratch", "images", "printed"), float)
    return frame.astype({**numbers, "seed": "Int64"})


def _printed(reference: ReferenceRow | None) -> dict[str, object]:
    if reference is None:
        return {}
    return {
        "printed": reference.value,
        "status": reference.status,
        "source": reference.source,
        "remark": reference.note,
    }


def _independent(lines: Sequence[ReferenceRow]) -> dict[str, object]:
    """What others measured, as text: a cell may have several such numbers."""
    if not lines:
        return {}
    sources = [f"{line.source} ({line.note})" if line.note else line.source for line in lines]
    return {
        "independent": ", ".join(f"{line.value:.2f}" for line in lines),
        "independent_source": "; ".join(dict.fromkeys(sources)),
    }


def read_metrics(run: str, runs: Path) -> Metrics:
    """A finished run's metrics.json; a ConfigError names the file when it is missing or broken."""
    path = runs / run / "metrics.json"
    try:
        metrics: Metrics = json.loads(path.read_text())
        # Tried here, where the file can be named: later it would be a KeyError far from it.
        float(metrics["best"]["top1"])
    except FileNotFoundError:
        raise ConfigError(
            [Problem(str(path), "", "the run is not finished; `snakemake` trains it")]
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        message = f"is no run's result ({type(error).__name__}: {error}); delete it to train the run again"
        raise ConfigError([Problem(str(path), "", message)]) from None
    return metrics


def _describe_run(run: str, runs: Path, score: str) -> dict[str, object]:
    """A run's score in % and how it was made. A run without averaged weights counts with its best epoch."""
    metrics = read_metrics(run, runs)
    # Not every recipe averages weights: such a run would leave a hole in a table of EMA scores.
    chosen = metrics.get(score) or metrics["best"]
    try:
        top1 = float(chosen["top1"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"states no top-1 of `{score}` ({type(error).__name__}: {error}); delete it to train again"
        raise ConfigError([Problem(str(runs / run / "metrics.json"), "", message)]) from None
    # Not needed for the score: a result that lacks them still counts, and `mixed` warns of what differs.
    spec = metrics.get("spec", {})
    method, versions = spec.get("method", {}), metrics.get("provenance", {}).get("versions", {})
    device = metrics.get("execution", {}).get("device")
    made = {
        "engine_revision": spec.get("engine_revision"),
        "method_revision": method.get("revision"),
        "fusion_revision": method.get("fusion_revision"),
        "torch": versions.get("torch"),
        "timm": versions.get("timm"),
        "device": str(device).partition(":")[0] if device else None,
    }
    return {
        "run": run,
        "seed": spec.get("seed"),
        "epoch": chosen.get("epoch"),
        "score": top1,
        "last": (metrics.get("last") or {}).get("top1"),
        "images": spec.get("dataset", {}).get("test_images"),
        "method": method.get("name"),
        **{name: None if value is None else str(value) for name, value in made.items()},
    }


def _baseline(config: Config, plan: Plan, run: str, runs: Path) -> dict[str, object]:
    """The score of the same training without a teacher, if finished, and what the paper prints for it."""
    scratch = plan.scratch_of(run)
    if scratch is None:
        return {}
    # The same run stands in several cells (one per teacher), of which some may have no printed number.
    printed = [
        reference.value
        for table in plan.tables_of(scratch)
        for cell, reference in printed_numbers(config, table).items()
        if cell in plan.tables[table].cells and scratch in plan.tables[table].cells[cell].runs
    ]
    known: dict[str, object] = {"printed_scratch": printed[0]} if printed else {}
    if (runs / scratch / "metrics.json").exists():
        known["scratch"] = _describe_run(scratch, runs, config.main.score)["score"]
    return known


def _gains(table: AccuracyTable, frame: pd.DataFrame) -> Iterator[dict[str, object]]:
    """The closing line: for each method the mean over the pairs of (its cell - the cell `over`)."""
    gain = table.gain
    assert gain is not None  # the caller asks only for a table that has one
    lines, means = table.columns, frame.groupby(["row", "column"]).score.mean().unstack()
    if gain.along == "columns":
        lines, means = table.rows, means.T
    # Reindexed: a line without any measured cell would be a KeyError instead of an empty mean.
    means = means.reindex(columns=[line.key for line in lines])
    for line in lines:
        # A teacher is no method: a gain of it over the student would mean nothing.
        if line.key == gain.over or line.measure == "teacher":
            continue
        # Only pairs that have both cells; the note says how many these are.
        known = (means[line.key] - means[gain.over]).dropna()
        row, column = (gain.key, line.key) if gain.along == "rows" else (line.key, gain.key)
        note = f"mean of {len(known)} pairs"
        yield {"row": row, "column": column, "score": known.mean(), "note": note}


def mixed(frame: pd.DataFrame) -> Iterator[str]:
    """One warning for each revision, library version or device that differs between a table's runs."""
    groups = [(what, frame[column]) for column, what in MIXED.items()]
    # By method: unlike revisions of unlike methods are nothing to warn of.
    groups += [(f"revisions of {name}", runs.method_revision) for name, runs in frame.groupby("method")]
    for what, values in groups:
        if values.nunique() > 1:
            yield f"mixes {what}: {', '.join(sorted(values.dropna().unique()))}"


def histories(table: TableResults, runs: Path) -> pd.DataFrame:
    """Every number that a table's runs have by epoch: accuracy, total loss, and each loss term.

    A row per cell, run, epoch and quantity: row and column (keys), run, seed, epoch, quantity, value.
    """
    records = []
    # A cell without a run has a row for its printed number, but no history.
    for cell in rows_of(table.frame.dropna(subset="run")):
        for epoch in read_metrics(cell.run, runs)["history"]:
            terms = {f"term:{name}": value for name, value in (epoch.get("terms") or {}).items()}
            for quantity, value in {"top1": epoch.get("top1"), "loss": epoch.get("loss"), **terms}.items():
                if value is not None:
                    records.append(
                        (cell.row, cell.column, cell.run, cell.seed, epoch["epoch"], quantity, float(value))
                    )
    header = ["row", "column", "run", "seed", "epoch", "quantity", "value"]
    return pd.DataFrame(records, columns=header)


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """The frame's rows, each with its columns as attributes and its index as `Index`."""
    return iter(frame.itertuples())


def as_csv(frame: pd.DataFrame) -> str:
    """The frame as CSV text, numbers with six digits; text that spreadsheets would run gets an apostrophe."""
    # One line end everywhere: pandas takes that of the system.
    text: str = frame.map(_harmless).to_csv(index=False, lineterminator="\n", float_format="%.6g")
    return text


def _harmless(value: object) -> object:
    # A spreadsheet runs text that begins so; signed numbers begin so as well and must stay numbers.
    formula = isinstance(value, str) and value[:1] in tuple("=+-@\t\r") and not SIGNED_NUMBER.fullmatch(value)
    return f"'{value}" if formula else value
