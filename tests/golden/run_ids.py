"""Run ids of the whole plan, kept so that nothing retrains unnoticed.

python -m tests.golden.run_ids --write    # only when ids are meant to change; say why in CHANGELOG.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fbt_paper.config.load import load
from fbt_paper.plan.runs import plan

FILE = Path(__file__).with_suffix(".json")


def planned_ids(scale: str) -> dict[str, list[str]]:
    """Per table the ids of all runs it needs."""
    whole = plan(load(overrides={"scale": scale}))
    return {key: sorted(whole.needed(table.runs)) for key, table in whole.tables.items()}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    content = {scale: planned_ids(scale) for scale in ("smoke", "paper")}
    FILE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
