"""One run: a spec in, metrics.json and weights.safetensors out.

    python -m fbt_core.run --spec JSON --settings JSON --runs results/smoke/runs

Exit codes: 0 done, 1 an error the user can fix, 75 interrupted, state saved (run it again to continue).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from fbt_core import distributed
from fbt_core.errors import Interrupted, UserError
from fbt_core.files import make_folder
from fbt_core.spec import ExecutionSettings, RunSpec, check_frozen, parse_spec
from fbt_core.train import StopRequest, train


def read_arguments(arguments: list[str] | None) -> tuple[RunSpec, ExecutionSettings, Path]:
    """The command line, checked; every fault of a JSON text in one line."""
    parser = argparse.ArgumentParser(prog="python -m fbt_core.run", description=__doc__.splitlines()[0])
    parser.add_argument("--spec", required=True, help="a RunSpec as JSON, or a file that holds one")
    parser.add_argument(
        "--settings", default="{}", help="ExecutionSettings as JSON, or a file that holds them"
    )
    parser.add_argument(
        "--runs", type=Path, required=True, help="the folder of all runs, e.g. results/smoke/runs"
    )
    chosen = parser.parse_args(arguments)
    try:
        spec = parse_spec(_text(chosen.spec))
        settings = ExecutionSettings.model_validate_json(_text(chosen.settings))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}" for fault in error.errors()]
        raise UserError(", ".join(faults), where=error.title) from None
    if not chosen.spec.lstrip().startswith("{"):
        check_frozen(spec, Path(chosen.spec))
    return spec, settings, chosen.runs


def _text(value: str) -> str:
    if value.lstrip().startswith("{"):
        return value
    try:
        return Path(value).read_text()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=value[:200]) from None


def main(arguments: list[str] | None = None) -> int:
    stop = StopRequest()
    try:
        with stop.listening():
            distributed.PEERS.meet()
            spec, settings, runs = read_arguments(arguments)
            make_folder(runs)
            train([spec], settings, runs, stop)
    except Interrupted as error:
        if distributed.rank() == 0:
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
