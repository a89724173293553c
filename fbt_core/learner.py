"""A run in training: student and method, optimiser, state and folder. It learns what the loop gives it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from fbt_core import checkpoint, running_statistics
from fbt_core.batch_division import wrap
from fbt_core.distributed import Group, Vote
from fbt_core.errors import CheckpointError
from fbt_core.loss_log import LossLog
from fbt_core.methods.base import Batch, Method
from fbt_core.normalisation import set_normalisation_batch
from fbt_core.optimisation import Optimisation
from fbt_core.provenance import now
from fbt_core.report import Report, gpus_counted
from fbt_core.run_folder import RunFolder
from fbt_core.scoring import Score, count_correct
from fbt_core.spec import ExecutionSettings, RunSpec
from fbt_core.staged.base import StagedOutput
from fbt_core.state import State
from fbt_core.stream import TestImages
from fbt_core.teacher import Teacher
from fbt_core.weights import state_sha256


class Learner:
    """One run in training. The loop owns the batches and the teacher; all that belongs to the run is here."""

    def __init__(
        self, spec: RunSpec, settings: ExecutionSettings, group: Group, method: Method, folder: RunFolder
    ) -> None:
        self.spec, self.settings, self.group, self.folder = spec, settings, group, folder
        self.method = method
        # Before the first step, and once: what is hashed later would be trained weights.
        self.origin = digest_of_weights(method) if folder.writes else {}
        steps = spec.dataset.train_images // spec.recipe.batch_size

        # The module is made final first: BatchNorms may be replaced (the EMA's only evaluate, and stay).
        if spec.recipe.ema_decay is not None:
            method.setup_ema(spec.recipe.ema_decay)
        accumulation = settings.gradient_accumulation
        method.adapt_normalisation(
            lambda module: set_normalisation_batch(module, spec.recipe, group, accumulation)
        )
        self.trainable = method.trainable_module

        # The optimiser holds the final module's parameters; DDP wraps the module afterwards, for the steps.
        self.optimisation = Optimisation(self.trainable, spec.recipe, steps, group.device)
        self.forward: Callable[..., dict[str, Any]] = wrap(method, settings, group)

        self.state, self.gpus, self.together = State(), gpus_counted(group), 1
        self.report = Report(spec, settings, group, folder, steps)
        self.saved, self.checkpoint_asked = time.monotonic(), False
        self.writer = checkpoint.Writer()
        self._saved_at: tuple[int, int] | None = None
        self._results: list[dict[str, Any]] = []
        self.scores: dict[str, Score] = {}

    @property
    def position(self) -> tuple[int, int]:
        """The epoch and the step that the run stands before, both from 0."""
        return self.state.epoch, self.state.step

    def join(self, pack: Collection[str]) -> None:
        """Begin, together with the runs of these ids (its own among them): from here on time counts."""
        self.state.pack = sorted({*self.state.pack, *pack} - {self.spec.id})
        self.state.too_large = sorted({*self.state.too_large, *self.folder.too_large})
        self.state.clock, self.together = time.monotonic(), len(pack)

    def share(self, together: int) -> None:
        """From now on so many runs share the GPUs: the time until now is counted as before."""
        self.count_time(training=False)
        self.together = together

    def count_time(self, training: bool = True) -> None:
        """Count the time since the last call, on this run's share of the GPUs."""
        self.state.count_time(self.gpus / self.together, training)

    # -- learning ------------------------------------------------------------------------------------------

    def start_epoch(self) -> None:
        """Training mode, and the ramps of the method at the present epoch; waiting is no training."""
        self.count_time(training=False)
        self.method.train()
        self.method.start_epoch(self.state.epoch)
        self.report.start_epoch(self.state)

    def learn(self, part: Batch, seen: StagedOutput | None) -> None:
        """The gradients of one part of a batch; `seen` is what the teacher gave for it."""
        # The processes add up their gradients once a batch, with its last part.
        is_last = len(self._results) + 1 == self.settings.gradient_accumulation
        with nullcontext() if is_last else self.method.no_sync():
            with self.optimisation.autocast():
                # Autocast covers the forward alone: torch runs each backward operation in its forward's type.
                result = self.forward(part, seen)
            # Divided here, so that the sum over parts is the mean over the batch.
            self.optimisation.backward(result["loss"] / self.settings.gradient_accumulation)
        self._results.append(result)

    def update(self) -> None:
        """One update of the weights from the gradients of all parts."""
        if self.group.world == 1:  # else the first process alone would leave: the next save says it to all
            self.writer.check()
        # Kept on the device: reading them at each step would make the GPU wait.
        self.state.losses.add(self._results)
        self._results = []
        self.state.step += 1
        # Counted before the optimiser's step, whose schedule counts this update too.
        self.state.updates += 1
        self.optimisation.step(self.state.updates)
        # After the optimiser: the average is over weights that a step has made.
        self.method.update_ema(step=self.state.updates)
        # Few reads: each one waits until the GPU has done all that was asked of it.
        if self.state.step % self.settings.log_steps == 0:
            self.read_losses()
        self.count_time()
        self.report.progress(self.state)

    def read_losses(self) -> None:
        """Fetch the losses from the device; raises NonFiniteLoss."""
        where = f"{self.spec.id}, epoch {self.state.epoch + 1}"
        self.state.losses.read(where, self.optimisation.learning_rate)

    # -- the end of an epoch -------------------------------------------------------------------------------

    def start_evaluation(self, teacher: Teacher | None) -> None:
        """The networks to score at this epoch's end, before the test images come; none if none is due."""
        # Before the tests: a loss that is not finite ends the run before anything is scored.
        self.read_losses()
        self.count_time()
        # Each process has seen its own images; what is scored and saved has one set of statistics.
        running_statistics.average(self.with_statistics)
        networks: dict[str, nn.Module] = {}
        if self.spec.recipe.evaluates(self.state.epoch + 1):
            networks["student"] = self.method.get_eval_model()
            if self.method.has_ema():
                networks["ema"] = self.method.get_eval_model(ema=True)
            if teacher is not None and self.method.has_fused_model:
                # Fused logits need the teacher's pass, which no other scored network does.
                networks["fused"] = FusedView(self.method, teacher)
        self.scores = {name: Score(network, self.group.device) for name, network in networks.items()}

    @torch.no_grad()
    def count_batch(self, images: Tensor, labels: Tensor) -> None:
        """Count one test batch for each of them."""
        for score in self.scores.values():
            score.add(*self.count_test_batch(score.network, images, labels))

    @torch.no_grad()
    def evaluate(self, network: nn.Module, tests: TestImages, between: Callable[[], None]) -> dict[str, Any]:
        """The score of one more network, on test images of its own; `between` is called after each batch."""
        score = Score(network, self.group.device)
        for _, batch in zip_longest(range(tests.rounds), tests):
            if batch is not None:
                score.add(*self.count_test_batch(network, *batch))
            between()
        return score.read(self.spec, self.state.epoch + 1)

    def count_test_batch(self, network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What `count_correct` says of one test batch, and the predicted class of each image."""
        # In the recipe's precision, as in training.
        with self.optimisation.autocast():
            logits = network(images)
        return count_correct(logits.float(), labels), logits.argmax(1).to(torch.int32)

    def finish_epoch(self) -> None:
        """Note the epoch with its scores, move the schedule, stand at the next epoch's first step."""
        # All scores are read first: one that is not finite ends the run before anything of it is noted.
        read = {name: score.read(self.spec, self.state.epoch + 1) for name, score in self.scores.items()}
        self.scores = {}
        # History before the counters move: a line belongs to the epoch that ends.
        self.note_epoch(read.get("student"), read.get("ema"), read.get("fused"))
        self.state.epoch, self.state.step = self.state.epoch + 1, 0
        # timm's schedules are asked with the epoch that begins.
        self.optimisation.schedule.step(self.state.epoch)
        # New sums for the new epoch; the latest loss stays for the progress file.
        self.state.losses = LossLog(self.state.losses.latest)

    def note_epoch(
        self, score: dict[str, Any] | None, ema: dict[str, Any] | None, fused: dict[str, Any] | None
    ) -> None:
        """A line of history, without scores if none was due; the best epoch so far keeps its weights."""
        state = self.state
        state.training_seconds += state.epoch_seconds
        line = self.report.epoch(state, self.optimisation.learning_rate, score, ema, fused)
        state.history.append(line)
        state.epoch_seconds = 0.0
        if score is not None:
            self.keep_best(score, ema)
        self.count_time(training=False)
        self.report.end_epoch(line)
        self.report.progress(state, force=True)

    def keep_best(self, score: dict[str, Any], ema: dict[str, Any] | None) -> None:
        """Keep an evaluated epoch's predictions, and its weights if it is the best so far."""
        state, epoch = self.state, self.state.epoch + 1
        state.predictions["last"] = score["predicted"]
        # Of equal epochs the earliest is the best.
        if state.best is None or score["top1"] > state.best["top1"]:
            state.best = {"epoch": epoch, "top1": score["top1"], "top5": score["top5"]}
            # The bare network's own weights, which is what is published: no projector, no branch.
            state.best_weights = self.student_weights()
            state.predictions["best"] = score["predicted"]
        if ema and (state.best_ema is None or ema["top1"] > state.best_ema["top1"]):
            state.best_ema = {"epoch": epoch, "top1": ema["top1"], "top5": ema["top5"]}
            state.predictions["ema"] = ema["predicted"]

    def student_weights(self) -> dict[str, Tensor]:
        """A copy of the bare network's weights, in main memory."""
        # To main memory: a second copy of the student would take GPU memory for the whole training.
        weights = self.method.student.network.state_dict()
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}

    def publish(self, test_labels: Tensor) -> None:
        """Write the results: predictions, weights of the best epoch, then metrics."""
        # Parameters of the student alone: extras are thrown away, and the paper's tables count without them.
        parameters = sum(parameter.numel() for parameter in self.method.student.network.parameters())
        metrics = self.report.metrics(self.state, parameters)
        # Predictions before the results: metrics.json says that all else is there.
        self.folder.publish_predictions({**self.state.predictions, "labels": test_labels})
        self.folder.publish(self.state.best_weights, {**metrics, **self.origin})
        self.report.close(self.state)

    # -- checkpoints ---------------------------------------------------------------------------------------

    @property
    def checkpoint_due(self) -> bool:
        """Whether it is time for another checkpoint."""
        return time.monotonic() - self.saved >= 60 * self.settings.checkpoint_minutes

    @property
    def finished(self) -> bool:
        """Whether the recipe's last epoch is over."""
        return self.state.epoch == self.spec.recipe.epochs

    def save(self, finish: bool) -> None:
        """Write a checkpoint (rank 0 does) if losses and weights are finite; `finish`: wait for the file.

        A run that stands where its last checkpoint does writes none.
        """
        # First of all, also if nothing is written: else a checkpoint would be due again at once.
        self.saved, self.checkpoint_asked = time.monotonic(), False
        if self._saved_at == self.position:
            if finish:
                self.writer.finish()
            return
        # The checkpoint holds sums of losses that were read; unread ones would be lost with the process.
        self.read_losses()
        self.count_time()
        content = self.state_dict()
        where = f"{self.spec.id}, epoch {self.state.epoch + 1}"
        # On every process: the first alone would leave while the others wait for it.
        checkpoint.check_finite(content, where, self.state.step)
        if self.group.first:
            self.writer.start(self.folder.path, self.spec, content)
        if finish:
            self.writer.finish()
        self.saved, self._saved_at = time.monotonic(), self.position

    def resume(self, vote: Vote) -> None:
        """Continue from the newest good checkpoint, if there is one; then all processes hold the same."""
        # The same file on all processes, else they would train from different steps.
        content = checkpoint.newest(self.folder, self.spec, self.group, vote)
        if content is not None:
            self.load_state_dict(content)
            # After the state is loaded: whether the last epoch is over decides if the teacher still counts.
            vote.together(partial(self.check_teacher, content.get("origin") or {}))
            self._saved_at = self.position
            self.state.resumed_at.append(now())
            self.folder.note(f"resumed at epoch {self.state.epoch + 1}, step {self.state.step}")
        # Also without a checkpoint: all processes must have made the same random weights.
        vote.check_equal(self.trainable, what="weights")
        if content is not None:
            # The running statistics alone differ: each process continues with those of its own images.
            running_statistics.take(self.with_statistics, content["statistics"], self.group)
            vote.together(self.write_history)

    def write_history(self) -> None:
        """One line for each epoch so far, in the run's folder."""
        self.folder.write_history(self.state.history)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""
        return {
            "state": self.state.state_dict(),
            "trainable": self.trainable.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "statistics": running_statistics.of_processes(self.with_statistics),
            "optimisation": self.optimisation.state_dict(),
            "random": checkpoint.random_state(),
            "origin": self.origin,
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self.state = State.from_checkpoint(content["state"])
        self.trainable.load_state_dict(content["trainable"])
        if self.ema is not None:
            self.ema.load_state_dict(content["ema"])
        self.optimisation.load_state_dict(content["optimisation"])
        # Last: whatever draws before the first step must not count.
        checkpoint.restore_random_state(content["random"])

    def check_teacher(self, noted: dict[str, str | None]) -> None:
        """Refuse to go on with a teacher that was trained again since; what was noted first stays noted."""
        began, now_there = (origin.get("teacher_weights_sha256") for origin in (noted, self.origin))
        # A run whose last epoch is over reads its teacher no more: it is published with what it has read.
        if began and now_there and began != now_there and not self.finished:
            what = f"its teacher has other weights ({now_there[:10]}) than when it began ({began[:10]})"
            hint = "delete the run's folder to train it anew, or bring the teacher's former weights back"
            raise CheckpointError(what, where=self.spec.id, hint=hint)
        self.origin = {**self.origin, **noted} if self.folder.writes else {}

    @property
    def ema(self) -> nn.Module | None:
        """The EMA copy of the trained module."""
        # ModelEmaV3 wraps the copy; what a checkpoint and a score want is the module inside.
        copy = self.method.get_trainable_module(ema=True)
        return None if copy is None else copy.module

    @property
    def with_statistics(self) -> list[nn.Module]:
        """The modules that BatchNorm keeps running statistics in."""
        return [module for module in (self.trainable, self.ema) if module is not None]


class FusedView(nn.Module):
    """The fused model of a method as one network, images to logits: both others observe the images first."""

    def __init__(self, method: Method, teacher: Teacher) -> None:
        super().__init__()
        self.method, self.teacher = method, teacher

    def forward(self, images: Tensor) -> Tensor:
        # The teacher observes again: a test batch is another one than those of training.
        return self.method.fused_logits(images, self.teacher.observe_for([self.method.teacher], images)[0])


def digest_of_weights(method: Method) -> dict[str, str | None]:
    """The sha256 of what the student starts from and of the teacher's weights.

    If they come from a run, it is the `weights_sha256` of that run's metrics.
    """
    return {
        "initial_weights_sha256": state_sha256(method.student.network),
        "teacher_weights_sha256": state_sha256(method.teacher.network) if method.teacher else None,
    }
