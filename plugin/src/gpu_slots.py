"""GPU slots of one machine: every job gets GPUs of its own, and further jobs wait their turn.

    lease = take(2)                                   # waits until two GPUs are free, locks them
    os.environ.update(lease.environment)              # CUDA_VISIBLE_DEVICES and who holds what
    subprocess.run(command, pass_fds=lease.locks)     # the GPUs are free when the last process has ended

A slot is a lock file named after the device's UUID (or MIG id), so that index 0 and `GPU-...` are one slot
for every user and every workflow of the machine. All processes of a job hold it with a *shared* kernel lock
(flock): they inherit it, or `join` it by name. Whoever wants a slot needs the *exclusive* lock for a moment,
which the kernel gives only when no process of an earlier job is left, whatever ended them. There are no pid
files, nothing to clean up and nothing that can go stale.

This module needs the standard library alone; the executor plugin and training programs both use it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["CHOSEN", "HELD", "Lease", "SlotError", "devices", "handed_out", "join", "take", "take_share"]

HELD = "GPU_SLOTS_HELD"
"""Set in the processes of a job that holds slots: the paths of their lock files, joined by ':'."""
CHOSEN = "GPU_SLOTS_DEVICES"
"""GPUs that jobs may use, as `--submitit-gpus` gives them: indices, UUIDs, MIG ids; `fake-...` in tests."""
FOLDER = "GPU_SLOTS_FOLDER"
"""Another folder for the lock files; it must be the same for all who share the GPUs."""
POLL_S = 0.5
SHARED_FOLDERS = ("/run/lock", "/tmp")
UUID = re.compile(r"UUID: ((?:GPU|MIG)-[\w/-]+)")


class SlotError(RuntimeError):
    """The slots that a job asks for cannot be had on this machine; the text says why and what to do."""


@dataclass(frozen=True)
class Lease:
    """GPUs that belong to this process and to all that inherit or join its locks."""

    devices: tuple[str, ...]
    files: tuple[Path, ...]
    locks: tuple[int, ...]

    @property
    def environment(self) -> dict[str, str]:
        """What the job's processes need: which GPUs CUDA shows them, and which locks they may join."""
        # Without a slot nothing changes: a machine without GPUs, or a job that asks for none.
        if not self.devices:
            return {}
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(self.devices),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            HELD: ":".join(map(str, self.files)),
        }

    def release(self) -> None:
        """Give this process's share of the locks back; the slots are free if no other process holds them."""
        for lock in self.locks:
            os.close(lock)


def devices(environment: Mapping[str, str], chosen: str | None = None) -> tuple[str, ...]:
    """Identities of the GPUs that jobs of this shell may use; none on a machine without GPUs.

    `chosen` (else $GPU_SLOTS_DEVICES) names them, and a CUDA_VISIBLE_DEVICES that is already set restricts
    them. Raises SlotError for a name that no GPU has.
    """
    chosen = chosen or environment.get(CHOSEN) or None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return ()
    wanted = _names(chosen if chosen is not None else visible)
    # Names of tests stand for themselves: no GPU and no nvidia-smi is needed to try how slots are shared.
    if wanted and all(name.startswith("fake-") for name in wanted):
        return wanted
    # Names become UUIDs: an index means another GPU as soon as CUDA_VISIBLE_DEVICES is set.
    present = _present_gpus()
    if wanted is None:
        return tuple(identity for group in present for identity in group)
    identities = tuple(dict.fromkeys(identity for name in wanted for identity in _resolve(name, present)))
    if chosen is None or visible is None:
        return identities
    # A user, or an administrator, who has narrowed the GPUs of a shell means it for all that runs in it.
    allowed = {identity for name in _names(visible) or () for identity in _resolve(name, present)}
    return tuple(identity for identity in identities if identity in allowed)


def handed_out(count: int, environment: Mapping[str, str]) -> bool:
    """Whether this process's GPUs were chosen by somebody who keeps count of them: a lease, or Slurm.

    In an allocation of Slurm with more GPUs than one job wants (`salloc`), the job takes its part of them.
    """
    if HELD in environment:
        return True
    visible = _names(environment.get("CUDA_VISIBLE_DEVICES"))
    return "SLURM_JOB_ID" in environment and (visible is None or len(visible) <= count)


