"""torchrun whose exit code is the run's own: 75 where its processes saved their state, and no traceback.

    python -m fbt_core.torchrun --standalone --nproc-per-node=8 -m fbt_core.run ...

torchrun ends with 1 and a traceback whatever its processes ended with, and a SIGUSR2 sent to it alone does
not reach them. Here it is passed on; one that comes before they listen waits until they do. A SIGKILL of
torchrun cannot be passed on: its processes see that it is gone, and save and stop by themselves. Processes
that ended because the memory did not hold their runs together are started again (fbt_core/halving.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping

import psutil  # type: ignore[import-untyped, unused-ignore]

from fbt_core.errors import Interrupted, TooLarge, UserError

TORCHRUN = "FBT_TORCHRUN"  # the variable that holds the process id of torchrun
TOO_LARGE = "FBT_TOO_LARGE"  # and the one that holds the file of runs that did not fit together
ENDED = -signal.SIGTERM  # how torchrun ends the processes that are left when one has failed


def main(arguments: list[str]) -> int:
    # Blocked before torch starts its threads; the processes inherit that and unblock it once they listen.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    asked = threading.Event()
    threading.Thread(target=pass_on, args=(signal.SIGUSR2, asked), daemon=True).start()
    logging.disable(logging.CRITICAL)  # torchrun's own words about processes that have said it better
    os.environ[TORCHRUN] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")  # seconds to save after SIGTERM
    with tempfile.NamedTemporaryFile(prefix="fbt-") as notes:
        # Of several nodes each has a torchrun of its own, which cannot start the processes of the others.
        if "--standalone" in arguments:
            os.environ[TOO_LARGE] = notes.name
        code = run(arguments)
        while code == TooLarge.exit_code and not asked.is_set():
            code = run(arguments)
    # Asked to stop while the processes ended: nothing was lost, and the same command goes on.
    return Interrupted.exit_code if code == TooLarge.exit_code else code


def run(arguments: list[str]) -> int:
    """What torchrun does, with an exit code in place of its exceptions."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        return exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException:  # passed on to the processes, which have saved and ended
        return Interrupted.exit_code
    return 0


def exit_code(codes: Mapping[int, int]) -> int:
    """One exit code from those of the processes that did not end well; names one that was killed."""
    distinct = set(codes.values())
    # The others could only report that this one has gone.
    if TooLarge.exit_code in distinct:
        return TooLarge.exit_code
    # torchrun ends the others by SIGTERM when one has gone: that code says nothing of its own.
    if Interrupted.exit_code in distinct and distinct <= {Interrupted.exit_code, ENDED}:
        return Interrupted.exit_code
    killed = [(rank, code) for rank, code in codes.items() if code < 0 and code != ENDED]
    # A user's error explains more than a process that was killed because of it.
    if killed and UserError.exit_code not in distinct:
        rank, code = killed[0]
        name = signal.Signals(-code).name
        print(f"error: process {rank} was killed by {name}; the last checkpoint is kept", file=sys.stderr)
    return UserError.exit_code


def pass_on(number: signal.Signals, asked: threading.Event) -> None:
    """Hand every such signal to the processes that torchrun starts; `asked` remembers that one came."""
    while True:
        signal.sigwait({number})
        asked.set()
        # Signals may come before torchrun has started anything.
        while not (started := psutil.Process().children()):
            time.sleep(0.1)
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
