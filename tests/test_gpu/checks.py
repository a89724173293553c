"""What must hold on a GPU, as functions of a device: the same checks are tried on the CPU."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fbt_core.measure import bench, training_memory
from fbt_core.measure.cost import read_yaml
from fbt_core.measure.training_cost import IMAGE_SIZE
from fbt_core.methods.base import Batch, Method
from fbt_core.provenance import usable_cores
from fbt_core.spec import ExecutionSettings
from fbt_core.teacher import Teacher
from tests.test_core.engine_runs import EVERYTHING, make_spec
from tests.test_core.methods_kit import CLASSES, IMAGES, make_batch, make_method

ROOT = Path(__file__).parents[2]
PRECISIONS = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOAT32_TOLERANCE = 2e-3
"""Relative difference of a loss term between GPU and CPU in float32, where kernels sum in another order."""
ROWS: list[tuple[str, ...]] = []
"""What was measured, for the table that `make test-gpu` ends with."""
MEMORY_BOUNDS = 0.9, 1.35
"""Peak memory by what is counted: the allocator rounds, and libraries of the GPU keep memory of their own."""
LAST_EPOCH = 1_000
"""Ramps of losses (FCFD, ReviewKD) have reached their end."""


@dataclass(frozen=True)
class StepResult:
    """One training step: its loss terms, the largest change of a weight, seconds."""

    terms: dict[str, float]
    moved: float
    seconds: float


def prepare(name: str, pair: tuple[str, str], device: torch.device, channels_last: bool = False) -> Method:
    """A method on tiny networks of a pair, on the device, in training mode at the end of its ramps."""
    torch.manual_seed(5)
    method = make_method(name, pair, labels=torch.arange(IMAGES) % CLASSES).to(device)
    if channels_last:
        method = method.to(memory_format=torch.channels_last)
    method.train()
    method.start_epoch(LAST_EPOCH)
    return method


def move(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.images.to(device), batch.target.to(device), batch.indices.to(device))


@contextmanager
def precision(kind: str, device: torch.device) -> Iterator[None]:
    """The arithmetic that a recipe's `precision` names, as the engine sets it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    try:
        with torch.autocast(device.type, dtype=PRECISIONS[kind], enabled=PRECISIONS[kind] is not None):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def forward(method: Method, batch: Batch, step: object | None = None) -> dict[str, object]:
    """Teacher and method on a batch, as the loop calls them; `step` may be the compiled method."""
    seen = None if method.teacher is None else Teacher(method.teacher).observe(batch.images)
    called = method if step is None else step  # a compiled method has no truth value
    return called(batch, seen)  # type: ignore[operator]


def train_step(
    method: Method, batch: Batch, kind: str, device: torch.device, step: object | None = None
) -> StepResult:
    """Forward, backward and a step of SGD; every draw follows from one seed."""
    weights = {name: p.detach().clone() for name, p in method.student.named_parameters()}
    optimizer = torch.optim.SGD([p for p in method.trainable_module.parameters() if p.requires_grad], lr=0.05)
    # Of torch's own first scale, 65536, a first step may overflow and be left out.
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0, enabled=kind == "float16")
    start = time.perf_counter()
    torch.manual_seed(7)
    with precision(kind, device):
        result = forward(method, batch, step)
    scaler.scale(result["loss"]).backward()  # type: ignore[arg-type]
    scaler.step(optimizer)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    moved = max(
        (p.detach() - weights[name]).abs().max().item() for name, p in method.student.named_parameters()
    )
    terms: dict[str, Tensor] = result["terms"]  # type: ignore[assignment]
    return StepResult({name: float(term) for name, term in terms.items()}, moved, seconds)


def check_finite_and_moving(result: StepResult, what: str) -> None:
    """All terms are finite, and the step has changed the student."""
    bad = {
        name: value for name, value in result.terms.items() if value != value or abs(value) == float("inf")
    }
    assert not bad, f"{what}: not finite: {bad}"
    assert 0 < result.moved < float("inf"), f"{what}: the largest change of a weight is {result.moved}"


def check_like(result: StepResult, expected: StepResult, tolerance: float, what: str) -> None:
    """The same terms within a relative tolerance (of the larger of the value and 0.01)."""
    assert result.terms.keys() == expected.terms.keys(), what
    for name, value in expected.terms.items():
        apart = abs(result.terms[name] - value) / max(abs(value), 0.01)
        assert apart <= tolerance, f"{what}: {name} is {result.terms[name]:.6g}, expected {value:.6g}"


