"""What the measured numbers say of each claim: it holds, it is contradicted, or this evidence cannot decide.

The rule, the same for every claim: a difference has a two-sided 95 % interval
(fbt_paper/tables/statistics.py). A claim "A is above B by d" holds if the whole interval is above d, is
contradicted if the whole interval is below d, and is undecided otherwise. If A and B are truly equal, each
of the two wrong verdicts comes in at most 2.5 % of cases.

- On every pair: holds if it holds on each pair (an intersection-union test, which needs no correction); it is
  contradicted if it is contradicted on some pair after Holm's correction for having looked at all of them.
- About the same: two one-sided tests, i.e. the 90 % interval lies within the band.
- An order: each cell above the next, like a claim on every pair.
- Rises and falls: above on some pair and below on some pair, both after Holm's correction.
- A ratio of counted numbers has no chance in it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fbt_paper.config.claims import (
    Above,
    Claim,
    Observation,
    Ordered,
    Ratio,
    Same,
    Varies,
    pair_label,
    pairs,
)
from fbt_paper.config.load import Config
from fbt_paper.config.records import CostTable
from fbt_paper.plan.runs import Plan
from fbt_paper.tables.cost_table import collect_costs
from fbt_paper.tables.frame import rows_of
from fbt_paper.tables.outcomes import CellOutcome, compare, compare_means, read_cell
from fbt_paper.tables.statistics import CONFIDENCE, Estimate, holm

Verdict = Literal["holds", "contradicted", "undecided", "not measured"]
WRONG = (1 - CONFIDENCE) / 2
"""How often a claim about two equal cells is said to hold, and how often to be contradicted."""


@dataclass(frozen=True)
class Part:
    """One comparison inside a claim: the pair it is about, what was measured and what the paper prints."""

    name: str
    verdict: Verdict
    measured: Estimate | None = None
    printed: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class Judgement:
    """A claim, its verdict, the comparisons behind it, and words for a reader."""

    claim: Claim
    verdict: Verdict
    parts: Sequence[Part]
    words: str
    sources: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Evidence:
    """All that verdicts are made from."""

    config: Config
    plan: Plan
    results: Path
    cells: dict[str, CellOutcome] = field(default_factory=dict)

    def cell(self, path: str) -> CellOutcome:
        """A cell's outcome; many claims ask for the same cells, and each is read once."""
        if path not in self.cells:
            self.cells[path] = read_cell(self.plan, self.results / "runs", path)
        return self.cells[path]

    def printed(self, path: str) -> float | None:
        """The number that the paper prints in a cell, if it is known."""
        table, row, column = path.split("/")
        lines = self.config.references.get(table, ())
        return next((line.value for line in lines if (line.row, line.column) == (row, column)), None)


def judge_all(claims: Sequence[Claim], evidence: Evidence) -> list[Judgement]:
    """The verdict on every claim."""
    return [JUDGES[type(claim)](claim, evidence) for claim in claims]


def judge_above(claim: Above, evidence: Evidence) -> Judgement:
    """One cell above another; on every pair, or on average over the pairs."""
    cells = pairs(evidence.config, (claim.better, claim.than))
    if not claim.on_average:
        return _judge_each(claim, evidence, cells, claim.by_at_least)
    outcomes = [(evidence.cell(better), evidence.cell(than)) for better, than in cells.values()]
    # A mean over the pairs that happen to be finished would be another claim.
    if any(_unfinished(better, than) for better, than in outcomes):
        return _not_measured(claim, [side for sides in outcomes for side in sides])
    measured = compare_means(outcomes)
    printed = [_printed_difference(evidence, better, than) for better, than in cells.values()]
    known = [number for number in printed if number is not None]
    mean = sum(known) / len(known) if len(known) == len(printed) else None
    verdict = verdict_of(measured, claim.by_at_least)
    part = Part(f"mean of {len(outcomes)} pairs", verdict, measured, mean)
    return Judgement(claim, verdict, [part], _interval_words([part]), measured.sources)


def judge_ordered(claim: Ordered, evidence: Evidence) -> Judgement:
    """Each cell above the next."""
    steps = zip(claim.best_first, claim.best_first[1:], strict=False)
    cells = {f"{_short(first)} above {_short(second)}": (first, second) for first, second in steps}
    return _judge_each(claim, evidence, cells, 0.0)


