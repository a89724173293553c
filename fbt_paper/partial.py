"""What `fbt build-page --partial` writes: tables, comparison, claims and page while runs go on or fail.

Trains nothing and needs nothing: what is not finished is shown as it stands. The files lie in
results/<scale>/partial/, the page beside the finished one, so that no rule takes them for results.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fbt_core.files import write_text
from fbt_paper.claims.write import write_claims
from fbt_paper.page.build import write_page
from fbt_paper.plan.claims import FILES
from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.targets import Flow
from fbt_paper.status.unfinished import describe_unfinished
from fbt_paper.tables import compare
from fbt_paper.tables.results import collect_tables, ready_tables
from fbt_paper.tables.write import write_table


def write_partial(flow: Flow, page: str) -> Iterator[Path]:
    """The files of a page (index, grid) from what is there; yields their paths."""
    figures, folder = FigurePlan(flow), Path(flow.results, "partial")
    keys = ready_tables(flow, flow.plan.of_page(page))
    runs = flow.plan.needed(run for key in keys for run in flow.plan.tables[key].runs)
    unfinished = describe_unfinished(flow.plan, Path(flow.runs), runs)

    # tables and comparison
    tables = collect_tables(flow, keys, unfinished)
    for table in tables:
        yield from write_table(table, folder / "tables")
    suffix = "_grid" if page == "grid" else ""
    comparison = folder / f"comparison{suffix}.md"
    write_text(comparison, compare.to_markdown(tables, flow.config.scale_label))
    yield comparison

    # claims: what lacks a run is `not measured`
    (name,) = [name for name, shown_on in FILES.items() if shown_on == page]
    yield from write_claims(flow, name, folder)

    # the page, with those figures that are drawn already
    about = [Path(figures.folder, f"{drawing}.json") for drawing in figures.drawn(page)]
    yield write_page(
        flow, page, [path for path in about if path.exists()], folder / f"{name}.csv", unfinished
    )
