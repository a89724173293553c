"""One run: a spec in, metrics.json and weights.safetensors out.

    python -m fbt_core.run --spec JSON --settings JSON --runs results/smoke/runs

Exit codes: 0 done, 1 an error the user can fix, 75 interrupted, state saved (run it again to continue).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from fbt_core import distributed
from fbt_core.data.feed import Feed, explaining_loaders
from fbt_core.data.load import load_splits
from fbt_core.data.order import seed_everything
from fbt_core.data.splits import Split, blank_images
from fbt_core.data.transforms import test_pipeline, training_pipeline
from fbt_core.distributed import Worker
from fbt_core.errors import Interrupted, UserError
from fbt_core.files import make_folder
from fbt_core.loop import StopRequest, Training
from fbt_core.methods.base import Context, Method
from fbt_core.methods.registry import build_method
from fbt_core.provenance import device_name, git_state, job, kernels, now, peak_memory_mb, versions
from fbt_core.run_folder import RunFolder
from fbt_core.spec import ExecutionSettings, NetworkSpec, RunSpec, parse_spec
from fbt_core.staged import StagedModel, build_network, stage
from fbt_core.weights import WeightSources, load_weights, state_sha256

MEMORY = "use more GPUs, gradient_accumulation or precision bfloat16; the last checkpoint is kept"
BUILD = 0  # the stream of random numbers that initial weights come from


def train(spec: RunSpec, settings: ExecutionSettings, runs: Path, stop: StopRequest) -> None:
    """Train one run to its end, or to where a signal stops it; a complete run is left alone."""
    worker = distributed.start(settings)
    folder = RunFolder(runs, spec, writes=worker.first)
    try:
        with explaining_loaders():
            train_in(folder, spec, settings, runs, worker, stop)
    except Exception as error:
        explained = explain(error)
        if worker.first if isinstance(explained, Interrupted) else distributed.PEERS.first_to_fail():
            folder.close(explained)
        raise


def train_in(
    folder: RunFolder,
    spec: RunSpec,
    settings: ExecutionSettings,
    runs: Path,
    worker: Worker,
    stop: StopRequest,
) -> None:
    """The run itself, with its files in this folder."""
    splits = load_splits(spec.dataset, settings.data_roots)
    method = make_method(spec, settings, runs, splits[0]).to(worker.device)
    if settings.channels_last:
        method = method.to(memory_format=torch.channels_last)
    folder.open()
    if folder.complete:
        folder.note(f"{spec.id} is complete; delete its folder to train it again")
        return
    if folder.writes and (problem := blank_images(splits[0])):
        folder.note(f"warning: {spec.dataset.name}, training images: {problem}")
    origin = digest_of_weights(method) if folder.writes else {}
    feeds = make_feeds(spec, settings, splits, worker)
    training = Training(spec, settings, worker, method, feeds, folder, stop)
    training.resume()
    training.fit()
    folder.publish(training.record.best_weights, {**make_metrics(training), **origin})
    training.report_progress(force=True, state="done")


def explain(error: Exception) -> Exception:
    """The user's error behind a full GPU or a process that is gone; any other error as it is."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return UserError(f"the GPU's memory is full ({str(error).split('. ')[0]})", hint=MEMORY)
    return distributed.explain(error)


def make_method(spec: RunSpec, settings: ExecutionSettings, runs: Path, split: Split) -> Method:
    """Student, teacher and method; their random weights follow from the run's seed."""
    sources = WeightSources(runs, settings.weight_files)
    split_rule = str(spec.method.parameters.get("split", "even"))
    student = make_network(spec.student, spec, sources, split_rule, in_training=True)
    teacher = make_network(spec.teacher, spec, sources, split_rule) if spec.teacher else None
    seed_everything(spec.seed, BUILD, 1)
    return build_method(spec.method, student, teacher, Context.of(spec, split.labels))


def make_network(
    network: NetworkSpec, spec: RunSpec, sources: WeightSources, split: str, in_training: bool = False
) -> StagedModel:
    """A network in its role with the weights its spec names, cut into stages."""
    seed_everything(spec.seed, BUILD, 0)
    built = build_network(network, spec.dataset.classes, spec.dataset.image_size)
    load_weights(built, network, sources, new_head=in_training)
    return stage(built, spec.dataset.image_size, split)