def judge_same(claim: Same, evidence: Evidence) -> Judgement:
    """Two one-sided tests against the stated band."""
    parts: list[Part] = []
    unfinished: list[CellOutcome] = []
    for name, (first, second) in pairs(evidence.config, claim.same).items():
        outcome, other = evidence.cell(first), evidence.cell(second)
        if _unfinished(outcome, other):
            unfinished += [outcome, other]
            continue
        measured = compare(outcome, other)
        # Two one-sided tests at 5 % are the 90 % interval; to contradict, the 95 % one must lie outside.
        low, high = measured.interval(1 - 2 * (1 - CONFIDENCE))
        wide_low, wide_high = measured.interval()
        verdict: Verdict = "undecided"
        if -claim.within < low and high < claim.within:
            verdict = "holds"
        elif wide_low > claim.within or wide_high < -claim.within:
            verdict = "contradicted"
        printed = _printed_difference(evidence, first, second)
        parts.append(Part(pair_label(evidence.config, first, name), verdict, measured, printed))
    if unfinished:
        return _not_measured(claim, unfinished)
    words = f"{_interval_words(parts)}; band ± {claim.within:g}: {claim.because}"
    return Judgement(claim, _all_hold(parts), parts, words, _sources(parts))


def judge_varies(claim: Varies, evidence: Evidence) -> Judgement:
    """Above on some pair, below on some other, both corrected for having looked at all pairs."""
    parts = _compare_each(evidence, pairs(evidence.config, claim.rises_and_falls), 0.0)
    if parts is None:
        cells = [cell for names in pairs(evidence.config, claim.rises_and_falls).values() for cell in names]
        return _not_measured(claim, [evidence.cell(cell) for cell in cells])
    estimates = [part.measured for part in parts if part.measured is not None]
    # One pair of each sign is enough, so the smallest p-value counts, corrected for having looked at all.
    above = min(holm([part.p_above(0.0) for part in estimates]))
    below = min(holm([part.p_below(0.0) for part in estimates]))
    # It is contradicted if no pair leaves room for the other sign.
    verdict: Verdict = "undecided"
    if above < WRONG and below < WRONG:
        verdict = "holds"
    elif all(part.verdict == "holds" for part in parts) or all(p.verdict == "contradicted" for p in parts):
        verdict = "contradicted"
    return Judgement(claim, verdict, parts, _interval_words(parts), _sources(parts))


def judge_ratio(claim: Ratio, evidence: Evidence) -> Judgement:
    """Counted numbers, by the paper's rule: inside the stated range or not."""
    table = claim.ratio.split("/")[0]
    counted = evidence.results / "costs" / f"{table}.json"
    if not counted.exists():
        return Judgement(claim, "not measured", [], f"{counted.name} is not counted yet")
    numbers = counted_numbers(evidence.config, table, counted)
    parts = []
    for name, (above, below) in pairs(evidence.config, (claim.ratio, claim.of)).items():
        share = numbers[above] / numbers[below]
        low, high = claim.between
        printed, printed_below, in_print = evidence.printed(above), evidence.printed(below), None
        if printed is not None and printed_below:
            in_print = printed / printed_below
        verdict: Verdict = "holds" if low <= share <= high else "contradicted"
        parts.append(Part(pair_label(evidence.config, above, name), verdict, None, in_print, share))
    words = ", ".join(f"{part.name} {part.value:.3f}" for part in parts)
    return Judgement(claim, _all_hold(parts), parts, words)


def counted_numbers(config: Config, table: str, counted: Path) -> dict[str, float]:
    """A cost table's numbers by the paper's rule, by cell path; L2G's with the block that fits the paper."""
    entry = config.tables[table]
    # Claims name the block that fits the paper `fbt_branch`, as the printed numbers do.
    block = entry.paper_block if isinstance(entry, CostTable) else ""
    return {
        f"{table}/{count.row}/{count.part.removesuffix(f'_{block}')}_{count.quantity}": count.rule
        for count in rows_of(collect_costs(config, table, counted).frame)
    }


