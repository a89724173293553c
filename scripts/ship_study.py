"""docs/mini-study/: what a finished scale shows and its runs' numbers, without weights and without names.

python -m scripts.ship_study results/mini docs/mini-study     # again after each part: what is there stays

Weights are left out for their size. All else follows from what is shipped: a test judges the claims again
from it and compares (tests/test_paper/test_mini_study.py).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from fbt_core.files import write_text
from fbt_core.run_files import METRICS_FILE, PREDICTIONS_FILE, has_results
from fbt_paper.bundle.runs import without_names

SHOWN = ("claims*.csv", "claims.md", "comparison.md", "results.csv", "tables/*.csv", "tables/*.md")
COUNTED = ("costs/*.json",)
FIGURES = (
    "figures/curves_table?.csv",
    "figures/figure2_*.csv",
    "figures/similarity*.csv",
    "figures/curves_table?.png",
    "figures/figure2.png",
    "figures/similarity*.png",
)


def ship(results: Path, to: Path) -> int:
    """Copy what a scale shows, and metrics and predictions of its finished runs; returns how many."""
    for pattern in (*SHOWN, *COUNTED, *FIGURES):
        for path in sorted(results.glob(pattern)):
            target = to / path.relative_to(results)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    runs = [folder for folder in sorted((results / "runs").glob("*")) if has_results(folder)]
    for folder in runs:
        target = to / "runs" / folder.name
        target.mkdir(parents=True, exist_ok=True)
        metrics = without_names(json.loads((folder / METRICS_FILE).read_text(encoding="utf-8")))
        write_text(target / METRICS_FILE, json.dumps(metrics, sort_keys=True) + "\n")
        shutil.copyfile(folder / PREDICTIONS_FILE, target / PREDICTIONS_FILE)
    return len(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("results", type=Path, metavar="RESULTS")
    parser.add_argument("to", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    print(f"{ship(arguments.results, arguments.to)} runs in {arguments.to}")


if __name__ == "__main__":
    main()
