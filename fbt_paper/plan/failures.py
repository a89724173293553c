"""Why jobs failed, as the last lines that Snakemake prints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fbt_core.run_files import read_tail
from fbt_paper.plan.names import run_names
from fbt_paper.plan.runs import Plan

AT_MOST = 5
FIX = (
    "When that is fixed, give the same command again: what is done stays, and a training goes on from its "
    "last checkpoint."
)


def explain_failures(plan: Plan, failed: Iterable[Any]) -> str:
    """Of each of Snakemake's failed jobs its name, its error and its log; last what to do next."""
    # A group of jobs fails as one.
    jobs = [job for each in failed for job in getattr(each, "jobs", (each,))]
    names = run_names(plan)
    lines = ["", "Not all jobs have ended well:"]
    for job in sorted(jobs, key=str)[:AT_MOST]:
        log = Path(str(job.log[0])) if job.log else None
        run = getattr(job.wildcards, "run", "")
        lines.append(f"{job.name} {names.get(run, '')}".rstrip() + f" failed: {last_error(log)}")
        if log:
            lines.append(f"  its log: {log}")
    if len(jobs) > AT_MOST:
        lines.append(f"{len(jobs) - AT_MOST} more failed; `fbt status` lists them.")
    return "\n".join([*lines, FIX])


def last_error(log: Path | None) -> str:
    """The last error in a log; its last line if the job was ended from outside."""
    written = read_tail(log, lines=100) if log else ()
    if not written:
        return "it wrote no log; the message above says more"
    errors = [line.removeprefix("error: ") for line in written if line.startswith("error: ")]
    return errors[-1] if errors else written[-1]
