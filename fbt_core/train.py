"""Training, from specs to published results: read `train` from top to bottom.

    train([spec], settings, Path("results/smoke/runs"), StopRequest())

Runs that share one stream of batches and one frozen teacher are trained together; a single run is the case
of one.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from fbt_core import distributed
from fbt_core.batch_division import check_accumulation, check_batch
from fbt_core.checkpoint import random_state, restore_random_state
from fbt_core.data.feed import Raw, explaining_loaders
from fbt_core.data.load import load_splits
from fbt_core.data.order import BatchKey, seed_everything
from fbt_core.data.splits import Split, blank_images
from fbt_core.distributed import Group, Vote
from fbt_core.errors import Interrupted
from fbt_core.halving import halves, noted_as_full, report_full
from fbt_core.learner import Learner
from fbt_core.methods.base import Context, Method
from fbt_core.methods.registry import build_method
from fbt_core.optimisation import autocast
from fbt_core.packs import Ending
from fbt_core.publish import publish
from fbt_core.run_folder import RunFolder
from fbt_core.spec import ExecutionSettings, NetworkSpec, RunSpec
from fbt_core.staged import StagedModel, build_network, stage
from fbt_core.stream import Stream
from fbt_core.teacher import Teacher
from fbt_core.teacher_score import note_teacher
from fbt_core.weights import WeightSources, load_weights

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
Module = TypeVar("Module", bound=nn.Module)
WAIT_SECONDS = 5.0  # between two looks whether another process still trains a run
BUILD = 0  # the stream of random numbers that initial weights come from


def train(
    specs: Sequence[RunSpec],
    settings: ExecutionSettings,
    runs: Path,
    stop: StopRequest,
    to_publish: bool = False,
) -> dict[str, Ending]:
    """Train runs to their end, or to where a signal stops them; how each ended, by run id.

    A complete run is left alone. What goes wrong for one run ends that run alone; an error of what all share
    ends all, and is raised. With `to_publish` results are left for fbt_core.publish.
    """
    # torchrun may have started several processes: together they are one training, and the first writes.
    group = distributed.start(settings)
    # A run's name on each of its lines: other trainings, of this process or not, write to the same terminal.
    folders = [
        RunFolder(runs, spec, group.first, to_publish, label=f"{spec.id}: ", shares=len(specs) > 1)
        for spec in specs
    ]
    with explaining_loaders(), reporting_errors(folders, group):
        # All runs at once; halves of them, one after the other, if the memory does not hold them together.
        packs = [folders]
        while packs:
            packs[:1] = train_or_divide(packs[0], settings, runs, group, stop)
    return {folder.spec.id: folder.ending for folder in folders}


def train_or_divide(
    folders: list[RunFolder], settings: ExecutionSettings, runs: Path, group: Group, stop: StopRequest
) -> list[list[RunFolder]]:
    """Train these runs together; if the memory does not hold them, the halves to train instead."""
    full: Exception | None = noted_as_full(folders)
    if full is None:
        try:
            train_together(folders, settings, runs, group, stop)
            return []
        except torch.OutOfMemoryError as error:
            full = distributed.explain(error)
        report_full(folders, full, group)
    # Gone with the exception: networks and graphs that it held are freed before the halves begin.
    gc.collect()
    torch.cuda.empty_cache()
    return halves(folders, full)


def train_together(
    folders: Sequence[RunFolder], settings: ExecutionSettings, runs: Path, group: Group, stop: StopRequest
) -> None:
    """Train runs on one stream of batches with one teacher: the whole procedure."""
    # Every refusal that needs no other process comes first: a process that waits for one that has failed
    # would wait for a long time. Then the minutes that building networks takes.
    check_batch(folders[0].spec.recipe, group, settings.gradient_accumulation)
    splits = load_splits(folders[0].spec.dataset, settings.data_roots)
    vote = Vote()
    # A run that another call trains is waited for, as from a second clone with the same results: its results
    # are then this call's. And whether there is anything to do is one question for all processes.
    wait_for_others(folders, vote, stop)
    folders = leave_out_complete(folders, vote)
    if not folders:
        return
    specs = [folder.spec for folder in folders]

    # One stream of batches: they follow from seed, epoch and step alone.
    stream = Stream(specs[0], settings, splits, group)

    # One teacher: it is frozen, and observes each batch once, whoever learns from it.
    taught = next((spec for spec in specs if spec.teacher), specs[0])
    network = make_teacher(taught, settings, runs)

    # One learner a run: student, method with a view of the teacher, optimiser, state and folder. A run that
    # was interrupted goes on where it was: same weights, same batches, same draws.
    learners = make_learners(folders, settings, runs, splits[0], network, group, vote)
    teacher = Teacher.of(taught, network)
    if teacher:
        teacher.serve([learner.method.teacher for learner in learners])
    note_teacher(learners, network, splits[1], lambda: stop_if_voted(learners, vote, stop))

    train_to_the_end(learners, stream, teacher, splits[1].labels, vote, stop)


def train_to_the_end(
    learners: list[Learner],
    stream: Stream,
    teacher: Teacher | None,
    test_labels: Tensor,
    vote: Vote,
    stop: StopRequest,
) -> None:
    """Train learners that stand where they were left, and publish them; each that ends leaves the list."""
    # Epochs of steps, from where the run stands that is furthest behind; those ahead wait. After each step
    # and each epoch the processes agree whether to save or to stop. A result that exists is complete.
    publish_finished(learners, test_labels, vote)
    while learners:
        position = min(learner.position for learner in learners)
        train_epoch(learners, stream, teacher, position, vote, stop)
        finish_epoch(learners, stream, teacher, position[0], vote, stop)
        publish_finished(learners, test_labels, vote)


def wait_for_others(folders: Sequence[RunFolder], vote: Vote, stop: StopRequest) -> None:
    """Wait until no other process of this machine trains one of these runs; a signal ends that."""
    announced = False
    # The first process alone looks, as it alone takes the folders.
    while taken := vote.from_first([number for number, folder in enumerate(folders) if folder.is_taken]):
        for number in [] if announced else taken:
            folders[number].note(
                f"another process is training {folders[number].spec.id}; waiting for its end"
            )
        announced = True
        if (agreed := vote.ask(wanted([], stop))) >= Vote.STOP:
            name = signal.Signals(agreed - Vote.STOP).name
            raise Interrupted(f"{name}: stopped while another process was training the run")
        time.sleep(WAIT_SECONDS)


def leave_out_complete(folders: Sequence[RunFolder], vote: Vote) -> list[RunFolder]:
    """The runs that are not complete, which the first process decides for all."""
    going = []
    # The first process alone looks: on another node's file system results may not show yet.
    complete = vote.from_first([folder.complete or folder.ready for folder in folders])
    for folder, is_complete in zip(folders, complete, strict=True):
        if not is_complete:
            going.append(folder)
            continue
        folder.note(f"{folder.spec.id} is complete; delete its folder to train it again")
        # Left by a pack, and now this run is trained alone: its results are there already.
        if folder.writes and folder.ready and not folder.complete and not folder.to_publish:
            with folder.ends_alone():
                publish(folder.path)
    return going


def train_epoch(
    learners: list[Learner],
    stream: Stream,
    teacher: Teacher | None,
    position: tuple[int, int],
    vote: Vote,
    stop: StopRequest,
) -> None:
    """The steps of an epoch from a position on; a run that fails leaves."""
    # Learners that are ahead wait at a later epoch, and are not started again.
    epoch, first_step = position
    for learner in learners:
        if learner.state.epoch == epoch:
            learner.start_epoch()
    for key, raw in stream.training(epoch, first_step):
        present = [learner for learner in learners if learner.position == (key.epoch, key.step)]
        if not present:  # those that were behind have failed: the others are further on
            return
        train_step(present, stream, teacher, key, raw)
        leave_out_ended(learners)
        act_on(learners, vote.ask(wanted(learners, stop)), vote)


def train_step(
    learners: Sequence[Learner], stream: Stream, teacher: Teacher | None, key: BatchKey, raw: Raw
) -> None:
    """One step: the teacher observes the batch, every run learns from it and updates its weights."""
    parts = stream.parts(key, raw)
    # Views of one teacher may deal its blocks differently; each gets its own.
    views = [learner.method.teacher for learner in learners]
    # Each run draws what it would draw alone: its draws go on where those of the batch ended.
    several = len(learners) > 1
    draws = [random_state() if several else {}] * len(learners)
    # Several processes exchange gradients in a step: an error that one of them meets there ends all.
    alone = stream.group.world == 1
    # Part by part: all learners use the teacher's output before the next part replaces it.
    for part in parts:
        seen = [None] * len(learners)
        if teacher:
            with autocast(stream.spec.recipe, stream.group.device):
                seen = teacher.observe_for(views, part.images)
        for number, learner in enumerate(learners):
            if learner.folder.error:
                continue
            if several:
                restore_random_state(draws[number])
            with learner.folder.ends_alone(alone):
                learner.learn(part, seen[number])
            if several:
                draws[number] = random_state()
    # After all parts, and each alone: a run that failed in one does not update.
    for learner in learners:
        if not learner.folder.error:
            with learner.folder.ends_alone():
                learner.update()


def finish_epoch(
    learners: list[Learner],
    stream: Stream,
    teacher: Teacher | None,
    epoch: int,
    vote: Vote,
    stop: StopRequest,
) -> None:
    """Evaluate the runs that stand at the end of this epoch, note it, and save if it is time."""
    # Those that are ahead have been evaluated there already.
    ending = [learner for learner in learners if learner.position == (epoch, stream.order.steps)]
    if not ending:
        return
    for learner in ending:
        with learner.folder.ends_alone():
            learner.start_evaluation(teacher)
    # All networks on the same test batch, so images are decoded once.
    tested = [learner for learner in ending if learner.scores]
    if tested:
        for _, batch in zip_longest(range(stream.tests.rounds), stream.tests):
            # A process whose share of the test images has ended still votes.
            if batch is not None:
                for learner in tested:
                    learner.count_batch(*batch)
            stop_if_voted(learners, vote, stop)
    for learner in ending:
        if not learner.folder.error:
            with learner.folder.ends_alone():
                learner.finish_epoch()
    leave_out_ended(learners)
    # The first process decides: clocks of others may differ.
    if vote.from_first(any(learner.finished or learner.checkpoint_due for learner in learners)):
        save(learners, vote, finish=any(learner.finished for learner in learners))
    for learner in learners:
        with learner.folder.ends_alone():
            vote.together(learner.write_history)
    leave_out_ended(learners)
    act_on(learners, vote.ask(wanted(learners, stop)), vote)


def publish_finished(learners: list[Learner], test_labels: Tensor, vote: Vote) -> None:
    """Publish the runs whose last epoch is over; they leave."""
    for learner in learners:
        if learner.finished:
            with learner.folder.ends_alone():
                vote.together(partial(learner.publish, test_labels))
                learner.folder.close()
    leave_out_ended(learners)


def leave_out_ended(learners: list[Learner]) -> None:
    """Take out the runs that failed or were published; the others share the time from now on."""
    going = [learner for learner in learners if learner.folder.opened]
    if len(going) < len(learners):
        for learner in going:
            learner.share(len(going))
        learners[:] = going


# ---------------------------------------------------------------- building


def make_teacher(spec: RunSpec, settings: ExecutionSettings, runs: Path) -> StagedModel | None:
    """The teacher's network with its weights, frozen, in stages; None if the run has no teacher."""
    if spec.teacher is None:
        return None
    return make_network(spec.teacher, spec, settings, runs).freeze()


