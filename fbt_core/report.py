"""What a run shows while it trains: a line per epoch, progress.json, a bar; and at its end metrics.json."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from fbt_core.batch_division import compiles
from fbt_core.data.device_cache import keeps_on_device
from fbt_core.display import Display
from fbt_core.distributed import Group
from fbt_core.provenance import (
    compile_fallbacks,
    device_name,
    git_state,
    job,
    kernels,
    now,
    peak_memory_mb,
    versions,
)
from fbt_core.run_folder import RunFolder
from fbt_core.spec import ExecutionSettings, RunSpec
from fbt_core.state import State
from fbt_core.tracker import Tracker


class Report:
    """The files and the terminal that one run reports to; it reads the run's state and changes nothing."""

    def __init__(
        self, spec: RunSpec, settings: ExecutionSettings, group: Group, folder: RunFolder, steps: int
    ) -> None:
        self.spec, self.settings, self.group, self.folder, self.steps = spec, settings, group, folder, steps
        self.display = Display(steps, spec.recipe.epochs, shown=folder.writes)
        # Only the process that writes has a tracker: others would send every number once more.
        self.tracker = None
        if folder.writes and settings.tracker != "none":
            self.tracker = Tracker(settings.tracker, folder.path, folder.note)

    def start_epoch(self, state: State) -> None:
        """A fresh bar for the epoch, standing where it is taken up."""
        self.display.start_epoch(state.epoch, state.step)

    def progress(self, state: State, force: bool = False, word: str = "running") -> None:
        """Where the run stands, with the loss that was read last: the device is not waited for."""
        self.display.move(state.step, state.losses.latest)
        self.folder.write_progress(self.describe_progress(state, word), force)

    def describe_progress(self, state: State, word: str) -> dict[str, Any]:
        """The content of progress.json."""
        epochs = self.spec.recipe.epochs
        done = state.epoch * self.steps + state.step
        # Of this run's training alone: tests and waiting would make the rate depend on their number.
        rate = done * self.spec.recipe.batch_size / (state.training_seconds + state.epoch_seconds or 1.0)
        # All seconds here: what is left to wait includes tests and checkpoints.
        left = state.seconds / done * (epochs * self.steps - done) if done else None
        return {
            "epoch": min(state.epoch + 1, epochs),
            "epochs": epochs,
            "step": state.step,
            "steps": self.steps,
            # JSON has no NaN, and strict readers refuse the file.
            "loss": None if math.isnan(state.losses.latest) else state.losses.latest,
            "images_per_second": round(rate, 1),
            "best_top1": state.best["top1"] if state.best else None,
            "seconds_left": None if left is None else round(left, 1),
            "state": word,
            "attempt": len(state.resumed_at),
            "error": None,
        }

    def epoch(
        self,
        state: State,
        rate: float,
        score: dict[str, Any] | None,
        ema: dict[str, Any] | None,
        fused: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """The line of history of an epoch that has just ended; without scores if it was not evaluated."""
        means = state.losses.means()
        images = self.steps * self.spec.recipe.batch_size
        seconds = state.epoch_seconds
        return {
            "epoch": state.epoch + 1,
            "lr": rate,
            "loss": means.pop("loss"),
            "terms": means,
            "top1": score["top1"] if score else None,
            "top5": score["top5"] if score else None,
            "top1_ema": ema["top1"] if ema else None,
            "top1_fused": fused["top1"] if fused else None,
            "test_loss": score["loss"] if score else None,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 1) if seconds else None,
            "finished": now(),
            "attempt": len(state.resumed_at),
        }

    def end_epoch(self, line: dict[str, Any]) -> None:
        """The line on the terminal, in log.txt and to the tracker."""
        self.display.end_epoch()
        if self.tracker is not None:
            self.tracker.epoch(line)
        text = f"epoch {line['epoch']}/{self.spec.recipe.epochs}  loss {line['loss']:.4f}  "
        if line["top1"] is None:
            text += "not evaluated"
        else:
            text += f"top-1 {line['top1']:.2f} %"
        text += f"  {line['images_per_second']} images/s  lr {line['lr']:.2e}"
        self.folder.note(text)

    def close(self, state: State) -> None:
        """The run is done and published."""
        self.progress(state, force=True, word="done")
        if self.tracker is not None:
            self.tracker.close()

    def metrics(self, state: State, parameters: int) -> dict[str, Any]:
        """The content of metrics.json, but the digests of the weights; `parameters` are the student's."""
        last = state.history[-1]
        # Steps that were made, not the data set's size: the last batch of an epoch may be dropped.
        images = self.steps * self.spec.recipe.batch_size * self.spec.recipe.epochs
        return {
            "run": self.spec.id,
            "spec": self.spec.model_dump(mode="json"),
            "best": state.best,
            "last": {"epoch": last["epoch"], "top1": last["top1"], "top5": last["top5"]},
            "ema": state.best_ema,
            "fused_top1": last["top1_fused"],
            "teacher_top1": state.teacher_top1,
            "history": state.history,
            "seconds": round(state.seconds, 3),
            "images_per_second": round(images / state.training_seconds, 1),
            "peak_memory_mb": peak_memory_mb(self.group.device),
            "parameters": parameters,
            "execution": self.execution(state),
            "provenance": {
                **git_state(),
                "started": state.started,
                "finished": now(),
                "versions": versions(),
            },
        }

    def execution(self, state: State) -> dict[str, Any]:
        """Where and how the run was executed; none of it is in the spec."""
        return {
            "device": self.group.device.type,
            "device_name": device_name(self.group.device),
            "gpus": self.group.gpus,
            "gpu_hours": round(state.gpu_seconds / 3600, 4),
            "pack": state.pack,
            "pack_too_large": state.too_large,
            "world_size": self.group.world,
            "threads": torch.get_num_threads(),
            "workers": self.settings.workers,
            "gradient_accumulation": self.settings.gradient_accumulation,
            "device_cache": keeps_on_device(self.spec, self.settings),
            "channels_last": self.settings.channels_last,
            "compile": compiles(self.spec.method.name, self.settings),
            "compile_fallbacks": compile_fallbacks(),
            **kernels(self.group.device),
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            **job(),
            "resumed_at": state.resumed_at,
        }


def gpus_counted(group: Group) -> int:
    """GPUs that a run's hours are counted for: those its job reserved, else those it uses."""
    reserved = job()["gpus_reserved"]
    return group.gpus if reserved is None else int(reserved)
