"""The training loop: epochs of steps, an evaluation after each, a checkpoint whenever one is due."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from fbt_core import checkpoint, distributed, running_statistics
from fbt_core.data.feed import Feed, Preparation, Raw
from fbt_core.data.order import STEP, BatchKey, Order, seed_everything, test_keys, test_rounds
from fbt_core.display import Display
from fbt_core.distributed import Vote, Worker
from fbt_core.errors import Interrupted, NonFiniteLoss
from fbt_core.loss_log import LossLog
from fbt_core.methods.base import Batch, Method
from fbt_core.normalisation import set_normalisation_batch
from fbt_core.optimisation import Optimisation
from fbt_core.provenance import now
from fbt_core.run_folder import RunFolder
from fbt_core.spec import ExecutionSettings, RunSpec
from fbt_core.teacher import Teacher

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


@dataclass
class Position:
    """How far a run is: epochs finished, steps of the present one, optimiser updates in all."""

    epoch: int = 0
    step: int = 0
    updates: int = 0


@dataclass
class TrainingLog:
    """What a run has shown so far; `seconds` and `images` count all attempts."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    best_ema: dict[str, Any] | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    started: str = field(default_factory=now)
    resumed_at: list[str] = field(default_factory=list)
    seconds: float = 0.0
    training_seconds: float = 0.0
    epoch_seconds: float = 0.0


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
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


