"""One run: a spec in, metrics.json and weights.safetensors out. Several specs: a pack, trained together.

    python -m fbt_core.run --spec JSON --settings JSON --runs results/smoke/runs
    python -m fbt_core.run --spec JSON --spec JSON ... --settings JSON --runs results/smoke/runs --pack MARKER

The runs of a pack share a stream of batches and a teacher's passes. With --pack their results wait in
`runs/<run id>/ready/` for `python -m fbt_core.publish`, and the file MARKER says how each of them ended.

Exit codes: 0 done, 1 an error the user can fix, 75 interrupted, state saved (run it again to continue).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from fbt_core import distributed
from fbt_core.errors import Interrupted, TooLarge, UserError
from fbt_core.files import make_folder
from fbt_core.packs import Ending, check_together, write_marker
from fbt_core.spec import ExecutionSettings, RunSpec, check_frozen, parse_spec
from fbt_core.train import StopRequest, train


class Command(NamedTuple):
    """What to train, and how."""

    specs: list[RunSpec]
    settings: ExecutionSettings
    runs: Path
    marker: Path | None


def read_arguments(arguments: list[str] | None) -> Command:
    """The command line, checked; every fault of a JSON text in one line."""
    parser = argparse.ArgumentParser(prog="python -m fbt_core.run", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--spec",
        required=True,
        action="append",
        help="a RunSpec as JSON, or a file that holds one; repeatable",
    )
    parser.add_argument(
        "--settings", default="{}", help="ExecutionSettings as JSON, or a file that holds them"
    )
    parser.add_argument(
        "--runs", type=Path, required=True, help="the folder of all runs, e.g. results/smoke/runs"
    )
    parser.add_argument("--pack", type=Path, metavar="MARKER", help="leave the results to be published")
    chosen = parser.parse_args(arguments)
    # Both at once: a workflow writes them, and one message should show every fault.
    try:
        specs = [parse_spec(_text(value)) for value in chosen.spec]
        settings = ExecutionSettings.model_validate_json(_text(chosen.settings))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}" for fault in error.errors()]
        raise UserError(", ".join(faults), where=error.title) from None
    for spec, value in zip(specs, chosen.spec, strict=True):
        # A text in the command cannot change while a job waits, but a file can.
        if not value.lstrip().startswith("{"):
            check_frozen(spec, Path(value))
    # Before training: a pack that cannot be is a mistake of the caller's.
    check_together(specs)
    return Command(specs, settings, chosen.runs, chosen.pack)


def _text(value: str) -> str:
    if value.lstrip().startswith("{"):
        return value
    try:
        return Path(value).read_text()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=value[:200]) from None


def report(endings: Mapping[str, Ending], marker: Path | None) -> int:
    """Write the pack's marker; without one, print the errors of the runs that failed. The exit code."""
    if marker is not None:
        # One process writes; all of them return the same code.
        if distributed.rank() == 0:
            write_marker(marker, endings)
        # 0 whatever befell the runs: Snakemake would delete the marker of a job that failed.
        return 0
    errors = [(run, ending.error) for run, ending in endings.items() if ending.error]
    for run, error in errors if distributed.rank() == 0 else []:
        print(f"error: {run}: {error}" if len(endings) > 1 else f"error: {error}", file=sys.stderr)
    return UserError.exit_code if errors else 0


def main(arguments: list[str] | None = None) -> int:
    stop = StopRequest()
    try:
        with stop.listening():
            # First of all, so that also an error in the arguments is reported by one process only.
            distributed.PEERS.meet()
            specs, settings, runs, marker = read_arguments(arguments)
            make_folder(runs)
            endings = train(specs, settings, runs, stop, to_publish=marker is not None)
        return report(endings, marker)
    # Not an error: the code says that the same command continues the run. A pack that was too large has said
    # so already, and goes on by itself.
    except Interrupted as error:
        if distributed.rank() == 0 and not isinstance(error, TooLarge):
            print(f"interrupted: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        reason = distributed.explain(error)
        if distributed.PEERS.first_to_fail():  # the others could only report that it is gone
            if not isinstance(reason, UserError):
                raise
            print(f"error: {reason}", file=sys.stderr)
        return UserError.exit_code
    finally:
        distributed.stop()


if __name__ == "__main__":
    sys.exit(main())
