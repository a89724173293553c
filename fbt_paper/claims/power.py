"""What the planned seeds and test images can show of each claim, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fbt_paper.config.claims import Claim, Observation, Ratio, named_cells, pairs
from fbt_paper.config.records import ReferenceRow
from fbt_paper.plan.claims import ClaimPlan
from fbt_paper.plan.names import name_cells
from fbt_paper.tables.statistics import smallest_difference

SEED_DEVIATION = 0.5
"""Standard deviation (points) of a paired difference over seeds, as planning assumes."""
DISAGREEMENT = 0.15
"""Share of test images that two students of about 80 % judge differently, as planning assumes."""
POWER = 0.8
MOST_SEEDS = 50


@dataclass(frozen=True)
class PlannedClaim:
    """One claim: seeds and images of its cells, the smallest difference they show, the printed one."""

    claim: Claim
    seeds: int
    images: int
    smallest: float
    printed: float | None
    seeds_needed: int | None


def plan_claims(claims: ClaimPlan, chosen: Sequence[Claim]) -> list[PlannedClaim]:
    """Every claim that seeds and images decide; counted ratios and figures have no chance in them."""
    behind = name_cells(claims.flow.plan)
    return [_planned(claims, claim, behind) for claim in chosen if not isinstance(claim, Ratio | Observation)]


def _planned(claims: ClaimPlan, claim: Claim, behind: Mapping[str, Sequence[str]]) -> PlannedClaim:
    """One claim; `behind` are the runs of every cell by its path."""
    flow = claims.flow
    cells = pairs(flow.config, tuple(named_cells(claim).values()))
    paths = [path for names in cells.values() for path in names]
    runs = [behind[path] for path in paths]
    # The weakest cell decides what a claim about all of them can show.
    seeds = min(len(of_cell) for of_cell in runs)
    images = min(flow.plan.runs[run].dataset.test_images for of_cell in runs for run in of_cell)
    printed = _smallest_printed(flow.config.references, cells.values())
    return PlannedClaim(
        claim=claim,
        seeds=seeds,
        images=images,
        smallest=smallest_difference(seeds, images, SEED_DEVIATION, DISAGREEMENT, POWER),
        printed=printed,
        seeds_needed=None if printed is None else _seeds_for(printed, images),
    )


def _smallest_printed(
    references: Mapping[str, Sequence[ReferenceRow]], cells: Iterable[tuple[str, ...]]
) -> float | None:
    """The smallest of the printed differences that a claim is about; None if one of them is not printed."""
    numbers = {
        f"{table}/{line.row}/{line.column}": line.value
        for table, lines in references.items()
        for line in lines
    }
    differences = []
    for names in cells:
        for first, second in zip(names, names[1:], strict=False):
            if first not in numbers or second not in numbers:
                return None
            differences.append(abs(numbers[first] - numbers[second]))
    return min(differences)


def _seeds_for(difference: float, images: int) -> int | None:
    """The fewest seeds (two or more) that show a difference of this size; None if 50 do not."""
    # From two on: the chance of seeds is not in an interval of one.
    for seeds in range(2, MOST_SEEDS + 1):
        if smallest_difference(seeds, images, SEED_DEVIATION, DISAGREEMENT, POWER) <= difference:
            return seeds
    return None


def render(planned: Sequence[PlannedClaim]) -> list[tuple[str, ...]]:
    """Cells of a table for a terminal, headings first."""
    rows: list[tuple[str, ...]] = [
        ("claim", "seeds", "test images", "can show", "printed", "seeds for the printed one")
    ]
    for entry in planned:
        printed = needed = ""
        if entry.printed is not None:
            printed = f"{entry.printed:.2f}"
            needed = str(entry.seeds_needed or f"more than {MOST_SEEDS}")
        rows.append(
            (
                entry.claim.key,
                str(entry.seeds) + (" (images alone)" if entry.seeds == 1 else ""),
                str(entry.images),
                f"{entry.smallest:.2f}",
                printed,
                needed,
            )
        )
    return rows


NOTE = (
    f"`can show`: the smallest true difference (points) that gets the verdict `holds` with {POWER:.0%}\n"
    f"probability, if paired differences vary by {SEED_DEVIATION} points over seeds and two students judge\n"
    f"{DISAGREEMENT:.0%} of the test images differently (assumptions; docs/claims.md). On several pairs\n"
    "`printed` is the smallest of the printed differences."
)
