"""Start a job's inner Snakemake, deaf to the signals that are meant for the rule's program.

A job script is nearly always one plain command: this Python with `-m snakemake` and arguments. Then the inner
Snakemake begins as a fork of this process and shares what submitit has imported already: about a quarter of a
second of a processor less for each job. Any other script (a user's own --jobscript, `export` of variables, a
prefix) runs in a shell, as does every job inside of a process with threads (cluster debug).
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

__all__ = ["Child", "start"]

GUARDED = frozenset({signal.SIGUSR2, signal.SIGTERM})
QUOTED = re.compile("'[^']*'")
PLAIN = re.compile(r"[\w\s./:=,@%+-]*", re.ASCII)
"""What a shell takes as it is, outside of single quotes."""


@dataclass(frozen=True)
class Forked:
    """A process forked from this one."""

    pid: int

    def wait(self) -> None:
        """Wait for its end, so that the system may forget it."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


Child = Forked | subprocess.Popen[bytes]


def start(script: Path, workdir: Path, environment: Mapping[str, str]) -> Child:
    """Start a job script that ignores SIGUSR2 and SIGTERM until a program in it installs its own handlers.

    The child's `pid` and `wait()` are all that may be used of it.
    """
    text = script.read_text(encoding="utf-8", errors="surrogateescape")
    arguments = snakemake_arguments(text)
    with held_back():
        if arguments is not None and threading.active_count() == 1:
            return fork(arguments, workdir, environment)
        command = ["/bin/sh", str(script)] if text.startswith("#!/bin/sh\n") else [str(script)]
        return subprocess.Popen(command, cwd=workdir, env=environment, preexec_fn=be_deaf)


def snakemake_arguments(script: str) -> list[str] | None:
    """The arguments of a script that does nothing but call Snakemake with this Python; None for any other."""
    commands = [line for line in script.split("\n") if line.strip() and not line.startswith("#")]
    plain = script.startswith("#!/bin/sh\n") and len(commands) == 1
    if not plain or not PLAIN.fullmatch(QUOTED.sub("", commands[0])):
        return None
    words = shlex.split(commands[0])
    return words[3:] if words[:3] == [sys.executable, "-m", "snakemake"] else None


def fork(arguments: list[str], workdir: Path, environment: Mapping[str, str]) -> Forked:
    """Start Snakemake in a fork of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return Forked(pid)
    exit_code = 1
    try:
        be_deaf()
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit has a handler
        exit_code = run_snakemake(arguments, workdir, environment)
    except BaseException:
        traceback.print_exc()
    finally:
        end(exit_code)


def run_snakemake(arguments: list[str], workdir: Path, environment: Mapping[str, str]) -> int:
    """Do what `python -m snakemake` does; returns its exit code."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(workdir)
    if not sys.flags.safe_path:
        sys.path[0] = str(workdir)
    gc.disable()  # modules never become garbage: looking for it takes a seventh of Snakemake's start
    import snakemake.cli  # noqa: F401

    gc.freeze()
    gc.enable()
    sys.argv[1:] = arguments
    try:
        runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def end(exit_code: int) -> NoReturn:
    """End this process as Python ends one, but nothing of what the fork has inherited is unwound."""
    with suppress(BaseException):
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold the guarded signals back from this process while its child begins."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GUARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def be_deaf() -> None:
    """Ignore the guarded signals; a child calls it first, with the signals still held back."""
    for number in GUARDED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GUARDED)
