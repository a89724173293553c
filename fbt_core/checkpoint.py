"""Checkpoints: everything a run needs to continue exactly, checked by a digest, the one before kept.

A file is torch's own format followed by a mark and the sha256 of all before it, so a cut or damaged file is
recognised whatever happened to it; `torch.load(path, weights_only=True)` reads it as it is.

Training stands still only while the state is copied to main memory: a thread writes it (`Writer`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import random
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fbt_core.distributed import Group, Vote
from fbt_core.errors import CheckpointError, NonFiniteLoss
from fbt_core.files import cannot_write, flush_folder, write_file
from fbt_core.run_folder import RunFolder
from fbt_core.spec import RunSpec

MARK = b"FBT1"
TRAILER = len(MARK) + hashlib.sha256().digest_size
NEXT, LAST, PREVIOUS = "next.pt", "last.pt", "previous.pt"
DAMAGED = "damaged.pt"
FORMAT = 3
"""Raise it when a checkpoint's content changes its shape: older ones are then refused in one line."""
WAIT_SECONDS = 120.0
"""How long a process waits until its node sees the checkpoint that the first process has read."""


class _Hashing:
    """A file that remembers the sha256 of all written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, content: Any) -> int:
        self.hash.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def save(folder: Path, spec: RunSpec, state: dict[str, Any]) -> None:
    """Write the run's state as last.pt; the last.pt before it becomes previous.pt."""
    # The whole canonical spec beside the id: an error can then show what differs.
    content = {**state, "run": spec.id, "spec": spec.canonical_json(), "format": FORMAT}
    # Three names: the file before stays readable until the new one is complete, whatever stops the process.
    write_file(folder / NEXT, lambda file: _write(file, content))
    try:
        if (folder / LAST).exists():
            os.replace(folder / LAST, folder / PREVIOUS)
        os.replace(folder / NEXT, folder / LAST)
    except OSError as error:
        raise cannot_write(folder / LAST, error) from None
    flush_folder(folder)


def _write(file: BinaryIO, content: dict[str, Any]) -> None:
    hashing = _Hashing(file)
    torch.save(content, hashing)
    file.write(MARK + hashing.hash.digest())


class Writer:
    """Writes checkpoints of one run while it trains on: one at a time, the next one waits for it.

    So at most one copy of the state lies in main memory. What goes wrong is raised in the training thread, by
    `check` at its next step at the latest.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, folder: Path, spec: RunSpec, state: dict[str, Any]) -> None:
        """Copy the state as it is now and begin to write it, once the checkpoint before is written."""
        # Before the copy: two copies of a large state in memory at once may not fit.
        self.finish()
        # A copy, because the next step changes the tensors while the thread still writes them.
        copied = snapshot(state)
        self._thread = threading.Thread(target=self._write, args=(folder, spec, copied), name="checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Wait until the checkpoint is written; raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong so far, without waiting."""
        # Cleared: it is reported once; the run may be closed and opened again after it.
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, folder: Path, spec: RunSpec, state: dict[str, Any]) -> None:
        try:
            save(folder, spec, state)
        except BaseException as error:  # an error of a thread would be printed and forgotten
            self._error = error


def snapshot(state: Any) -> Any:
    """A copy in main memory that later steps do not change: tensors and what holds them."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: snapshot(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(snapshot(value) for value in state)
    return state


def check_finite(state: dict[str, Any], where: str, step: int) -> None:
    """Refuse to save weights with a NaN or an infinity, which no rerun could recover from: NonFiniteLoss.

    One synchronisation with the device for all tensors together; a save copies them anyway.
    """
    # CRD's banks and other buffers are in `trainable` too, so one check covers all that a rerun would read.
    parts = {name: state[name] or {} for name in ("trainable", "ema")}
    tensors = {f"{part}: {name}": t for part, held in parts.items() for name, t in held.items()}
    # Counters are whole numbers, and always finite.
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    # One tolist for all: each separate read would wait for the GPU.
    good = torch.stack([torch.isfinite(tensor).all() for tensor in tensors.values()]).tolist()
    bad = [name for name, fine in zip(tensors, good, strict=True) if not fine]
    if bad:
        more = f" and {len(bad) - 1} more" if bad[1:] else ""
        what = f"weights are not finite ({bad[0]}{more}), step {step}"
        raise NonFiniteLoss(what, where)


def load(folder: Path, spec: RunSpec) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable state of this run (None where there is none) and what was wrong on the way."""
    return choose(folder, spec)[1:]


def choose(folder: Path, spec: RunSpec) -> tuple[str | None, dict[str, Any] | None, list[str]]:
    """The newest readable checkpoint of this run, its state, and what was found wrong on the way.

    Raises CheckpointError when checkpoints exist but none can be read, or when one belongs to another spec.
    """
    faults: list[str] = []
    # Newest first: after a kill between two renames next.pt is whole and newer than last.pt.
    for path in (folder / name for name in (NEXT, LAST, PREVIOUS) if (folder / name).exists()):
        try:
            state = read(path, spec)
        except _DamagedError as error:
            faults.append(f"{path} {error}")
            continue
        _set_aside(folder, path.name)
        return path.name, state, faults
    # Some were there and all are damaged: starting over silently would overwrite what may be rescued.
    if faults:
        hint = "nothing was overwritten; delete them to start this run again from its first epoch"
        raise CheckpointError(f"no checkpoint can be read: {'; '.join(faults)}", hint=hint)
    return None, None, faults


