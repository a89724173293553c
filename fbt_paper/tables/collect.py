"""From the runs' metrics.json to a table's cells: measured, printed, gap; mean and deviation over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbt_paper.config.load import Config, ConfigError, Problem
from fbt_paper.config.records import AccuracyTable, ReferenceRow
from fbt_paper.plan.runs import Plan
from fbt_paper.tables.reference import printed_numbers

Metrics = Mapping[str, Any]


SCORES = {
    "best": "the best epoch",
    "last": "the last epoch",
    "ema": "the averaged weights' best epoch (best epoch where a recipe has none)",
}
"""What config.yaml's `score` takes from a run, in words."""


@dataclass(frozen=True)
class Entry:
    """One cell: top-1 of each seed's run (in %), the printed number, and why it may be empty."""

    values: tuple[float, ...] = ()
    runs: tuple[str, ...] = ()
    reference: ReferenceRow | None = None
    note: str = ""

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None while nothing is measured."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def gap(self) -> float | None:
        """Measured minus printed; None where one of the two is missing."""
        return None if self.mean is None or self.reference is None else self.mean - self.reference.value


@dataclass(frozen=True)
class Collected:
    """A table with everything that is known about its cells; lines are (key, label) pairs."""

    key: str
    title: str
    caption: str
    corner: str
    scale: str
    rows: tuple[tuple[str, str], ...]
    columns: tuple[tuple[str, str], ...]
    entries: Mapping[tuple[str, str], Entry]
    warnings: tuple[str, ...] = ()
    score: str = "best"

    def entry(self, row: str, column: str) -> Entry:
        """The cell of a row and a column; an empty one where the table has none."""
        return self.entries.get((row, column), Entry())


def read_metrics(run: str, runs: Path) -> Metrics:
    """A finished run's metrics.json; a ConfigError names the file when it is missing or broken."""
    path = runs / run / "metrics.json"
    try:
        metrics: Metrics = json.loads(path.read_text())
        float(metrics["best"]["top1"])
    except FileNotFoundError:
        raise ConfigError(
            [Problem(str(path), "", "the run is not finished; `snakemake` trains it")]
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        message = f"is no run's result ({type(error).__name__}: {error}); delete it to train the run again"
        raise ConfigError([Problem(str(path), "", message)]) from None
    return metrics


def collect(config: Config, plan: Plan, key: str, runs: Path) -> Collected:
    """All cells of an accuracy table; every run of the table must be finished."""
    table, planned = config.tables[key], plan.tables[key]
    if not isinstance(table, AccuracyTable):
        raise ConfigError([Problem(f"config/tables/{key}.yaml", "kind", "not an accuracy table")])
    metrics = {run: read_metrics(run, runs) for run in planned.runs}
    printed = printed_numbers(config, key)
    values = {run: _score(found, config.main.score, runs / run) for run, found in metrics.items()}
    entries = {
        place: Entry(tuple(values[run] for run in cell.runs), cell.runs, printed.get(place), cell.note)
        for place, cell in planned.cells.items()
    }
    rows = tuple((line.key, line.label) for line in table.rows)
    columns = tuple((line.key, line.label) for line in table.columns)
    if table.gain:
        extra = ((table.gain.key, table.gain.label),)
        gains = _gains(table, entries)
        entries |= {place: Entry(**gain, reference=printed.get(place)) for place, gain in gains.items()}
        rows, columns = (rows + extra, columns) if table.gain.along == "rows" else (rows, columns + extra)
    return Collected(
        key=key,
        title=table.title,
        caption=table.caption,
        corner=table.corner,
        scale=plan.scale,
        rows=rows,
        columns=columns,
        entries=entries,
        warnings=tuple(mixed(metrics)),
        score=config.main.score,
    )


def _score(metrics: Metrics, score: str, folder: Path) -> float:
    """A run's top-1 in %. A run without averaged weights (its recipe has no EMA) counts with its own best."""
    try:
        return float((metrics.get(score) or metrics["best"])["top1"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"states no top-1 of `{score}` ({type(error).__name__}: {error}); delete it to train again"
        raise ConfigError([Problem(str(folder / "metrics.json"), "", message)]) from None


def _gains(
    table: AccuracyTable, entries: Mapping[tuple[str, str], Entry]
) -> dict[tuple[str, str], dict[str, Any]]:
    """The closing line: for each method the mean over the pairs of (its cell - the cell `over`)."""
    gain = table.gain
    assert gain is not None  # the caller asks only where there is one
    along_rows = gain.along == "rows"
    pairs, lines = (table.rows, table.columns) if along_rows else (table.columns, table.rows)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        if line.key == gain.over or line.measure == "teacher":
            continue
        cells = [(pair.key, line.key, gain.over) for pair in pairs]
        places = [((p, m), (p, o)) if along_rows else ((m, p), (o, p)) for p, m, o in cells]
        differences = [_difference(entries.get(one), entries.get(other)) for one, other in places]
        known = [difference for difference in differences if difference is not None]
        place = (gain.key, line.key) if along_rows else (line.key, gain.key)
        found[place] = {
            "values": (statistics.fmean(known),) if known else (),
            "note": f"mean of {len(known)} pairs",
        }
    return found


def _difference(one: Entry | None, other: Entry | None) -> float | None:
    if one is None or other is None or one.mean is None or other.mean is None:
        return None
    return one.mean - other.mean


def mixed(metrics: Mapping[str, Metrics]) -> list[str]:
    """One warning for each revision, library version or device that differs within a table."""
    seen: dict[str, set[str]] = {}
    for result in metrics.values():
        for what, value in _circumstances(result):
            seen.setdefault(what, set()).add(value)
    return [f"mixes {what}: {', '.join(sorted(values))}" for what, values in seen.items() if len(values) > 1]


def _circumstances(result: Metrics) -> Iterable[tuple[str, str]]:
    spec, method = result.get("spec", {}), result.get("spec", {}).get("method", {})
    yield "revisions of the engine", str(spec.get("engine_revision"))
    yield f"revisions of {method.get('name')}", str(method.get("revision"))
    if method.get("fusion_revision") is not None:
        yield "revisions of the fused model", str(method["fusion_revision"])
    versions = result.get("provenance", {}).get("versions", {})
    for library in ("torch", "timm"):
        if library in versions:
            yield f"versions of {library}", str(versions[library])
    if "device" in result.get("execution", {}):
        yield "devices", str(result["execution"]["device"]).partition(":")[0]
