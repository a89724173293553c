"""What a figure shows, in words with its numbers: the text for those who cannot see the picture."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fbt_core.methods.facts import FILE, read_facts
from fbt_paper.figures import similarity, taxonomy
from fbt_paper.figures.curves import say_term
from fbt_paper.figures.draw import claims_file, read_arrays

Line = Mapping[str, str]


def describe_figure(kind: str, part: str, stem: Path, figure: Path) -> str:
    """The content of one picture from the numbers beside it; empty where they are not there.

    `part` is what the picture's name adds to that of its figure: "", "_numbers", "_losses" or "_gaps".
    """
    describe = DESCRIBERS.get(f"{kind}{part}")
    return describe(stem, figure) if describe else ""


def read_lines(path: Path) -> list[Line]:
    """The lines of a CSV file; none where it is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_claims(path: Path) -> list[str]:
    """The appendix's statements about a features figure with the two measured means, one sentence each."""
    return [_say_claim(line) for line in read_lines(path)]


def _say_claim(line: Line) -> str:
    verdict = "as stated" if line["holds"] == "True" else "not as stated"
    first = f"{line['first_group']} {float(line['first']):.2f}"
    second = f"{line['second_group']} {float(line['second']):.2f}"
    where = f"; on {line['positions']} positions" if line.get("positions") else ""
    return f"{line['statement']}: {verdict} ({line['quantity'].replace('_', ' ')}: {first}, {second}{where})."


def _say_taxonomy(stem: Path, figure: Path) -> str:
    return taxonomy.describe(read_facts(FILE))


def _say_maps(stem: Path, figure: Path) -> str:
    networks = dict.fromkeys(line["network"] for line in read_lines(_csv(figure, "_numbers")))
    shown = (
        f"Maps of stages S1 to S4 and channel groups G1 to G3 of {', '.join(networks)}." if networks else ""
    )
    return " ".join(filter(None, [shown, *read_claims(claims_file(figure))]))


def _say_numbers(stem: Path, figure: Path) -> str:
    lines = [line for line in read_lines(_csv(stem)) if line["value"]]
    said = []
    for quantity in dict.fromkeys(line["quantity"] for line in lines):
        measured = [line for line in lines if line["quantity"] == quantity]
        means = _means_by(("network",), measured, "value")
        ranked = sorted(means.items(), key=lambda item: -item[1])
        values = ", ".join(f"{name} {value:.2f}" for (name,), value in ranked)
        over = " (mean over stages)" if len(measured) > len(means) else ""
        said.append(f"{quantity.replace('_', ' ')}{over}: {values}")
    return f"{'; '.join(said)}." if said else ""


def _say_similarity(stem: Path, figure: Path) -> str:
    return similarity.describe(read_arrays(stem)) if stem.with_name(f"{stem.name}.npz").exists() else ""


def _say_accuracy(stem: Path, figure: Path) -> str:
    lines = read_lines(_csv(stem))
    last = _last_epochs(lines)
    if not last:
        return ""
    means = _means_by(("row", "column"), last, "value")
    low, high = min(means, key=lambda cell: means[cell]), max(means, key=lambda cell: means[cell])
    return (
        f"{len(means)} curves; after the last epoch from {means[low]:.2f} % ({_name(low)})"
        f" to {means[high]:.2f} % ({_name(high)})."
    )


def _say_losses(stem: Path, figure: Path) -> str:
    lines = read_lines(_csv(stem))
    terms = [
        q.removeprefix("term:") for q in dict.fromkeys(line["quantity"] for line in lines) if q != "loss"
    ]
    total = [float(line["value"]) for line in _last_epochs(lines) if line["quantity"] == "loss"]
    if not total:
        return ""
    said = "; ".join(map(say_term, terms)).replace("→", "to")
    return f"Terms: {said}. Total loss after the last epoch: {min(total):.3g} to {max(total):.3g}."


def _say_gaps(stem: Path, figure: Path) -> str:
    lines = [line for line in read_lines(_csv(stem)) if line["gap"]]
    if not lines:
        return ""
    gaps = [float(line["gap"]) for line in lines]
    widest = max(lines, key=lambda line: abs(float(line["gap"])))
    cell = _name((widest["row"], widest["column"]))
    return (
        f"{len(gaps)} cells; mean gap (ours minus paper) {statistics.fmean(gaps):+.2f},"
        f" widest {float(widest['gap']):+.2f} ({cell})."
    )


def _csv(stem: Path, ending: str = "") -> Path:
    return stem.with_name(f"{stem.name}{ending}.csv")


def _last_epochs(lines: Sequence[Line]) -> list[Line]:
    """The lines of each run's last epoch."""
    last: dict[str, int] = {}
    for line in lines:
        last[line["run"]] = max(last.get(line["run"], 0), int(line["epoch"]))
    return [line for line in lines if int(line["epoch"]) == last[line["run"]]]


def _means_by(keys: Sequence[str], lines: Sequence[Line], value: str) -> dict[tuple[str, ...], float]:
    groups: dict[tuple[str, ...], list[float]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in keys), []).append(float(line[value]))
    return {key: statistics.fmean(values) for key, values in groups.items()}


def _name(cell: Sequence[str]) -> str:
    return ", ".join(
        re.sub(r"\\mathcal|[${}]", "", part).replace("_", " ").replace("→", "to") for part in cell
    )


DESCRIBERS: dict[str, Callable[[Path, Path], str]] = {
    "taxonomy": _say_taxonomy,
    "features": _say_maps,
    "features_numbers": _say_numbers,
    "similarity": _say_similarity,
    "curves": _say_accuracy,
    "curves_losses": _say_losses,
    "curves_gaps": _say_gaps,
}
