"""Training, from specs to published results: read `train` from top to bottom.

    train([spec], settings, Path("results/smoke/runs"), StopRequest())

Runs that share one stream of batches and one frozen teacher are trained together; a single run is the case
of one.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fbt_core import distributed
from fbt_core.batch_division import check_accumulation, check_batch
from fbt_core.checkpoint import random_state, restore_random_state
from fbt_core.data.feed import Raw, explaining_loaders
from fbt_core.data.load import load_splits
from fbt_core.data.order import BatchKey, seed_everything
from fbt_core.data.splits import Split, blank_images
from fbt_core.distributed import Group, Vote
from fbt_core.errors import Interrupted
from fbt_core.learner import Learner
from fbt_core.methods.base import Context, Method
from fbt_core.methods.registry import build_method
from fbt_core.optimisation import autocast
from fbt_core.run_folder import RunFolder
from fbt_core.spec import ExecutionSettings, NetworkSpec, RunSpec
from fbt_core.staged import StagedModel, build_network, stage
from fbt_core.stream import Stream
from fbt_core.teacher import Teacher
from fbt_core.teacher_score import note_teacher
from fbt_core.weights import WeightSources, load_weights

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
BUILD = 0  # the stream of random numbers that initial weights come from


def train(specs: Sequence[RunSpec], settings: ExecutionSettings, runs: Path, stop: StopRequest) -> None:
    """Train runs to their end, or to where a signal stops them; a complete run is left alone."""
    # torchrun may have started several processes: together they are one training, and the first writes.
    group = distributed.start(settings)
    folders = [RunFolder(runs, spec, writes=group.first) for spec in specs]
    with explaining_loaders(), reporting_errors(folders, group):
        # Every refusal that needs no network comes before the minutes that building one takes.
        for spec in specs:
            check_batch(spec.recipe, group, settings.gradient_accumulation)

        # One stream of batches: they follow from seed, epoch and step alone.
        splits = load_splits(specs[0].dataset, settings.data_roots)
        stream = Stream(specs[0], settings, splits, group)

        # One teacher: it is frozen, and observes each batch once, whoever learns from it.
        network = make_teacher(specs[0], settings, runs)

        # One learner a run: student, method, optimiser, state and folder.
        vote = Vote()
        learners = []
        for spec, folder in zip(specs, folders, strict=True):
            method = to_device(make_method(spec, settings, runs, splits[0], network), settings, group)
            check_accumulation(method, spec.recipe, settings.gradient_accumulation)
            if open_folder(folder, splits[0], vote):
                learners.append(Learner(spec, settings, group, method, folder))
        teacher = Teacher.of(specs[0], network)

        # A run that was interrupted goes on where it was: same weights, same batches, same draws.
        for learner in learners:
            learner.resume(vote)
        note_teacher(learners, network, splits[1], lambda: stop_if_voted(learners, vote, stop))

        train_to_the_end(learners, stream, teacher, splits[1].labels, vote, stop)


def train_to_the_end(
    learners: Sequence[Learner],
    stream: Stream,
    teacher: Teacher | None,
    test_labels: Tensor,
    vote: Vote,
    stop: StopRequest,
) -> None:
    """Train learners that stand where they were left, and publish them."""
    # Epochs of steps. After each step and each epoch the processes agree whether to save or to stop.
    while learners and not learners[0].finished:
        train_epoch(learners, stream, teacher, vote, stop)
        for learner in learners:
            learner.finish_epoch(stream, teacher, between=lambda: stop_if_voted(learners, vote, stop))
        if vote.from_first(any(learner.finished or learner.checkpoint_due for learner in learners)):
            save(learners, vote, finish=learners[0].finished)
        for learner in learners:
            learner.folder.write_history(learner.state.history)
        act_on(learners, vote.ask(wanted(learners, stop)), vote)

    # A result that exists is complete: metrics come last.
    for learner in learners:
        learner.publish(test_labels)


def train_epoch(
    learners: Sequence[Learner], stream: Stream, teacher: Teacher | None, vote: Vote, stop: StopRequest
) -> None:
    """The remaining steps of the present epoch."""
    state = learners[0].state
    for learner in learners:
        learner.start_epoch()
    for key, raw in stream.training(state.epoch, state.step):
        train_step(learners, stream, teacher, key, raw)
        act_on(learners, vote.ask(wanted(learners, stop)), vote)


def train_step(
    learners: Sequence[Learner], stream: Stream, teacher: Teacher | None, key: BatchKey, raw: Raw
) -> None:
    """One step: the teacher observes the batch, every run learns from it and updates its weights."""
    parts = stream.parts(key, raw)
    # Each run draws what it would draw alone: its draws go on where those of the batch ended.
    several = len(learners) > 1
    draws = [random_state() if several else {}] * len(learners)
    for part in parts:
        with autocast(stream.spec.recipe, stream.group.device):
            seen = teacher.observe(part.images) if teacher else None
        for number, learner in enumerate(learners):
            if several:
                restore_random_state(draws[number])
            learner.learn(part, seen)
            if several:
                draws[number] = random_state()
    for learner in learners:
        learner.update()


# ---------------------------------------------------------------- building


def make_teacher(spec: RunSpec, settings: ExecutionSettings, runs: Path) -> StagedModel | None:
    """The teacher's network with its weights, in stages; None if the run has no teacher."""
    return None if spec.teacher is None else make_network(spec.teacher, spec, settings, runs)