def check_no_synchronisation(method: Method, batch: Batch) -> None:
    """A step waits for nothing: torch raises where the host would ask the device for a value."""
    optimizer = torch.optim.SGD([p for p in method.trainable_module.parameters() if p.requires_grad], lr=0.01)
    for attempt in range(2):  # the first step makes constants, and may wait for them
        if attempt == 1:
            torch.cuda.set_sync_debug_mode("error")
        try:
            result = forward(method, batch)
            result["loss"].backward()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def full_size(name: str) -> Method:
    """A method on the paper's own networks, Swin-T and ResNet18 with weights that are not trained."""
    entries = [read_yaml(ROOT / "config" / f"{kind}.yaml") for kind in ("architectures", "methods")]
    ((_, method),) = training_memory.pair_methods(*entries, "swin_t", "resnet18", [name])
    method.start_epoch(LAST_EPOCH)
    return training_memory.without_numbers(method)


def weight_bytes(method: Method) -> int:
    """What the weights and buffers of all of a method's networks take."""
    return sum(tensor.untyped_storage().nbytes() for tensor in (*method.parameters(), *method.buffers()))


def counted_peak_mb(method: Method, images: int, dtype: torch.dtype | None) -> float:
    """What the bill counts for a step: weights, and with fake tensors the most that lives beside them."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = training_memory.make_fake(copy.deepcopy(method), mode)
    return (weight_bytes(method) + training_memory.fake_step(fake, mode, images, dtype)) / 1e6


def measured_peak_mb(method: Method, images: int, kind: str, device: torch.device) -> float:
    """The most that a forward and backward pass holds on the device at one time, weights included."""
    method = method.to(device)
    rows = torch.arange(images, device=device)
    batch = Batch(torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE, device=device), rows % CLASSES, rows)
    before = [*method.parameters(), *method.buffers(), batch.images, batch.target, batch.indices]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # On a CPU, which does not say what it holds, the tensors are counted as they are made.
    with training_memory.LiveBytes(before) if device.type == "cpu" else nullcontext() as live:
        with precision(kind, device):
            loss = forward(method, batch)["loss"]
        loss.backward()  # type: ignore[attr-defined]
    return (torch.cuda.max_memory_allocated() if live is None else weight_bytes(method) + live.peak) / 1e6


def compare_peak(name: str, device: torch.device, images: int) -> None:
    """Peak memory of a full-size step is what `fbt plan` counts for it, and some for the GPU's libraries."""
    method = full_size(name)
    for kind in ("float32", "float16"):
        counted = counted_peak_mb(method, images, PRECISIONS[kind])
        measured = measured_peak_mb(copy.deepcopy(method), images, kind, device)
        ROWS.append((f"{name}, {kind}: peak / counted", f"{measured:.0f} / {counted:.0f} MB"))
        # Which operations a GPU does in float16 is torch's choice: that row is for reading.
        if kind == "float32":
            assert MEMORY_BOUNDS[0] <= measured / counted <= MEMORY_BOUNDS[1], ROWS[-1]


def compare_loaders_and_step(
    student: dict[str, object], device: torch.device, size: int, batch: int, seconds: float
) -> None:
    """Notes what a training on this machine waits for: images that its cores load, or steps."""
    changes = {"student": student, "dataset__loader": "image_folder", "dataset__image_size": size}
    settings = ExecutionSettings(device=device.type)
    spec = bench.with_batch(make_spec(EVERYTHING, **changes), batch, settings)
    step = bench.measure_step(spec, settings, seconds)
    assert step["device"] == device.type
    loaded, trained = bench.measure_loader(spec, settings)["rate"] * usable_cores(), step["images_per_second"]
    assert loaded > 0 and trained > 0
    what = f"{size} px, scratch: loaders of {usable_cores()} cores / a step"
    ROWS.append((what, f"{loaded:.0f} / {trained:.0f} images a second"))


def compare_settings(
    student: dict[str, object], device: torch.device, size: int, batch: int, seconds: float
) -> None:
    """Notes a step's seconds with each execution setting that rounds otherwise, beside those without."""
    before, spec = torch.backends.cudnn.benchmark, make_spec(student=student, dataset__image_size=size)
    try:
        for name in ("none", "channels_last", "cudnn_benchmark", "compile"):
            chosen = {} if name == "none" else {name: True}
            settings = ExecutionSettings.model_validate({"device": device.type} | chosen)
            torch.backends.cudnn.benchmark = settings.cudnn_benchmark
            step = bench.measure_step(bench.with_batch(spec, batch, settings), settings, seconds)
            ROWS.append((f"{size} px, scratch, {name}: a step", f"{step['step_seconds'] * 1000:.1f} ms"))
    finally:
        torch.backends.cudnn.benchmark = before


def twin(method: Method) -> Method:
    """A copy with the same weights."""
    return copy.deepcopy(method)


def fixed_batch(device: torch.device) -> Batch:
    """Eight fixed images."""
    return move(make_batch(count=8), device)
