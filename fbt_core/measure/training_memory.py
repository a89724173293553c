"""Count the memory that a training step takes of a GPU, without one: by method, pair and precision.

The full-size networks do one step with fake tensors (shapes without numbers), and every tensor that lives at
the same time is counted, besides weights and their gradients: what is kept per image for the backward pass.
Not counted: what the GPU's libraries take for themselves, and free memory in pieces too small to use.

    python -m fbt_core.measure.training_memory --out FILE.json      # 21 pairs x 4 methods: minutes
"""

from __future__ import annotations

import argparse
import copy
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fbt_core.errors import UserError
from fbt_core.files import make_folder, write_json
from fbt_core.measure.cost import Entries, Report, provenance, read_yaml
from fbt_core.measure.training_cost import (
    IMAGE_SIZE,
    build_staged,
    default_parameters,
    full_size_context,
    table_pairs,
)
from fbt_core.methods.base import Batch, Method
from fbt_core.methods.fcfd import FCFD
from fbt_core.methods.registry import build_method
from fbt_core.spec import MethodSpec
from fbt_core.teacher import Teacher

MEASURED = ("kd", "fbt", "fcfd", "reviewkd")
"""Every other method keeps little more than KD, or (FitNet, OFA, SimKD) less than FBT."""
PRECISIONS = {"float32": None, "half": torch.float16}
IMAGES = 64  # so many that gradients, which are there at the peak in part, hardly count


class LiveBytes(TorchDispatchMode):
    """The bytes of all tensors made inside it that live at the same time, and their peak.

    Those that were there before count nothing, nor do views of them.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in before}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # A result may be one tensor, a list or nothing.
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        # After every operation: what is freed a moment later counts in the peak all the same.
        self.peak = max(self.peak, self.live)
        return result

    def _count(self, storage: Any) -> None:
        """Views share a storage, which counts once and until its last tensor is gone."""
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def make_fake(method: Method, mode: FakeTensorMode, device: str = "cpu") -> Method:
    """Replace weights and buffers of a method by fake ones on a device, which need not exist."""
    # By identity: a view of the teacher shares its parameters, which must stay one.
    made = dict[int, nn.Parameter]()

    def fake(tensor: Tensor) -> Tensor:
        with mode:
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)

    for module in method.modules():
        for name, weight in module._parameters.items():
            if weight is not None:  # networks may share one
                kept = made.setdefault(id(weight), nn.Parameter(fake(weight), weight.requires_grad))
                module._parameters[name] = kept
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else fake(buffer)
    return without_numbers(method)


# Fake tensors have no numbers, so whatever asks for one must be answered beforehand.
def without_numbers(method: Method) -> Method:
    """Decide beforehand what a step would read from tensors: FCFD's paths."""
    if isinstance(method, FCFD):
        drawn = method._candidates()[: method.settings.paths]
        method._draw_paths = lambda: drawn  # type: ignore[method-assign]
    return method


def fake_step(
    method: Method, mode: FakeTensorMode, images: int, precision: torch.dtype | None, size: int = IMAGE_SIZE
) -> int:
    """Peak bytes, besides the weights, of a forward and backward pass of so many images."""
    with mode, next(method.parameters()).device:
        pixels = torch.empty(images, 3, size, size)
        target, indices = (torch.zeros(images, dtype=torch.int64) for _ in range(2))
        batch = Batch(pixels, target, indices)
    before = [*method.parameters(), *method.buffers(), pixels, target, indices]
    with mode, LiveBytes(before) as counter:
        with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
            seen = Teacher(method.teacher).observe(pixels) if method.teacher else None
            result = method(batch, seen)
        result["loss"].backward()
    return counter.peak


def count_method(method: Method) -> dict[str, int]:
    """Trainable and frozen weights, and bytes per image in each precision."""
    every = sum(tensor.numel() for tensor in method.parameters())
    trainable = sum(tensor.numel() for tensor in method.parameters() if tensor.requires_grad)
    # Counted on real tensors, before they become fake ones.
    counts = {"trainable": trainable, "frozen": every - trainable}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    method = make_fake(method, mode)
    for name, precision in PRECISIONS.items():
        # Per image, from so many that rounding does not show.
        counts[name] = fake_step(method, mode, IMAGES, precision) // IMAGES
        method.zero_grad(set_to_none=True)
    return counts


def pair_methods(
    architectures: Entries, methods: Entries, teacher: str, student: str, names: Sequence[str] = MEASURED
) -> Iterator[tuple[str, Method]]:
    """Methods with their default parameters on a pair of full-size networks, in training mode."""
    networks = [build_staged(architectures, name) for name in (student, teacher)]
    context = full_size_context(architectures[student]["family"], architectures[teacher]["family"])
    for name in names:
        spec = MethodSpec(name=name, parameters=default_parameters(methods[name]), revision=1)
        # A copy of both: methods freeze the teacher and may change what the student keeps.
        learner, source = copy.deepcopy(networks)
        yield name, build_method(spec, learner, source, context).train()


def count_pair(architectures: Entries, methods: Entries, teacher: str, student: str) -> dict[str, Any]:
    """The counts of each method of MEASURED on a pair of full-size networks."""
    pair = pair_methods(architectures, methods, teacher, student)
    return {name: count_method(method) for name, method in pair}


def measure(config: Path, pairs: Sequence[tuple[str, str]]) -> Iterator[Report]:
    """Memory by method and pair, with each further pair."""
    architectures, methods = read_yaml(config / "architectures.yaml"), read_yaml(config / "methods.yaml")
    report: Report = {}
    for number, (teacher, student) in enumerate(pairs, start=1):
        print(f"{number}/{len(pairs)} {teacher} -> {student}", file=sys.stderr, flush=True)
        for method, counts in count_pair(architectures, methods, teacher, student).items():
            report.setdefault(method, {})[f"{teacher}__{student}"] = counts
        yield report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the counts as JSON; exit code 1 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m fbt_core.measure.training_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--config", type=Path, default=Path("config"), help="folder of the configuration")
    options = parser.parse_args(arguments)
    try:
        make_folder(options.out.parent)
        for report in measure(options.config, table_pairs(options.config / "tables")):
            # Written after each pair: minutes of counting survive an interruption.
            write_json(options.out, provenance("fbt_core.measure.training_memory") | report)
    except UserError as error:
        print(f"fbt_core.measure.training_memory: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