def make_method(
    spec: RunSpec, settings: ExecutionSettings, runs: Path, split: Split, teacher: StagedModel | None
) -> Method:
    """Student and method around a teacher; their random weights follow from the run's seed."""
    student = make_network(spec.student, spec, settings, runs, in_training=True)
    seed_everything(spec.seed, BUILD, 1)
    return build_method(spec.method, student, teacher, Context.of(spec, split.labels))


def make_network(
    network: NetworkSpec, spec: RunSpec, settings: ExecutionSettings, runs: Path, in_training: bool = False
) -> StagedModel:
    """A network in its role with the weights its spec names, cut into stages."""
    seed_everything(spec.seed, BUILD, 0)
    built = build_network(network, spec.dataset.classes, spec.dataset.image_size)
    load_weights(built, network, WeightSources(runs, settings.weight_files), new_head=in_training)
    return stage(built, spec.dataset.image_size, str(spec.method.parameters.get("split", "even")))


def to_device(method: Method, settings: ExecutionSettings, group: Group) -> Method:
    """Student, teacher and what the method adds, on this process's device in the chosen memory format."""
    method = method.to(group.device)
    return method.to(memory_format=torch.channels_last) if settings.channels_last else method


def open_folder(folder: RunFolder, training_images: Split, vote: Vote) -> bool:
    """Take a run's folder; False if the run is complete, which the first process decides for all."""
    folder.open()
    if vote.from_first(folder.complete):
        folder.note(f"{folder.spec.id} is complete; delete its folder to train it again")
        return False
    if folder.writes and (problem := blank_images(training_images)):
        folder.note(f"warning: {folder.spec.dataset.name}, training images: {problem}")
    return True


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


def act_on(learners: Sequence[Learner], agreed: int, vote: Vote) -> None:
    """Save what the processes agreed to save, and leave if one of them was asked to."""
    if agreed == Vote.NOTHING:
        return
    save(learners, vote, finish=agreed >= Vote.STOP)
    if agreed >= Vote.STOP:  # the same command continues the run
        name, state = signal.Signals(agreed - Vote.STOP).name, learners[0].state
        raise Interrupted(f"{name}: state saved at epoch {state.epoch + 1}, step {state.step}")


def save(learners: Sequence[Learner], vote: Vote, finish: bool) -> None:
    """Write the checkpoints beside the training; with `finish` no process goes on before they are there."""
    for learner in learners:
        learner.save(finish)
    if finish:
        vote.wait()


def stop_if_voted(learners: Sequence[Learner], vote: Vote, stop: StopRequest) -> None:
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
        if group.first if isinstance(reason, Interrupted) else distributed.PEERS.first_to_fail():
            for folder in folders:
                folder.close(reason)
        raise
