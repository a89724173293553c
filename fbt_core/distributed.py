"""Several processes as one run: how they start, agree on signals and checkpoints, and end together."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fbt_core.errors import UserError
from fbt_core.provenance import usable_cores
from fbt_core.spec import ExecutionSettings
from fbt_core.torchrun import TORCHRUN

Result = TypeVar("Result")


def world_size() -> int:
    """How many processes train this run together; 1 outside torchrun."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def rank() -> int:
    """This process's number, 0 outside torchrun."""
    return dist.get_rank() if world_size() > 1 else 0


@dataclass(frozen=True)
class Group:
    """The processes that train together, as one of them sees it: its device, its rank, how many there are."""

    device: torch.device
    rank: int
    world: int

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    @property
    def gpus(self) -> int:
        """How many GPUs all processes use."""
        return self.world if self.device.type == "cuda" else 0


def choose_device(settings: ExecutionSettings) -> torch.device:
    """CUDA where there is one; stops at paper scale instead of training on a CPU unasked."""
    if settings.device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if settings.device == "cuda":
        raise UserError(
            "torch sees no CUDA device", where="device: cuda", hint="use device: auto or device: cpu"
        )
    if settings.device == "auto" and not settings.allow_cpu:
        what = "torch sees no CUDA device, and this scale would take months on a CPU"
        raise UserError(what, where="device: auto", hint="start it on a GPU, or set `device: cpu` to insist")
    return torch.device("cpu")


def start(settings: ExecutionSettings) -> Group:
    """Choose the device, set the threads and join the other processes where torchrun started several."""
    device = choose_device(settings)
    # torchrun sets these variables; without them a process is alone.
    world = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(settings.threads or _threads_given())
    if device.type == "cpu":  # same spec, same bytes
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    # Before the group is made, so that NCCL talks for this GPU.
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = settings.cudnn_benchmark
    if world > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        os.environ["TORCH_DIST_INIT_BARRIER"] = "1"  # none fails at once while another still connects to it
        dist.init_process_group(backend, store=PEERS.meet(), rank=int(os.environ["RANK"]), world_size=world)
    # rank() is 0 until the group exists, so it is asked last.
    return Group(device, rank(), world)


class Peers:
    """The processes of a run, before and after they form a group: which of them fails first says why."""

    def __init__(self) -> None:
        self.store: dist.Store | None = None
        self._first: bool | None = None

    def meet(self) -> dist.Store | None:
        """Reach the store that torchrun's processes share; None where a process is alone."""
        if self.store is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self.store, _, _ = next(dist.rendezvous("env://"))
            self._first = None
        return self.store

    def first_to_fail(self) -> bool:
        """Whether no other process failed before this one; asked again it says the same."""
        # Kept: a second claim would count as another failure.
        if self._first is None:
            self._first = self.store is None or self._claim(self.store)
        return self._first

    def _claim(self, store: dist.Store) -> bool:
        try:
            return store.add("fbt_core/failures", 1) == 1
        except RuntimeError:  # the store went with the process that failed
            return False


PEERS = Peers()
MEMORY = "use more GPUs, gradient_accumulation or precision bfloat16; the last checkpoint is kept"


def explain(error: Exception) -> Exception:
    """The user's error behind a full GPU or a process that is gone; any other error as it is."""
    # What a user can change about it stands in the hint; torch's own advice names allocator options.
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return UserError(f"the GPU's memory is full ({str(error).split('. ')[0]})", hint=MEMORY)
    # gloo reports a lost peer as a plain RuntimeError, NCCL as a DistError.
    gone = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    if PEERS.store is None or not gone:
        return error
    reason = str(error).splitlines()[0][:200]
    what = f"another process of this run is gone or does not answer ({reason})"
    return UserError(
        what, where=f"process {os.environ['RANK']}", hint="run the same command again: it continues"
    )


def _threads_given() -> int:
    """CPU threads this process may use: OpenMP's setting, else its share of the cores it is bound to."""
    # A user's own setting wins, and torch has read it already.
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    # Processes of one node share its cores.
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Vote:
    """All processes agree, without waiting, on what one of them wants: the answer comes a step later.

    To stop because of signal n is the ballot STOP + n, so every process can name the signal.
    """

    NOTHING, SAVE, STOP = 0, 1, 2

    def __init__(self) -> None:
        # gloo, also on GPUs: votes are small numbers in main memory, and no kernel should wait for them.
        self.group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._pending: tuple[Tensor, dist.Work] | None = None

    def ask(self, wanted: int) -> int:
        """The highest ballot of any process at the step before; in a single process its own."""
        if self.group is None:
            return wanted
        # The answer of the step before is read, then a new vote is sent: nobody waits for the slowest now.
        agreed = self._answer()
        ballot = torch.tensor(wanted)
        work = dist.all_reduce(ballot, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self._pending = (ballot, work)
        return agreed

    def _answer(self) -> int:
        if self._pending is None:
            # The first step has nothing to answer; all processes are at their first step together.
            return self.NOTHING
        ballot, work = self._pending
        work.wait()
        return int(ballot)

    def from_first(self, value: Any) -> Any:
        """What the first process has, on all of them."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def together(self, act: Callable[[], Result]) -> Result | None:
        """What `act` gives on this process; a UserError that any process meets in it is raised on all.

        It is met after the last exchange that `act` takes part in, or by all of them.
        """
        if self.group is None:
            return act()
        result, met = None, None
        try:
            result = act()
        except UserError as error:
            met = error
        # Errors travel as text: an exception's own object need not survive pickling.
        errors: list[str | None] = [None] * world_size()
        dist.all_gather_object(errors, None if met is None else str(met), group=self.group)
        if met is not None:
            raise met
        # Processes that met nothing stop too; their next exchange would wait for ever.
        if reasons := [reason for reason in errors if reason is not None]:
            raise UserError(reasons[0])
        return result

    def check_equal(self, module: nn.Module, what: str) -> None:
        """Raise UserError unless parameters and buffers are the same on all processes, to the last bit."""
        if self.group is None:
            return
        # A digest instead of the tensors: gigabytes would be exchanged to compare them.
        digest = hashlib.sha256()
        for tensor in module.state_dict().values():
            # As bytes, so that bfloat16, which numpy does not know, can be hashed.
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        digests: list[str] = [""] * world_size()
        dist.all_gather_object(digests, digest.hexdigest(), group=self.group)
        if len(set(digests)) > 1:
            odd = [number for number, value in enumerate(digests) if value != digests[0]]
            hint = "run the same command again; do all nodes see the same files?"
            raise UserError(f"{what} of processes {odd} are not those of process 0", hint=hint)


def lost_torchrun() -> int | None:
    """SIGHUP if the torchrun that started this process is gone (killed, or out of memory); else None.

    Its processes would train on without anybody to stop them.
    """
    started_by = os.environ.get(TORCHRUN)
    # A process whose parent is gone is given another parent.
    gone = started_by is not None and os.getppid() != int(started_by)
    return signal.SIGHUP if gone else None


def stop() -> None:
    """Leave the group of processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