def make_learners(
    folders: Sequence[RunFolder],
    settings: ExecutionSettings,
    runs: Path,
    split: Split,
    teacher: StagedModel | None,
    group: Group,
    vote: Vote,
) -> list[Learner]:
    """The runs in training, each where it was left; what stops one on a process stops it on all.

    All networks are built in main memory, whatever they look at while they are, and then moved.
    """
    methods = {}
    for folder in folders:
        with folder.ends_alone():
            vote.together(partial(open_folder, folder, split))
            method = vote.together(partial(make_method, folder.spec, settings, runs, split, teacher))
            check_accumulation(method, folder.spec.recipe, settings.gradient_accumulation)
            methods[folder] = method
    if teacher is not None:
        to_device(teacher, settings, group)
    learners = []
    for folder, method in methods.items():
        with folder.ends_alone():
            to_device(method, settings, group)
            learner = vote.together(partial(Learner, folder.spec, settings, group, method, folder))
            learner.resume(vote)
            learners.append(learner)
    for learner in learners:
        learner.join([other.spec.id for other in learners])
    return learners


def open_folder(folder: RunFolder, training_images: Split) -> None:
    """Take a run's folder, and warn of a data set that looks broken."""
    folder.open()
    if folder.writes and (problem := blank_images(training_images)):
        folder.note(f"warning: {folder.spec.dataset.name}, training images: {problem}")


