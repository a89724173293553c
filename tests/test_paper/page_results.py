"""A folder with made-up results of the whole smoke scale, for the tests of the page."""

from __future__ import annotations

import os
from pathlib import Path

from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.targets import Flow
from tests.test_paper.made_up_results import PIXEL, write_scale


def write_results(folder: Path, pictures: bool = True, page: str = "index") -> Flow:
    """A Flow whose results lie in `folder` (its paths are made absolute), pictures being single pixels."""
    here = Path.cwd()
    flow = Flow({}, here / "config")
    flow.results = os.fspath(folder / "results" / flow.scale)
    flow.runs = f"{flow.results}/runs"
    write_scale(flow, FigurePlan(flow).tables(page))
    figures = FigurePlan(flow)
    for name in figures.drawn(page) if pictures else ():
        for stem in figures.pictures(name):
            Path(stem).parent.mkdir(parents=True, exist_ok=True)
            Path(f"{stem}.png").write_bytes(PIXEL)
    return flow
