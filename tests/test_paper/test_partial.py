"""Tables, comparison, claims and page while runs go on or fail: nothing is trained, nothing is hidden."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fbt_paper.cli import main
from fbt_paper.plan.targets import Flow
from tests.test_paper.made_up_results import write_progress, write_run


@pytest.fixture
def partial(tmp_path, monkeypatch) -> Flow:
    """A folder in which one run of Table 5 is done, one runs, one has failed."""
    monkeypatch.chdir(tmp_path)
    flow = Flow({})
    done, running, failed = flow.plan.tables["table5"].runs[:3]
    now = datetime.now(UTC).isoformat()
    write_run(Path(flow.runs), flow.spec(done), top1=81.0)
    write_progress(Path(flow.runs), flow.spec(running), "running", now)
    write_progress(Path(flow.runs), flow.spec(failed), "failed", now, error="out of memory")
    return flow


def test_what_is_there_is_shown_and_the_rest_says_how_it_stands(partial, capsys):
    assert main(["build-page", "index", "--partial"]) == 0
    written = capsys.readouterr().out.split()
    assert written[-1] == "results/smoke/partial.html" and "results/smoke/partial/claims.md" in written
    table = Path("results/smoke/partial/tables/table5.md").read_text()
    cells = sum(len(cell.runs) > 0 for cell in partial.plan.tables["table5"].cells.values())
    assert f"1 of {cells} cells are filled." in table
    assert re.search(r"\\\[epoch 2/\d, 20 s left\\\]", table) and re.search(
        r"\\\[FAILED, epoch 2/\d\\\]", table
    )
    assert r"\[waiting\]" in table
    assert re.search(r"epoch 2/\d, 20 s left", Path("results/smoke/partial/comparison.md").read_text())
    assert "0 holds, 0 contradicted" in Path("results/smoke/partial/claims.md").read_text()


def test_the_page_counts_cells_and_shows_curves_of_what_runs(partial):
    assert main(["build-page", "index", "--partial"]) == 0
    page = Path("results/smoke/partial.html").read_text(encoding="utf-8")
    assert re.search(r"<b>1 of \d+</b> cells filled", page)
    assert re.search(r"epoch 2/\d, 20 s left", page) and "FAILED" in page and 'id="claims"' in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data["runs"][partial.plan.tables["table5"].runs[1]]["curves"]["epoch"] == [1, 2]
    assert not os.path.exists("results/smoke/index.html")
    assert main(["build-page", "index"]) == 1  # the finished page still needs its results