def _set_aside(folder: Path, good: str) -> None:
    """Move newer, damaged checkpoints away, so that the next one written does not push out the good one."""
    for name in (NEXT, LAST):
        if name == good:
            return
        with contextlib.suppress(OSError):
            os.replace(folder / name, folder / DAMAGED)


class _DamagedError(Exception):
    """A checkpoint that is cut off or changed, or that the disk does not give."""


def read(path: Path, spec: RunSpec) -> dict[str, Any]:
    """The state in one file; refuses one of another spec."""
    state = _read(path)
    # The format first: a spec of an older format need not even have the same keys.
    if state.get("format") != FORMAT:
        what = f"was written by another version of the engine (format {state.get('format', 1)}, now {FORMAT})"
        hint = "delete it to train the run from its first epoch, or finish it with the version that began it"
        raise CheckpointError(what, where=str(path), hint=hint)
    if state.get("spec") != spec.canonical_json():
        what = f"checkpoint of another run ({state.get('run')}), expected {spec.id}"
        raise CheckpointError(
            what, where=str(path), hint="move it away, or run with the spec it was made with"
        )
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        # A disk that fails to read is like a damaged file: the checkpoint before it may still be good.
        raise _DamagedError(f"cannot be read ({error.strerror})") from None
    # The digest first: what torch says of a cut file names neither the file nor the reason.
    body, trailer = content[:-TRAILER], content[-TRAILER:]
    if len(content) <= TRAILER or trailer != MARK + hashlib.sha256(body).digest():
        raise _DamagedError(f"is truncated or damaged ({len(content):,} bytes, wrong sha256)")
    # A full unpickle would run whatever code the file names: tensors and plain values are enough.
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError):
        state = None
    if not isinstance(state, dict):
        what = "refused: it is no checkpoint of this engine, or asks for more than tensors and plain values"
        hint = "nothing in it was run; delete it to start this run again from its first epoch"
        raise CheckpointError(what, where=str(path), hint=hint)
    return state


def newest(folder: RunFolder, spec: RunSpec, group: Group, vote: Vote) -> dict[str, Any] | None:
    """The state to continue from, the same on all processes; None if the run has none.

    The first process chooses a file. The others read the file with the same digest: a node whose view of the
    folder is old would else continue from another step, and the run would end well with wrong numbers.
    """
    # An error of the first process must end all, else the others wait for its broadcast.
    first_has = vote.together(lambda: choose(folder.path, spec) if group.first else None)
    name, state, faults = first_has or (None, None, [])
    for fault in faults:
        folder.note(f"{fault}; using the checkpoint before it")
    # The name alone is not enough: on another node last.pt may still be the file before.
    chosen = vote.from_first((name, digest(folder.path / name)) if name else None)
    if chosen is None:
        return None
    if group.first:
        return vote.together(lambda: state)
    name, expected = chosen
    return vote.together(lambda: _read_the_same(folder.path, spec, group, name, expected))


def _read_the_same(
    folder: Path, spec: RunSpec, group: Group, name: str, expected: str | None
) -> dict[str, Any]:
    """The checkpoint that the first process has read, once this process's node sees it."""
    # Network file systems cache folders for seconds to a minute; two minutes outlast that.
    path, deadline = folder / name, time.monotonic() + WAIT_SECONDS
    while digest(path) != expected:
        if time.monotonic() > deadline:
            what = f"process {group.rank} does not see the checkpoint that process 0 has read"
            hint = f"its node has an old view of the folder ({WAIT_SECONDS:.0f} s waited); run it again"
            raise CheckpointError(what, where=str(path), hint=hint)
        os.listdir(folder)  # makes a network file system look again
        time.sleep(0.5)
    try:
        return read(path, spec)
    except _DamagedError as error:
        raise CheckpointError(str(error), where=str(path)) from None


def digest(path: Path) -> str | None:
    """The sha256 that a checkpoint ends with; None if it cannot be read."""
    try:
        # Only the last bytes: a process polls this twice a second while it waits.
        with path.open("rb") as file:
            file.seek(-TRAILER, os.SEEK_END)
            return file.read().removeprefix(MARK).hex()
    except OSError:
        return None


def random_state() -> dict[str, Any]:
    """The state of every random number generator, as plain numbers and tensors."""
    # weights_only loading refuses numpy arrays, so numpy's keys are kept as a tensor.
    kind, keys, index, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), index, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every random number generator back."""
    # Each library has a generator of its own; augmentation uses all three.
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    # torch refuses more generator states than there are GPUs, and a run may go on with fewer.
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
