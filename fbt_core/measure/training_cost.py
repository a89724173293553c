"""Count the MACs that one training image costs a method on a pair: forward, backward and all extras.

Measured, not estimated: the full-size networks do one real step of two images on the CPU (the counts are the
same on any device), and every matrix product and convolution is counted. Not counted, because cheap: norms,
activations, element-wise losses, the optimiser.

    python -m fbt_core.measure.training_cost --out FILE.json      # 21 pairs x 8 methods: about 12 minutes
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fbt_core.errors import UserError
from fbt_core.files import make_folder, write_json
from fbt_core.measure.cost import Entries, Report, network_spec, provenance, read_yaml
from fbt_core.methods.base import Batch, Context, Method
from fbt_core.methods.registry import build_method
from fbt_core.spec import MethodSpec
from fbt_core.staged import StagedModel, build_network, stage
from fbt_core.teacher import Teacher

IMAGE_SIZE, CLASSES, TRAIN_IMAGES = 224, 1000, 5000
BATCH = 2  # the least that BatchNorm takes
MEASURED = ("kd", "fitnet", "ofa", "reviewkd", "simkd", "fbt", "pat")
"""Counted as they are. Every other method but FCFD compares logits or pooled vectors only and costs what KD
costs (within 0.1 %; CRD's products with its memory banks, 4 * width * training images, come on top)."""
FCFD_PATHS = 6  # it switches networks after stage 1, 2 or 3, in either direction


class MacCounter(TorchDispatchMode):
    """Counts the matrix products and convolutions that run inside it, by PyTorch's formulas but one.

    FlopCounterMode would count a grouped convolution's backward as that of a full one (MobileNet's depthwise
    layers: three times the true cost of a step) and stops at SimKD's use of the teacher's classifier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Run first: the formulas need the shape of the result.
        result = func(*args, **(kwargs or {}))
        # The one operation that PyTorch's formula counts wrongly for groups.
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            self.macs += convolution_backward_macs(*args, **(kwargs or {}))
        elif formula := flop_registry.get(func.overloadpacket):
            self.macs += formula(*args, **(kwargs or {}), out_val=result) // 2
        return result


def convolution_backward_macs(gradient: Tensor, taken: Tensor, weight: Tensor, *options: Any) -> int:
    """The forward's MACs for each of the two gradients (input, weights) that are asked for."""
    transposed, wanted = options[4], options[-1]
    # A transposed convolution multiplies at its input's positions, any other at its output's.
    positions = taken if transposed else gradient
    return positions.numel() * weight[0].numel() * (wanted[0] + wanted[1])


def step_macs(method: Method) -> int:
    """MACs per image of one training step of this method, forward and backward."""
    # Any images do: arithmetic does not depend on what they show.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    batch = Batch(images, torch.arange(BATCH), torch.arange(BATCH))
    # The plain attention: fused kernels would hide their products from the counter.
    with sdpa_kernel(SDPBackend.MATH), MacCounter() as counter:
        teacher = Teacher(method.teacher).observe(images) if method.teacher else None
        method(batch, teacher)["loss"].backward()
    return counter.macs // BATCH


def full_size_context(student_family: str, teacher_family: str) -> Context:
    """What a method may know of a full-size run that is counted, not trained."""
    return Context(
        classes=CLASSES,
        train_images=TRAIN_IMAGES,
        epochs=100,
        label_smoothing=0.1,
        image_size=IMAGE_SIZE,
        student_family=student_family,
        teacher_family=teacher_family,
        labels=torch.arange(TRAIN_IMAGES) % CLASSES,
    )


def measure_pair(
    student: StagedModel, teacher: StagedModel, families: tuple[str, str], methods: Entries
) -> dict[str, int]:
    """Training MACs of FCFD and of each method of MEASURED, by name; the networks stay as they are."""
    context = full_size_context(families[0], families[1])

    def count(name: str, **changes: Any) -> int:
        torch.manual_seed(0)
        parameters = default_parameters(methods[name]) | changes
        spec = MethodSpec(name=name, parameters=parameters, revision=1)
        # A copy of the student alone: the teacher is frozen, and stays as it is.
        return step_macs(build_method(spec, copy.deepcopy(student), teacher, context).train())

    costs = {name: count(name) for name in MEASURED}
    return costs | {"fcfd": _mean_over_draws(count, default_parameters(methods["fcfd"])["paths"])}


def _mean_over_draws(count: Callable[..., int], paths: int) -> int:
    """FCFD draws its mixed paths with equal chances, so each costs its share of what all of them cost."""
    without, with_all = count("fcfd", paths=0), count("fcfd", paths=FCFD_PATHS)
    return without + (with_all - without) * paths // FCFD_PATHS


def default_parameters(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A method's parameters as config/methods.yaml states them."""
    return {name: parameter["value"] for name, parameter in entry["parameters"].items()}


def build_staged(architectures: Entries, name: str) -> StagedModel:
    """A full-size network with random weights."""
    return stage(build_network(network_spec(architectures, name), CLASSES, IMAGE_SIZE), IMAGE_SIZE)


def table_pairs(tables: Path) -> list[tuple[str, str]]:
    """The (teacher, student) pairs that lines of the tables name, each once."""
    pairs = {}
    for path in sorted(tables.glob("*.yaml")):
        table = read_yaml(path)
        for line in [*table.get("rows", ()), *table.get("columns", ())]:
            if isinstance(line.get("teacher"), str) and "student" in line:
                pairs[line["teacher"], line["student"]] = None
    return list(pairs)


def measure(config: Path, pairs: Sequence[tuple[str, str]]) -> Report:
    """Training MACs by method and pair."""
    architectures, methods = read_yaml(config / "architectures.yaml"), read_yaml(config / "methods.yaml")
    report: Report = {}
    for number, (teacher, student) in enumerate(pairs, start=1):
        print(f"{number}/{len(pairs)} {teacher} -> {student}", file=sys.stderr, flush=True)
        learner, source = build_staged(architectures, student), build_staged(architectures, teacher)
        families = (architectures[student]["family"], architectures[teacher]["family"])
        for method, macs in measure_pair(learner, source, families, methods).items():
            report.setdefault(method, {})[f"{teacher}__{student}"] = macs
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the counts as JSON; exit code 1 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m fbt_core.measure.training_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--config", type=Path, default=Path("config"), help="folder of the configuration")
    options = parser.parse_args(arguments)
    try:
        report = measure(options.config, table_pairs(options.config / "tables"))
        make_folder(options.out.parent)
        write_json(options.out, provenance("fbt_core.measure.training_cost") | report)
    except UserError as error:
        print(f"fbt_core.measure.training_cost: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