def take(
    count: int,
    environment: Mapping[str, str] | None = None,
    chosen: str | None = None,
    waiting: Callable[[str], None] | None = None,
) -> Lease:
    """Lock `count` GPUs of this machine, and wait until so many are free.

    Nothing is taken if the GPUs were already handed out (by a lease or by Slurm), or if there is no GPU.
    `waiting` is called once, with a line to show, if not all are free at once. Raises SlotError if more are
    wanted than exist.
    """
    environment = os.environ if environment is None else environment
    if count < 1 or handed_out(count, environment):
        return Lease((), (), ())
    identities = devices(environment, chosen)
    if not identities:
        return Lease((), (), ())
    # An error at once: the job would wait for ever.
    if count > len(identities):
        raise SlotError(
            f"{count} GPUs are wanted, and this machine offers {len(identities)} ({', '.join(identities)}); "
            "ask for fewer, or name more (CUDA_VISIBLE_DEVICES, --submitit-gpus)"
        )
    return _wait_for(count, identities, "GPUs", waiting)


def take_share(
    kind: str, amount: float, whole: float, parts: int, waiting: Callable[[str], None] | None = None
) -> Lease:
    """Lock a share of something that the machine has much of, such as CPU cores or memory.

    `whole` is dealt into `parts` slots, and as many are taken as `amount` needs (at most all: a job that asks
    for more than there is runs alone). The order of calls must be the same in every program: GPUs, cores,
    memory; then no two jobs wait for each other.
    """
    if amount <= 0 or whole <= 0:
        return Lease((), (), ())
    # At least one part each, or any number of small jobs could start side by side.
    count = min(parts, max(1, -int(-amount * parts // whole)))
    names = [f"{kind}-{number}" for number in range(parts)]
    lease = _wait_for(count, names, f"parts of the {kind}", waiting)
    return replace(lease, devices=())  # nothing that CUDA could show a job


def _wait_for(
    count: int, identities: Sequence[str], what: str, waiting: Callable[[str], None] | None
) -> Lease:
    """Lock so many of these slots, and wait until they are free."""
    folder = shared_folder()
    # One waiting line for all who want of the same GPUs: a job that needs four is not overtaken for ever.
    line = hashlib.sha256(" ".join(sorted(identities)).encode()).hexdigest()[:16]
    with _locked(folder / f"gpu-slots-line-{line}"):
        announced = waiting is None
        while (lease := _take_free(count, identities, folder)) is None:
            if not announced and waiting is not None:
                waiting(f"waiting for {count} of {len(identities)} {what} of this machine to be free")
                announced = True
            time.sleep(POLL_S)
    return lease


def join(environment: Mapping[str, str] | None = None) -> tuple[int, ...]:
    """Hold the slots of this process's job as well: for a process that did not inherit the locks.

    The slots stay taken until this process has ended, even if those that took them were killed. Returns the
    locks (open files), which the caller keeps open.
    """
    files = (os.environ if environment is None else environment).get(HELD, "")
    locks = []
    for name in filter(None, files.split(":")):
        # A slot that cannot be joined is no reason to stop the program: its parent still holds it.
        with suppress(OSError):
            lock = os.open(name, os.O_RDONLY | os.O_NOFOLLOW)
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.set_inheritable(lock, True)
            locks.append(lock)
    return tuple(locks)


def shared_folder() -> Path:
    """The folder of the lock files: root's, sticky and open to all, so that nobody can move another's lock.

    A folder below it that some user made would be that user's to replace, so the files lie in it directly.
    """
    if named := os.environ.get(FOLDER):
        return Path(named)
    for name in SHARED_FOLDERS:
        with suppress(OSError):
            status = os.stat(name)
            if status.st_uid == 0 and status.st_mode & 0o1002 == 0o1002:
                return Path(name)
    raise SlotError(
        f"none of {', '.join(SHARED_FOLDERS)} belongs to root, is sticky and open to all (mode 1777); "
        "locks of GPUs that users share need such a folder: set CUDA_VISIBLE_DEVICES per job yourself"
    )


def _take_free(count: int, identities: Sequence[str], folder: Path) -> Lease | None:
    """Lock so many slots that are free now, all or none."""
    taken: list[tuple[str, Path, int]] = []
    # Only one process at a time tests slots: an exclusive lock becomes a shared one in two steps, not one.
    with _locked(folder / "gpu-slots-turn"):
        for identity in identities:
            path = folder / f"gpu-slot-{re.sub(r'[^A-Za-z0-9-]', '_', identity)}"
            lock = _open(path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            # Cleaners of /tmp remove old files: another process would lock a new file of the same name.
            if not _is_still(path, lock):
                os.close(lock)
                continue
            fcntl.flock(lock, fcntl.LOCK_SH)
            taken.append((identity, path, lock))
            if len(taken) == count:
                break
    # All or none: a job that kept a part while it waits could block another that keeps the rest.
    if len(taken) < count:
        for _, _, lock in taken:
            os.close(lock)
        return None
    for _, _, lock in taken:
        os.set_inheritable(lock, True)
    return Lease(
        devices=tuple(identity for identity, _, _ in taken),
        files=tuple(path for _, path, _ in taken),
        locks=tuple(lock for _, _, lock in taken),
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for a lock of this name and hold it; the kernel frees it if this process is killed."""
    lock = _open(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _open(path: Path) -> int:
    """Open a lock file that may be another user's.

    Reading suffices for a lock. Linux refuses to open another user's file in a sticky folder with O_CREAT
    (fs.protected_regular), so creating is a step of its own.
    """
    for _ in range(100):
        with suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if stat.S_ISREG(os.fstat(lock).st_mode):
                return lock
            os.close(lock)
            raise SlotError(f"{path} is not a plain file; remove it (it should be a lock of GPU slots)")
        with suppress(FileExistsError):
            lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            os.fchmod(lock, 0o644)  # readable to all whatever the umask says
            return lock
    raise SlotError(f"{path} can neither be opened nor made")


def _is_still(path: Path, lock: int) -> bool:
    """Whether a locked file is still the one of that name: one that was put away locks nothing."""
    try:
        now = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(lock)
    return (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)


def _names(text: str | None) -> tuple[str, ...] | None:
    """The names in a comma-separated list; None if there is no list."""
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _present_gpus() -> list[tuple[str, ...]]:
    """The UUIDs of this machine's GPUs by index; a GPU in MIG mode counts as its MIG devices."""
    try:
        # `nvidia-smi -L` lists each GPU in a line, its MIG devices in lines below that are indented.
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    groups: list[list[str]] = []
    for text in answer.stdout.splitlines():
        match = UUID.search(text)
        if match is None:
            continue
        if match[1].startswith("GPU-"):
            groups.append([match[1]])
        elif groups:
            groups[-1].append(match[1])
    return [tuple(group[1:] or group) for group in groups]


def _resolve(name: str, present: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The identities that an index, a UUID (or the beginning of one) or a MIG id means."""
    if name.isdigit() and int(name) < len(present):
        return present[int(name)]
    everything = [identity for group in present for identity in group]
    matching = [identity for identity in everything if not name.isdigit() and identity.startswith(name)]
    if len(matching) == 1:
        return tuple(matching)
    known = ", ".join(f"{index} = {' '.join(group)}" for index, group in enumerate(present)) or "none"
    raise SlotError(f"'{name}' is no GPU of this machine; `nvidia-smi -L` lists: {known}")


def main(arguments: Sequence[str]) -> int:
    """`python -m gpu_slots COUNT COMMAND ...` runs a command on GPUs of its own."""
    if len(arguments) < 2 or not arguments[0].isdigit():
        print("usage: python -m gpu_slots COUNT COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    try:
        lease = take(int(arguments[0]), waiting=lambda line: print(line, file=sys.stderr))
    except SlotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    os.environ.update(lease.environment)
    return os.execvp(arguments[1], list(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