def make_method(
    spec: RunSpec, settings: ExecutionSettings, runs: Path, split: Split, teacher: StagedModel | None
) -> Method:
    """Student and method around a view of a teacher; their random weights follow from the run's seed."""
    student = make_network(spec.student, spec, settings, runs, in_training=True)
    view = None if teacher is None else teacher.view(split_of_blocks(spec))
    seed_everything(spec.seed, BUILD, 1)
    return build_method(spec.method, student, view, Context.of(spec, split.labels))


def make_network(
    network: NetworkSpec, spec: RunSpec, settings: ExecutionSettings, runs: Path, in_training: bool = False
) -> StagedModel:
    """A network in its role with the weights its spec names, cut into stages."""
    seed_everything(spec.seed, BUILD, 0)
    built = build_network(network, spec.dataset.classes, spec.dataset.image_size)
    load_weights(built, network, WeightSources(runs, settings.weight_files), new_head=in_training)
    return stage(built, spec.dataset.image_size, split_of_blocks(spec))


def split_of_blocks(spec: RunSpec) -> str:
    """How the method deals the blocks of networks without stages of their own."""
    return str(spec.method.parameters.get("split", "even"))


def to_device(module: Module, settings: ExecutionSettings, group: Group) -> Module:
    """A network, or a method with all it holds, on this process's device in the chosen memory format."""
    module = module.to(group.device)
    if settings.channels_last:
        module = module.to(memory_format=torch.channels_last)
    return module


