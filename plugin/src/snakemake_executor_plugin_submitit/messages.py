"""What is reported to the user: why a job waits, why it failed, and how to fix it."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit.journal import JournalEntry
from snakemake_executor_plugin_submitit.record import JobRecord

__all__ = ["explain_failure", "explain_reason", "last_lines", "ordinary_reason"]

ORDINARY_REASONS = frozenset({
    "", "None", "Resources", "Priority", "BeginTime", "Dependency", "JobArrayTaskLimit", "Cleaning", "Prolog",
    "QOSMaxJobsPerUserLimit", "AssocMaxJobsLimit", "QOSGrpJobsLimit", "AssocGrpJobsLimit",
    "NonZeroExitCode", "RaisedSignal", "TimeLimit",
})  # fmt: skip
"""Why a job waits that will start by itself."""
REASONS = {
    "PartitionConfig": "no node of the partition can offer what the job asks: compare with `sinfo`",
    "PartitionTimeLimit": "more time than the partition allows: lower `runtime` or change the partition",
    "PartitionNodeLimit": "the job asks more nodes than the partition allows",
    "PartitionDown": "the partition starts no jobs at the moment: wait, ask, or change the partition",
    "PartitionInactive": "the partition is switched off: change the partition",
    "BadConstraints": "no node has the features that `constraint` asks for",
    "InvalidAccount": "the account is not valid: set `slurm_account` (see `sacctmgr show assoc user=$USER`)",
    "InvalidQOS": "the quality of service is not valid for you: set `qos`",
    "AccountNotAllowed": "the partition does not take this account",
    "QOSNotAllowed": "the partition does not take this quality of service",
    "JobHeldUser": "you have put it on hold: `scontrol release` lets it go on",
    "JobHeldAdmin": "an administrator or a failed start holds it: `scontrol release` may help",
    "launch failed requeued held": "its node could not start it: `scontrol release` tries again",
    "ReqNodeNotAvail": "nodes it needs are down, drained or reserved",
    "DependencyNeverSatisfied": "a job it depends on has failed: cancel it",
    "Reservation": "it waits for a reservation",
    "Licenses": "it waits for a licence",
}
# Slurm may report plain FAILED for a job that has used too much memory; only its line in the log says why.
SLURMS_MEMORY = re.compile(
    r"^(slurmstepd(-\S+)?|srun): .*(exceeded (job |step )?memory limit|oom[-_ ]kill|out of memory)",
    re.IGNORECASE,
)
GPU_MEMORY = re.compile(r"(CUDA|HIP|XPU) (error: )?out of memory|\bOutOfMemoryError: .*GPU", re.IGNORECASE)
GPU_MEMORY_HINT = "use more GPUs, gradient accumulation or bfloat16, or a GPU with more memory"
LONGEST_LOG = 200_000
"""Bytes of a log's end that are looked at: a training may have printed gigabytes."""
NOISE = re.compile(r"submitit (INFO|WARNING|ERROR) \(|^submitit: |^srun: error: .* Exited with exit code")
PREAMBLE = re.compile(r"\A.*?^Execute \d+ jobs\.\.\.$.*?^    resources: [^\n]*$", re.MULTILINE | re.DOTALL)
"""What the inner Snakemake prints before the rule's program says anything."""
EPILOGUE = re.compile(
    r"^(RuleException:$|\[[^\n]*\]\nError in (rule|group) )"
    r".*?^At least one job did not complete successfully\.$",
    re.MULTILINE | re.DOTALL,
)
# The traceback of submitit and of this plugin stands below the program's own, which is what a user needs.
OWN_TRACEBACK = re.compile(
    r"^Traceback \(most recent call last\):\n(?:(?!^Traceback).)*?"
    r"^(snakemake_executor_plugin_submitit\.job|submitit)\.[\w.]+: [^\n]*$",
    re.MULTILINE | re.DOTALL,
)


def ordinary_reason(reason: str) -> bool:
    """Whether a job that waits for this reason will start by itself."""
    return reason in ORDINARY_REASONS


def explain_reason(reason: str) -> str:
    """Slurm's reason for not starting a job, with what to do about it."""
    for word, meaning in REASONS.items():
        if reason.replace("_", " ").startswith(word) or reason.startswith(word):
            return f"{reason} ({meaning})"
    if re.search(r"(Grp|Max)(GRES|TRES|Cpu|CPU|Mem|Node|Wall)", reason):
        return (
            f"{reason} (a limit of your account or quality of service: see `sacctmgr show assoc user=$USER`)"
        )
    return reason


def last_lines(path: str | None, count: int = 12) -> list[str]:
    """The last lines of a log that a person wants to see: without submitit's and Snakemake's own chatter."""
    # Chatter is removed before lines are counted, or it would push the program's error out of sight.
    text = read_last_start(path)
    for chatter in (PREAMBLE, EPILOGUE, OWN_TRACEBACK):
        text = chatter.sub("", text)
    lines = [line.rstrip() for line in text.splitlines()]
    return [line for line in lines if line and not NOISE.search(line)][-count:]


def read_last_start(path: str | None) -> str:
    """The end of what a job has printed since it was last started; empty if there is no such file."""
    if path is None:
        return ""
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LONGEST_LOG))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # Only the last start: submitit goes on writing into the log of the starts before a requeue.
    return text[max(0, text.rfind("SNAKEMAKE\n=========")) :]


