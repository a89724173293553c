"""Publish a run that was trained in a pack: its results become those of the run's folder.

    python -m fbt_core.publish RUN --runs results/paper/runs --pack MARKER

A pack leaves each run's results in `runs/<run id>/ready/`, which no workflow declares and so none deletes.
There they stay, as further names of the same files: a result that is deleted later is published again. Needs
no torch. Exit code 1 if the run has no results; the error is then the run's own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fbt_core.errors import UserError
from fbt_core.files import cannot_write
from fbt_core.packs import read_marker
from fbt_core.run_files import METRICS_FILE, READY_FOLDER, WEIGHTS_FILE, is_ready


def publish(folder: Path) -> None:
    """Give the results in `ready/` their declared names: weights first, metrics last, each by renaming."""
    # Weights first: whoever sees metrics.json may read the weights.
    for name in (WEIGHTS_FILE, METRICS_FILE):
        # A temporary name first: a link cannot replace a file in one step.
        temporary = folder / f".{name}.{os.getpid()}.part"
        try:
            _link(folder / READY_FOLDER / name, temporary)
            # Results are newer than what their job waited for: the pack's marker was written after them.
            os.utime(temporary)
            os.replace(temporary, folder / name)
        except OSError as error:
            raise cannot_write(folder / name, error) from None
        finally:
            temporary.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy on a file system that has no links."""
    # A link takes no space and no time; a copy of the weights would take both.
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def explain(run: str, marker: Path) -> UserError:
    """Why a run has no results to publish, from the marker of its pack."""
    # The marker knows more than the missing file: why the run has no results.
    endings = read_marker(marker)
    if not endings:
        return UserError("no pack has ended there", where=str(marker), hint="train the pack first")
    if run not in endings:
        return UserError(f"the pack did not train {run}", where=str(marker))
    if error := endings[run].error:
        return UserError(error)
    hint = "delete the marker and train the pack again"
    return UserError("the results that its pack left are gone", where=run, hint=hint)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fbt_core.publish", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="the run's id")
    parser.add_argument("--runs", type=Path, required=True, help="the folder of all runs")
    parser.add_argument("--pack", type=Path, required=True, metavar="MARKER", help="what the pack left")
    chosen = parser.parse_args(arguments)
    folder = chosen.runs / chosen.run
    try:
        if is_ready(folder):
            publish(folder)
        elif not (folder / METRICS_FILE).exists():
            raise explain(chosen.run, chosen.pack)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