# ---------------------------------------------------------------- saving and stopping


class StopRequest:
    """Remembers that a signal asked the run to stop; the loop looks at it between two steps."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals for as long as the block runs; one that was held back until now comes at once."""
        before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        held_back = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            yield self
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held_back)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        # The first Ctrl-C waits for the end of a step to save; a second one says not to wait.
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


def wanted(learners: Sequence[Learner], stop: StopRequest) -> int:
    """This process's ballot: to stop (a signal, torchrun is gone), or a checkpoint in time (by rank 0).

    A checkpoint is asked for once: on several processes the answer comes a step later.
    """
    if asked := stop.signal or distributed.lost_torchrun():
        return Vote.STOP + asked
    due = [learner for learner in learners if learner.checkpoint_due and not learner.checkpoint_asked]
    if not due or not learners[0].group.first:
        return Vote.NOTHING
    for learner in learners:
        learner.checkpoint_asked = True
    return Vote.SAVE


def act_on(learners: list[Learner], agreed: int, vote: Vote) -> None:
    """Save what the processes agreed to save, and leave if one of them was asked to."""
    if agreed == Vote.NOTHING:
        return
    save(learners, vote, finish=agreed >= Vote.STOP)
    if agreed >= Vote.STOP and learners:  # the same command continues the run
        name, (epoch, step) = signal.Signals(agreed - Vote.STOP).name, min(run.position for run in learners)
        raise Interrupted(f"{name}: state saved at epoch {epoch + 1}, step {step}")


def save(learners: list[Learner], vote: Vote, finish: bool) -> None:
    """Write the checkpoints beside the training; with `finish` no process goes on before they are there."""
    for learner in learners:
        with learner.folder.ends_alone():
            vote.together(partial(learner.save, finish))
    leave_out_ended(learners)


def stop_if_voted(learners: list[Learner], vote: Vote, stop: StopRequest) -> None:
    """Between the batches of an evaluation only a signal counts; a checkpoint waits for the epoch's end."""
    agreed = vote.ask(wanted(learners, stop))
    if agreed >= Vote.STOP:
        act_on(learners, agreed, vote)


@contextmanager
def reporting_errors(folders: Sequence[RunFolder], group: Group) -> Iterator[None]:
    """Note in the runs' folders why they end before their end, by the process that met the error first."""
    try:
        yield
    except Exception as error:
        reason = distributed.explain(error)
        notes = group.first
        if not isinstance(reason, Interrupted):
            notes = distributed.PEERS.first_to_fail()
        if notes:
            for folder in folders:
                folder.writes = True
                folder.close(reason)
        raise