class Training:
    """One run in progress: everything the loop reads and changes."""

    def __init__(
        self,
        spec: RunSpec,
        settings: ExecutionSettings,
        worker: Worker,
        method: Method,
        feeds: tuple[Feed, Feed],
        folder: RunFolder,
        stop: StopRequest,
    ) -> None:
        self.spec, self.settings, self.worker, self.folder, self.stop = spec, settings, worker, folder, stop
        recipe, dataset, student = spec.recipe, spec.dataset, spec.student
        self.method, (self.train_feed, self.test_feed) = method, feeds
        self.order = Order(dataset.train_images, recipe.batch_size, spec.seed, worker.rank, worker.world)
        self.preparation = Preparation(
            recipe, dataset.classes, student.mean, student.std, worker.device, settings.channels_last
        )
        self.trainable = method.trainable_module
        self.optimisation = Optimisation(self.trainable, recipe, self.order.steps, worker.device)
        if recipe.ema_decay is not None:
            method.setup_ema(recipe.ema_decay)
        accumulation = settings.gradient_accumulation
        distributed.share_of_batch(recipe, worker, accumulation)
        distributed.check_pairs(recipe, worker)
        distributed.check_accumulation(method, recipe, accumulation)
        method.adapt_normalisation(lambda m: set_normalisation_batch(m, recipe, worker, accumulation))
        self.trainable = method.trainable_module
        self.teacher = Teacher.of(spec, method.teacher)
        self.step_forward = distributed.wrap(method, settings, worker)
        self.vote = distributed.Vote()
        self.position, self.record, self.losses = Position(), TrainingLog(), LossLog()
        shown = folder.writes, settings.tensorboard
        self.display = Display(folder.path, self.order.steps, recipe.epochs, *shown)
        self._saved = self._tick = time.monotonic()

    # -- the loop ------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train from the present position to the recipe's last epoch."""
        self._tick = time.monotonic()
        while self.position.epoch < self.spec.recipe.epochs:
            self.train_epoch()
            self.finish_epoch()
            self.save()
            self.folder.write_history(self.record.history)
            self.stop_if_voted(self.vote.ask(self.own_vote()))

    def train_epoch(self) -> None:
        """The remaining steps of the present epoch."""
        self.method.train()
        self.method.start_epoch(self.position.epoch)
        keys = self.order.keys(self.position.epoch, self.position.step)
        self.display.start_epoch(self.position.epoch, self.position.step)
        for key, raw in zip(keys, self.train_feed(keys), strict=True):
            self.train_step(key, raw)
            if self.position.step % self.settings.log_steps == 0:
                self.read_losses()
            self.report_progress()
            self.act_on(self.vote.ask(self.own_vote()))

    def train_step(self, key: BatchKey, raw: Raw) -> None:
        """One update of the weights; every random draw in it follows from seed, epoch and step."""
        seed_everything(self.spec.seed, STEP, key.epoch, key.step, process=self.worker.rank)
        batch = self.preparation.train(raw, key.rows)
        results = []
        for part in parts_of(batch, self.settings.gradient_accumulation):
            with self.optimisation.autocast():
                observed = self.teacher.observe(part.images) if self.teacher else None
                results.append(self.step_forward(part, observed))
            self.optimisation.backward(results[-1]["loss"] / self.settings.gradient_accumulation)
        self.losses.add(results)
        self.position.step += 1
        self.position.updates += 1
        self.optimisation.step(self.position.updates)
        self.method.update_ema(step=self.position.updates)

    def finish_epoch(self) -> None:
        """Evaluate, note the epoch, move the schedule, stand at the next epoch's first step."""
        self.read_losses()
        self.record.epoch_seconds += self.tick()
        running_statistics.average(self.with_statistics)
        score = self.evaluate(self.method.get_eval_model())
        ema = self.evaluate(self.method.get_eval_model(ema=True)) if self.method.has_ema() else None
        self.note_epoch(score, ema)
        self.position.epoch, self.position.step = self.position.epoch + 1, 0
        self.optimisation.schedule.step(self.position.epoch)
        self.losses = LossLog(self.losses.latest)

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Top-1 and top-5 (percent) and cross-entropy on the test split, every image counted once."""
        network.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=self.worker.device)
        division = self.spec.dataset.test_images, self.test_batch
        feed = self.test_feed(test_keys(*division, self.worker.rank, self.worker.world))
        for _, raw in zip_longest(range(test_rounds(*division, self.worker.world)), feed):
            if raw is not None:  # a process whose share has ended votes with the others all the same
                sums += self.test_batch_counts(network, raw)
            self.save_and_stop_if_voted(self.vote.ask(self.own_vote()))
        first, fifth, loss, images = distributed.total(sums).tolist()
        self.check_test_loss(loss)
        return {"top1": 100 * first / images, "top5": 100 * fifth / images, "loss": loss / images}

    def test_batch_counts(self, network: nn.Module, raw: Raw) -> Tensor:
        """What `count_correct` says of one test batch."""
        with self.optimisation.autocast():
            logits = network(self.preparation.images(raw))
        return count_correct(logits.float(), raw.labels.to(self.worker.device))

    @property
    def test_batch(self) -> int:
        """Images per test batch and process."""
        return max(1, self.spec.recipe.batch_size // self.worker.world)

    # -- what is written down ------------------------------------------------------------------------------

    def note_epoch(self, score: dict[str, float], ema: dict[str, float] | None) -> None:
        """A line of history; the best epoch so far (the earliest of equals) keeps its weights."""
        record, epoch = self.record, self.position.epoch + 1
        means = self.losses.means()
        images = self.order.steps * self.order.batch
        record.training_seconds += record.epoch_seconds
        line = {
            "epoch": epoch,
            "lr": self.optimisation.learning_rate,
            "loss": means.pop("loss"),
            "terms": means,
            "top1": score["top1"],
            "top5": score["top5"],
            "top1_ema": ema["top1"] if ema else None,
            "test_loss": score["loss"],
            "seconds": round(record.epoch_seconds, 3),
            "images_per_second": round(images / record.epoch_seconds, 1) if record.epoch_seconds else None,
            "finished": now(),
            "attempt": len(record.resumed_at),
        }
        record.history.append(line)
        record.epoch_seconds = 0.0
        if record.best is None or score["top1"] > record.best["top1"]:
            record.best = {"epoch": epoch, "top1": score["top1"], "top5": score["top5"]}
            record.best_weights = self.student_weights()
        if ema and (record.best_ema is None or ema["top1"] > record.best_ema["top1"]):
            record.best_ema = {"epoch": epoch, "top1": ema["top1"], "top5": ema["top5"]}
        self.tick()
        self.display.end_epoch(line)
        self.folder.note(describe(line, self.spec.recipe.epochs))
        self.report_progress(force=True)

    def student_weights(self) -> dict[str, Tensor]:
        """A copy of the bare network's weights, in main memory."""
        state = self.method.student.network.state_dict()
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}

    def tick(self) -> float:
        """Seconds since the last tick, added to the run's total."""
        before, self._tick = self._tick, time.monotonic()
        self.record.seconds += self._tick - before
        return self._tick - before

    def read_losses(self) -> None:
        """Fetch the losses from the device; raises NonFiniteLoss."""
        where = f"{self.spec.id}, epoch {self.position.epoch + 1}"
        self.losses.read(where, self.optimisation.learning_rate)

    def check_test_loss(self, loss: float) -> None:
        """Raises NonFiniteLoss before such a number reaches the history or a checkpoint."""
        if math.isfinite(loss):
            return
        what = f"the loss on the test images is not finite ({loss}), epoch {self.position.epoch + 1}"
        raise NonFiniteLoss(what, self.spec.id)

    def report_progress(self, force: bool = False, state: str = "running") -> None:
        """Tell where the run stands, with the loss that was read last: the device is not waited for."""
        self.record.epoch_seconds += self.tick() if state == "running" and not force else 0.0
        self.display.move(self.position.step, self.losses.latest)
        self.folder.write_progress(self.progress(state), force)

    def progress(self, state: str) -> dict[str, Any]:
        """The content of progress.json."""
        record, steps, epochs = self.record, self.order.steps, self.spec.recipe.epochs
        done = self.position.epoch * steps + self.position.step
        rate = done * self.order.batch / (record.training_seconds + record.epoch_seconds or 1.0)
        left = record.seconds / done * (epochs * steps - done) if done else None
        return {
            "epoch": min(self.position.epoch + 1, epochs),
            "epochs": epochs,
            "step": self.position.step,
            "steps": steps,
            "loss": None if self.losses.latest != self.losses.latest else self.losses.latest,
            "images_per_second": round(rate, 1),
            "best_top1": record.best["top1"] if record.best else None,
            "seconds_left": None if left is None else round(left, 1),
            "state": state,
            "attempt": len(record.resumed_at),
            "error": None,
        }

    # -- checkpoints ---------------------------------------------------------------------------------------

    def own_vote(self) -> int:
        """What this process wants after a step: to stop after a signal, a checkpoint every few minutes."""
        if self.stop.signal:
            return Vote.STOP + self.stop.signal
        due = time.monotonic() - self._saved >= 60 * self.settings.checkpoint_minutes
        return Vote.SAVE if due and self.worker.first else Vote.NOTHING

    def act_on(self, agreed: int) -> None:
        """Do what the processes agreed on: save the state, and stop if one of them was asked to."""
        if agreed == Vote.NOTHING:
            return
        self.save()
        self.stop_if_voted(agreed)

    def save_and_stop_if_voted(self, agreed: int) -> None:
        """Between the batches of an evaluation only a signal counts."""
        if agreed >= Vote.STOP:
            self.act_on(agreed)

    def stop_if_voted(self, agreed: int) -> None:
        """Stop if a process got a signal; the state is saved, the same command continues the run."""
        if agreed < Vote.STOP:
            return
        name, position = signal.Signals(agreed - Vote.STOP).name, self.position
        raise Interrupted(f"{name}: state saved at epoch {position.epoch + 1}, step {position.step}")

    def save(self) -> None:
        """Write a checkpoint if losses and weights are finite; no process goes on before it is there."""
        self.read_losses()
        self.record.epoch_seconds += self.tick()
        state = self.state_dict()
        checkpoint.check_finite(state, f"{self.spec.id}, epoch {self.position.epoch + 1}")
        if self.worker.first:
            checkpoint.save(self.folder.path, self.spec, state)
        self.vote.wait()
        self._saved = time.monotonic()

    @property
    def ema(self) -> nn.Module | None:
        """The EMA copy of the trained module."""
        copy = self.method.get_trainable_module(ema=True)
        return None if copy is None else copy.module

    @property
    def with_statistics(self) -> list[nn.Module]:
        """The modules that BatchNorm keeps running statistics in."""
        return [module for module in (self.trainable, self.ema) if module is not None]

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""
        ema = self.ema
        return {
            "position": asdict(self.position),
            "record": {name: getattr(self.record, name) for name in TrainingLog.__dataclass_fields__},
            "losses": self.losses.state_dict(),
            "trainable": self.trainable.state_dict(),
            "ema": ema.state_dict() if ema is not None else None,
            "statistics": running_statistics.of_processes(self.with_statistics),
            "optimisation": self.optimisation.state_dict(),
            "random": checkpoint.random_state(),
        }

    def resume(self) -> None:
        """Continue from the newest good checkpoint, if there is one."""
        state = self.newest_checkpoint()
        if state is None:
            return
        self.load_state_dict(state)
        self.record.resumed_at.append(now())
        self.folder.note(f"resumed at epoch {self.position.epoch + 1}, step {self.position.step}")
        self.folder.write_history(self.record.history)

    def newest_checkpoint(self) -> dict[str, Any] | None:
        """The state to continue from: the first process chooses its file, the others read the same one."""
        chosen, state, faults = None, None, []
        if self.worker.first:
            chosen, state, faults = checkpoint.choose(self.folder.path, self.spec)
        for fault in faults:
            self.folder.note(f"{fault}; using the checkpoint before it")
        name = self.vote.first_says(chosen)
        return checkpoint.read(self.folder.path / name, self.spec) if name and state is None else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self.position, self.record = Position(**state["position"]), TrainingLog(**state["record"])
        self.losses.load_state_dict(state["losses"])
        self.trainable.load_state_dict(state["trainable"])
        if state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        running_statistics.take(self.with_statistics, state["statistics"], self.worker)
        self.optimisation.load_state_dict(state["optimisation"])
        checkpoint.restore_random_state(state["random"])


def parts_of(batch: Batch, parts: int) -> list[Batch]:
    """The batch in equal parts for gradient accumulation."""
    if parts == 1:
        return [batch]
    pieces = zip(
        batch.images.chunk(parts), batch.target.chunk(parts), batch.indices.chunk(parts), strict=True
    )
    return [Batch(*piece) for piece in pieces]


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Images right at first, images right among five, sum of cross-entropies, number of images."""
    top = logits.topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum").double()
    return torch.stack([top[:, 0].sum().double(), top.sum().double(), loss, loss.new_tensor(len(labels))])


def describe(line: dict[str, Any], epochs: int) -> str:
    """A history line for people."""
    text = f"epoch {line['epoch']}/{epochs}  loss {line['loss']:.4f}  top-1 {line['top1']:.2f} %"
    return f"{text}  {line['images_per_second']} images/s  lr {line['lr']:.2e}"