def digest_of_weights(method: Method) -> dict[str, str | None]:
    """The sha256 of what the student starts from and of the teacher's weights.

    Where they come from a run, it is the `weights_sha256` of that run's metrics.
    """
    return {
        "initial_weights_sha256": state_sha256(method.student.network),
        "teacher_weights_sha256": state_sha256(method.teacher.network) if method.teacher else None,
    }


def make_feeds(
    spec: RunSpec, settings: ExecutionSettings, splits: tuple[Split, Split], worker: Worker
) -> tuple[Feed, Feed]:
    """The streams of training and test batches."""
    train_split, test_split = splits
    training = training_pipeline(train_split, spec.dataset, spec.recipe.augmentation, spec.seed)
    testing = test_pipeline(test_split, spec.dataset, spec.test_crop)
    return (
        Feed(train_split, training, settings.workers, worker.device),
        Feed(test_split, testing, settings.workers, worker.device),
    )


def make_metrics(training: Training) -> dict[str, Any]:
    """The content of metrics.json, but the digest of the weights."""
    spec, record = training.spec, training.record
    last = record.history[-1]
    images = training.order.steps * training.order.batch * spec.recipe.epochs
    network = training.method.student.network
    return {
        "run": spec.id,
        "spec": spec.model_dump(mode="json"),
        "best": record.best,
        "last": {"epoch": last["epoch"], "top1": last["top1"], "top5": last["top5"]},
        "ema": record.best_ema,
        "history": record.history,
        "seconds": round(record.seconds, 3),
        "images_per_second": round(images / record.training_seconds, 1),
        "peak_memory_mb": peak_memory_mb(training.worker.device),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "execution": execution(training),
        "provenance": {**git_state(), "started": record.started, "finished": now(), "versions": versions()},
    }


def execution(training: Training) -> dict[str, Any]:
    """Where and how the run was executed; none of it is in the spec."""
    worker, record = training.worker, training.record
    gpus = worker.world if worker.device.type == "cuda" else 0
    reserved = job()["gpus_reserved"]
    return {
        "device": worker.device.type,
        "device_name": device_name(worker.device),
        "gpus": gpus,
        "gpu_hours": round((gpus if reserved is None else reserved) * record.seconds / 3600, 4),
        "world_size": worker.world,
        "threads": torch.get_num_threads(),
        "workers": training.settings.workers,
        "gradient_accumulation": training.settings.gradient_accumulation,
        "channels_last": training.settings.channels_last,
        "compile": training.settings.compile,
        **kernels(worker.device),
        "cuda_visible_devices": distributed.visible_devices(),
        **job(),
        "resumed_at": record.resumed_at,
    }


def read_arguments(arguments: list[str] | None) -> tuple[RunSpec, ExecutionSettings, Path]:
    """The command line, checked; every fault of a JSON text in one line."""
    parser = argparse.ArgumentParser(prog="python -m fbt_core.run", description=__doc__.splitlines()[0])
    parser.add_argument("--spec", required=True, help="a RunSpec as JSON, or a file that holds one")
    parser.add_argument(
        "--settings", default="{}", help="ExecutionSettings as JSON, or a file that holds them"
    )
    parser.add_argument(
        "--runs", type=Path, required=True, help="the folder of all runs, e.g. results/smoke/runs"
    )
    chosen = parser.parse_args(arguments)
    try:
        spec = parse_spec(_text(chosen.spec))
        settings = ExecutionSettings.model_validate_json(_text(chosen.settings))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}" for fault in error.errors()]
        raise UserError(", ".join(faults), where=error.title) from None
    return spec, settings, chosen.runs


def _text(value: str) -> str:
    if value.lstrip().startswith("{"):
        return value
    try:
        return Path(value).read_text()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=value[:200]) from None


def main(arguments: list[str] | None = None) -> int:
    stop = StopRequest()
    try:
        with stop.listening():
            distributed.PEERS.meet()
            spec, settings, runs = read_arguments(arguments)
            make_folder(runs)
            train(spec, settings, runs, stop)
    except Interrupted as error:
        if distributed.rank() == 0:
            print(f"interrupted: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        explained = explain(error)
        if distributed.PEERS.first_to_fail():  # the others would only report that it is gone
            if not isinstance(explained, UserError):
                raise
            print(f"error: {explained}", file=sys.stderr)
        return UserError.exit_code
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
