"""Take the README's pictures from real results: the page and `fbt status`, photographed in Chromium.

    python scripts/make_pictures.py --only-status --until running waiting    beside `snakemake --cores 2`
    python scripts/make_pictures.py                                          when it is done

They go to docs/pictures. The status is shot at the first moment at which all states of `--until` are there
(running, queued, failed, waiting, interrupted, silent, done, requeued): nothing in it is made up. All at once
come from a queue: start `snakemake --profile slurm --config scale=smoke` with fewer free slots than runs,
end the job of one run by `scancel` (failed), send another back by `scontrol requeue` (requeued). Needs
chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from fbt_paper.plan.targets import Flow
from fbt_paper.status.commands import JOURNAL, choose_tables, figure_runs
from fbt_paper.status.jobs import newest_jobs
from fbt_paper.status.overview import Overview, observe_tables
from fbt_paper.status.show_status import render_overview
from fbt_paper.status.states import STATES

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
WIDTH = 110
OPEN_A_CELL = "[...document.querySelectorAll('#table4 button.cell[data-runs*=\" \"]')].pop().click()"


def photograph(page: Path, target: Path, size: tuple[int, int], script: str = "") -> None:
    """The page in a fresh Chromium of this size, after a script, as a PNG."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in [*FLAGS, f"--user-data-dir={tempfile.mkdtemp()}"]:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.get(page.resolve().as_uri())
        if script:
            browser.execute_script(script)
        browser.save_screenshot(str(target))
    finally:
        browser.quit()


def observe(flow: Flow, tables: Mapping[str, Sequence[str]]) -> Overview:
    """Where the runs of these tables stand now."""
    return observe_tables(Path(flow.runs), tables, flow.plan.runs, newest_jobs(JOURNAL), datetime.now(UTC))


def states_of(overview: Overview) -> set[str]:
    """The states that some run is in, and `requeued` if one was."""
    runs = [status for runs in overview.tables.values() for status in runs]
    return {status.state for status in runs} | {"requeued" for status in runs if status.restarts}


def photograph_status(flow: Flow, target: Path, tables: list[str], until: set[str]) -> None:
    """What `fbt status` prints once these states are there, in a terminal's frame, as a PNG."""
    chosen = choose_tables(flow.plan, tables)
    if not tables:
        chosen |= figure_runs(flow, chosen)
    overview = observe(flow, chosen)
    while until - states_of(overview):
        time.sleep(2)
        overview = observe(flow, chosen)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(render_overview(overview, f"scale {flow.scale}, {flow.results}", bool(tables), WIDTH))
    with tempfile.NamedTemporaryFile("w", suffix=".svg") as file:
        file.write(console.export_svg(title="fbt status"))
        file.flush()
        width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', Path(file.name).read_text()).groups()
        photograph(Path(file.name), target, (round(float(width)), round(float(height))))


def main() -> int:
    """Write all pictures, or only that of `fbt status`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only-status", action="store_true")
    parser.add_argument("--tables", nargs="*", default=[], help="tables shown by the status picture")
    parser.add_argument("--until", nargs="*", default=[], choices=[*STATES, "requeued"], metavar="STATE")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    chosen = parser.parse_args()
    flow = Flow({})
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.only_status:
        photograph_status(flow, chosen.out / "status.png", chosen.tables, set(chosen.until))
        return 0
    page = Path(flow.results, "index.html")
    photograph(page, chosen.out / "page.png", (1200, 900))
    photograph(page, chosen.out / "cell.png", (1200, 900), OPEN_A_CELL)
    photograph(page, chosen.out / "narrow.png", (400, 800))
    return 0


if __name__ == "__main__":
    sys.exit(main())
