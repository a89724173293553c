"""Take the README's pictures from real results: the page and `fbt status`, photographed in Chromium.

    python scripts/make_pictures.py --only-status --tables table5      while `snakemake --cores 2` is at work
    python scripts/make_pictures.py                                    when it is done; writes docs/pictures/

Needs chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from fbt_paper.journal import read_jobs
from fbt_paper.live import JOURNAL, choose_tables, figure_runs
from fbt_paper.show_status import render_overview
from fbt_paper.status import observe_tables
from fbt_paper.workflow import Flow

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
OPEN_A_CELL = "document.querySelector('#table4 button.cell[data-runs*=\" \"]').click()"


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


def photograph_status(flow: Flow, target: Path, tables: list[str]) -> None:
    """What `fbt status` prints now, in a terminal's frame, as a PNG."""
    chosen = choose_tables(flow.plan, tables)
    chosen |= {} if tables else figure_runs(flow, chosen)
    overview = observe_tables(Path(flow.runs), chosen, flow.plan.runs, read_jobs(JOURNAL), datetime.now(UTC))
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(render_overview(overview, f"scale {flow.scale}, {flow.results}", bool(tables)))
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
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    chosen = parser.parse_args()
    flow = Flow({})
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.only_status:
        photograph_status(flow, chosen.out / "status.png", chosen.tables)
        return 0
    page = Path(flow.results, "index.html")
    photograph(page, chosen.out / "page.png", (1200, 900))
    photograph(page, chosen.out / "cell.png", (1200, 900), OPEN_A_CELL)
    photograph(page, chosen.out / "narrow.png", (400, 800))
    return 0


if __name__ == "__main__":
    sys.exit(main())