def explain_failure(entry: JournalEntry, state: str, record: JobRecord | None, by_whom: str = "") -> str:
    """What a person needs about a failed job: which, why, its log's last lines, and where the files are."""
    where = f", node {entry.node}" if entry.node else ""
    if entry.restarts:
        where += f", restarted {entry.restarts} times"
    lines = [f"{entry.name}: {what_happened(entry, state, record, by_whom)}"]
    lines.append(f"  job {entry.job_id or '(not submitted)'} on cluster {entry.cluster}{where}")
    # Errors go to stderr as a rule; some programs print theirs to stdout.
    if shown := last_lines(entry.error_log) or last_lines(entry.log):
        lines += ["  last lines of its log:", *(f"    | {line}" for line in shown)]
    else:
        folder = Path(entry.log).parent if entry.log else "-"
        cause = f"the node cannot write to {folder} (is that folder shared?)"
        lines.append(f"  it has left no log: if it did start, {cause}")
    lines.append(f"  log: {entry.error_log or '-'} and {entry.log or '-'}")
    submission = f" (submitted as {entry.submission})" if entry.submission else ""
    lines.append(f"  script: {entry.script}{submission}")
    return "\n".join(lines)


def what_happened(entry: JournalEntry, state: str, record: JobRecord | None, by_whom: str) -> str:
    """One sentence about the end of a job, in the reader's words."""
    # Asked first: the state may be plain FAILED, and the exit code would be no help.
    if out_of_memory(entry, state):
        return memory_sentence(entry, record)
    code = own_exit_code(entry)
    if state == "FAILED" and record is not None and record.missing:
        return (
            f"its command ended with 0, but on node {entry.node} these did not appear: "
            f"{as_list(record.missing)} (FAILED): does the node see the folder, and is its view of it old?"
        )
    # The state is FAILED as for any error, but what helps is another: no `mem_mb` gives a GPU more memory.
    if state == "FAILED" and out_of_gpu_memory(entry):
        return f"its GPU had too little memory (exit code {code}, {state}): {GPU_MEMORY_HINT}"
    sentences: Mapping[str, str] = {
        "TIMEOUT": timeout_sentence(entry),
        "NODE_FAIL": "its node failed and Slurm did not start it again (NODE_FAIL)",
        "BOOT_FAIL": "its node did not start (BOOT_FAIL)",
        "CANCELLED": f"cancelled{f' by {user_name(by_whom)}' if by_whom else ''} (CANCELLED)",
        "DEADLINE": "Slurm ended it at its deadline (DEADLINE)",
        "PREEMPTED": "preempted and not requeued (PREEMPTED): does the partition allow requeue?",
        "LOST": "gone from the queue without a result and without a trace in the accounting",
        "COMPLETED": "Slurm says COMPLETED, but no result was written: is its folder shared with the node?",
    }
    if state in sentences:
        return sentences[state]
    if code is None:
        return f"ended by Slurm before it could report ({state})"
    return f"its command failed with exit code {code} ({state})"


def own_exit_code(entry: JournalEntry) -> int | None:
    """The exit code of the rule's program; the inner Snakemake itself ends with 1."""
    codes = re.findall(r"returned non-zero exit status (\d+)", read_last_start(entry.error_log))
    return int(codes[-1]) if codes else entry.exit_code


def timeout_sentence(entry: JournalEntry) -> str:
    """What to say about a job that met its time limit once too often, or could not save."""
    minutes = entry.resources.get("runtime", "?")
    if entry.exit_code is not None:  # it had saved and ended when it was one time limit too many
        return (
            f"met its time limit of {minutes} minutes {entry.timeouts} times "
            f"(TIMEOUT after {entry.restarts} requeues); raise --submitit-max-timeouts or `runtime`, "
            "or run the same command again to go on from its last state"
        )
    return (
        f"met its time limit of {minutes} minutes without ending at the warning signal (TIMEOUT): raise "
        "`runtime`, or let the program save and end at SIGUSR2 (how early: --submitit-signal-seconds)"
    )


def out_of_memory(entry: JournalEntry, state: str) -> bool:
    """Whether memory was the reason: Slurm may say so, or only FAILED with a line of its own in the log."""
    if state not in ("FAILED", "LOST"):
        return state == "OUT_OF_MEMORY"
    return any(SLURMS_MEMORY.search(line) for line in tails(entry))


def out_of_gpu_memory(entry: JournalEntry) -> bool:
    """Whether the program says that its GPU's memory was too small."""
    return any(GPU_MEMORY.search(line) for line in tails(entry))


def tails(entry: JournalEntry) -> list[str]:
    """The last lines of both logs."""
    return [*last_lines(entry.error_log, 60), *last_lines(entry.log, 60)]


def memory_sentence(entry: JournalEntry, record: JobRecord | None) -> str:
    """Limit and own peak of a job that ran out of memory."""
    limit = entry.resources.get("mem_mb") or entry.resources.get("mem_mb_per_cpu") or "the cluster's default"
    seen = ""
    if record and record.peak_memory_mb:
        seen = f"; the largest use seen by the job itself was {record.peak_memory_mb:.0f} MB"
    hint = f"raise mem_mb for rule {entry.rule}"
    return f"out of memory (OUT_OF_MEMORY): its limit was mem_mb={limit}{seen}; {hint}"


def user_name(user: str) -> str:
    """A user's name for a number, where this machine knows it."""
    try:
        return pwd.getpwuid(int(user)).pw_name
    except (ValueError, KeyError):
        return user


def as_list(jobs: list[Any], most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    shown = ", ".join(str(job) for job in jobs[:most])
    return shown if len(jobs) <= most else f"{shown} and {len(jobs) - most} more"