def judge_observation(claim: Observation, evidence: Evidence) -> Judgement:
    """What a feature figure measured of a statement: two means, without an interval, so a description."""
    path = evidence.results / "figures" / f"{claim.figure}_claims.csv"
    if not path.exists():
        return Judgement(claim, "not measured", [], f"{path.name} is not drawn yet")
    # newline="": csv finds the ends of lines itself, as a quoted text may hold some.
    with path.open(newline="") as file:
        lines = {line["quantity"]: line for line in csv.DictReader(file)}
    if claim.observation not in lines:
        return Judgement(claim, "not measured", [], f"{path.name} has no '{claim.observation}'")
    line = lines[claim.observation]
    first, second = float(line["first"]), float(line["second"])
    words = f"{line['first_group']} {first:.3f}, {line['second_group']} {second:.3f}; means, no interval"
    return Judgement(claim, "holds" if first > second else "contradicted", [], words)


JUDGES: Mapping[type[Claim], Callable[..., Judgement]] = {
    Above: judge_above,
    Ordered: judge_ordered,
    Same: judge_same,
    Varies: judge_varies,
    Ratio: judge_ratio,
    Observation: judge_observation,
}


def verdict_of(measured: Estimate, threshold: float) -> Verdict:
    """Holds if the whole interval is above the threshold, contradicted if the whole of it is below."""
    low, high = measured.interval()
    if low > threshold:
        return "holds"
    return "contradicted" if high < threshold else "undecided"


def _judge_each(
    claim: Claim, evidence: Evidence, cells: Mapping[str, tuple[str, ...]], threshold: float
) -> Judgement:
    """A claim on every pair."""
    parts = _compare_each(evidence, cells, threshold)
    if parts is None:
        return _not_measured(claim, [evidence.cell(cell) for names in cells.values() for cell in names])
    verdict = _all_hold(parts)
    if verdict == "contradicted" and len(parts) > 1:
        # Having looked at all pairs, one that is below by chance must not decide.
        below = [part.measured.p_below(threshold) for part in parts if part.measured]
        if min(holm(below)) >= WRONG:
            verdict = "undecided"
    words = _interval_words(parts)
    if len(parts) > 1:
        words = f"holds on {sum(p.verdict == 'holds' for p in parts)} of {len(parts)}: {words}"
    return Judgement(claim, verdict, parts, words, _sources(parts))


def _compare_each(
    evidence: Evidence, cells: Mapping[str, tuple[str, ...]], threshold: float
) -> list[Part] | None:
    """One comparison per pair; None if a run of any is missing."""
    parts = []
    for name, (better, than) in cells.items():
        above, below = evidence.cell(better), evidence.cell(than)
        if _unfinished(above, below):
            return None
        measured = compare(above, below)
        printed = _printed_difference(evidence, better, than)
        label = pair_label(evidence.config, better, name)
        parts.append(Part(label, verdict_of(measured, threshold), measured, printed))
    return parts


def _all_hold(parts: Sequence[Part]) -> Verdict:
    """Holds if all hold, contradicted if one is contradicted."""
    verdicts = {part.verdict for part in parts}
    if verdicts == {"holds"}:
        return "holds"
    return "contradicted" if "contradicted" in verdicts else "undecided"


def _unfinished(*sides: CellOutcome) -> bool:
    return any(side.missing or not side.runs for side in sides)


def _not_measured(claim: Claim, cells: Sequence[CellOutcome]) -> Judgement:
    missing = {run for cell in cells for run in cell.missing}
    return Judgement(claim, "not measured", [], f"{len(missing)} runs are not finished")


def _printed_difference(evidence: Evidence, better: str, than: str) -> float | None:
    numbers = [evidence.printed(path) for path in (better, than)]
    if numbers[0] is None or numbers[1] is None:
        return None
    # As printed: the difference of two floats would show digits that nobody printed.
    return round(numbers[0] - numbers[1], 2)


def _interval_words(parts: Sequence[Part]) -> str:
    """`+1.20 [0.31, 2.09]` for each pair, with the printed difference if it is known."""
    texts = []
    for part in parts:
        assert part.measured is not None
        low, high = part.measured.interval()
        text = f"{part.measured.mean:+.2f} [{low:.2f}, {high:.2f}]"
        if part.printed is not None:
            text += f" (printed {part.printed:+.2f})"
        texts.append(f"{part.name or 'difference'} {text}")
    return "; ".join(texts)


def _sources(parts: Sequence[Part]) -> tuple[str, ...]:
    """What varied in all comparisons of a claim."""
    sources = [part.measured.sources for part in parts if part.measured]
    # The fewest: one pair that lacks the chance of seeds makes the whole claim lack it.
    return min(sources, key=len) if sources else ()


def _short(path: str) -> str:
    """The part of a cell's path that differs from others of its table."""
    return path.split("/")[1]
