"""Count parameters and multiply-accumulates (MACs): by the paper's rule and truly, side by side.

The paper's Table 6 was counted by a tool (thop) that looks at modules. Only Conv, Linear, BatchNorm and
LayerNorm modules whose own forward runs have parameters; MACs are those of Conv and Linear without bias, plus
4 per element of an affine norm, rows * (3n - 1) per Softmax module and out * (kernel + 1) per adaptive
average pool. Class tokens, position embeddings, Affine, LayerScale, attention products and layers used
functionally count nothing. The true count is every parameter, and every matrix product and convolution as
PyTorch's own FlopCounterMode sees it.

    python -m fbt_core.measure.cost table6 --out FILE.json      # all numbers of Table 6
    python -m fbt_core.measure.cost networks --out FILE.json    # every entry of config/architectures.yaml
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from fbt_core.branches import PAPER_DEPTHS, RELEASED_DEPTHS, Depths, ofa_branch
from fbt_core.errors import UserError
from fbt_core.files import make_folder, write_json
from fbt_core.fusion import L2G, choose_direction
from fbt_core.spec import NetworkSpec
from fbt_core.staged import FeatureShape, StagedModel, build_network, stage

Entries = Mapping[str, Mapping[str, Any]]
Report = dict[str, Any]

TABLE_6_BLOCK: Mapping[str, Any] = {"heads": 6, "window": 7, "mlp_ratio": 4.0}
"""Sizes of L2G's block with which Table 6's digits come out (inferred: the paper does not print them)."""


@dataclass(frozen=True)
class Cost:
    """Parameters, and MACs of one image."""

    parameters: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs)


# --- the paper's rule


def _conv_macs(module: nn.Module, taken: Tensor, result: Tensor) -> int:
    return result.numel() * module.weight[0].numel()


def _linear_macs(module: nn.Module, taken: Tensor, result: Tensor) -> int:
    return result.numel() * module.in_features


def _norm_macs(module: nn.Module, taken: Tensor, result: Tensor) -> int:
    affine = getattr(module, "affine", False) or getattr(module, "elementwise_affine", False)
    return taken.numel() * (4 if affine else 2)


def _softmax_macs(module: nn.Module, taken: Tensor, result: Tensor) -> int:
    # Per row n exponentials, n - 1 additions and n divisions, as thop counts them.
    classes = taken.shape[module.dim]
    return taken.numel() // classes * (3 * classes - 1)


def _adaptive_pool_macs(module: nn.Module, taken: Tensor, result: Tensor) -> int:
    # kernel additions and one division per output, as thop counts an average.
    kernel = math.prod(taken.shape[2:]) / math.prod(result.shape[2:])
    return int((kernel + 1) * result.numel())


PAPER_RULE: tuple[tuple[type[nn.Module], Callable[[nn.Module, Tensor, Tensor], int]], ...] = (
    (_ConvNd, _conv_macs),
    (nn.Linear, _linear_macs),
    (_BatchNorm, _norm_macs),
    (nn.LayerNorm, _norm_macs),
    (nn.Softmax, _softmax_macs),
    (nn.AdaptiveAvgPool2d, _adaptive_pool_macs),
)
"""Kinds of module the paper's tool counts; subclasses too, as timm's norms are."""


def paper_cost(module: nn.Module, *inputs: Tensor) -> Cost:
    """Cost by the paper's rule of one forward pass in eval mode; `inputs` hold one image."""
    macs = 0
    seen: dict[int, nn.Module] = {}

    def count(part: nn.Module, taken: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal macs
        # By identity: a module that runs twice has its parameters once and its products twice.
        seen[id(part)] = part
        macs += next(rule for kind, rule in PAPER_RULE if isinstance(part, kind))(part, taken[0], result)

    counted = [part for part in module.modules() if isinstance(part, tuple(kind for kind, _ in PAPER_RULE))]
    handles = [part.register_forward_hook(count) for part in counted]
    try:
        with _measuring(module):
            module(*inputs)
    finally:
        for handle in handles:
            # Hooks of a run that failed would count in the next one.
            handle.remove()
    return Cost(sum(p.numel() for part in seen.values() for p in part.parameters(recurse=False)), macs)


# --- the true count


def true_cost(module: nn.Module, *inputs: Tensor) -> Cost:
    """All parameters, and the MACs of all matrix products and convolutions, attention included."""
    counter = FlopCounterMode(display=False)
    with _measuring(module), counter:
        module(*inputs)
    # A flop counter counts a product and a sum as two.
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2)


@contextmanager
def _measuring(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; attention as plain matrix products, so that the counters see them."""
    # BatchNorm in training mode would normalise by one image, and dropout would draw random numbers.
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for part in training:
            part.training = True


def both_costs(module: nn.Module, *inputs: Tensor) -> dict[str, Cost]:
    """Cost by the paper's rule (`paper_rule`) and the true one (`true`); moves it to the meta device."""
    # Meta tensors have shapes and no numbers: counting a full-size network costs neither time nor memory.
    module = module.to("meta")
    inputs = tuple(value.to("meta") for value in inputs)
    return {"paper_rule": paper_cost(module, *inputs), "true": true_cost(module, *inputs)}


# --- networks, OFA's branches, FBT's branch


def image(size: int) -> Tensor:
    """One image without content."""
    return torch.empty(1, 3, size, size, device="meta")


def feature(shape: FeatureShape) -> Tensor:
    """One feature of a stage without content."""
    height, width = shape.grid
    sizes = {
        "nchw": (1, shape.width, height, width),
        "nhwc": (1, height, width, shape.width),
        "tokens": (1, shape.prefix_tokens + height * width, shape.width),
    }
    return torch.empty(sizes[shape.layout], device="meta")


def ofa_branch_costs(
    shapes: Sequence[FeatureShape], student_width: int, teacher_width: int, classes: int, depths: Depths
) -> dict[str, Cost]:
    """What OFA adds to a student with these stage outputs: four branches, both ways of counting."""
    total = {"paper_rule": Cost(0, 0), "true": Cost(0, 0)}
    for index, shape in enumerate(shapes):
        branch = ofa_branch(shape, index, student_width, teacher_width, classes, depths)
        for rule, cost in both_costs(branch, feature(shape)).items():
            total[rule] += cost
    return total


def fbt_branch_costs(early: FeatureShape, late: FeatureShape, block: str) -> dict[str, Cost]:
    """What FBT adds: one L2G, from the third stage of one network to what the other's fourth stage takes."""
    module = L2G(early, late, block, **TABLE_6_BLOCK)
    if not late.prefix_tokens:
        return both_costs(module, feature(early))
    # L2G puts the other network's class tokens in front, so they pass through its output.
    return both_costs(module, feature(early), torch.empty(1, late.prefix_tokens, late.width))


# --- what the commands write


def measure_networks(architectures: Entries, names: Sequence[str], classes: int, image_size: int) -> Report:
    """True parameters and MACs of each named architecture."""
    costs = {}
    for name in names:
        with torch.device("meta"):
            network = build_network(network_spec(architectures, name), classes, image_size)
        costs[name] = asdict(true_cost(network, image(image_size)))
    return costs


def measure_table(table: Mapping[str, Any], architectures: Entries) -> Report:
    """All numbers of a cost table: per row the student, OFA's branches (both depths), FBT's per block."""
    classes, size = table["classes"], table["image_size"]
    names = sorted({row[role] for row in table["rows"] for role in ("student", "teacher")})
    # Each network is cut once, however many rows it stands in.
    staged = {}
    for name in names:
        staged[name] = stage(build_network(network_spec(architectures, name), classes, size), size)
    rows = {}
    for row in table["rows"]:
        families = tuple(architectures[row[role]]["family"] for role in ("teacher", "student"))
        rows[row["key"]] = _measure_pair(
            staged[row["teacher"]], staged[row["student"]], families, table["blocks"]
        )
    return {"image_size": size, "classes": classes, "rows": rows}


def _measure_pair(
    teacher: StagedModel, student: StagedModel, families: tuple[str, str], blocks: Sequence[str]
) -> Report:
    # The direction decides between which two stages L2G stands, and so how large it is.
    student_ends = choose_direction(families[1], families[0]) == "student_head"
    early, late = (teacher, student) if student_ends else (student, teacher)
    branch_costs = partial(ofa_branch_costs, student.shapes, student.width, teacher.width, student.classes)
    costs = {
        # A copy: counting moves a network to the meta device, and the next row needs it again.
        "student": both_costs(copy.deepcopy(student.network), image(student.image_size)),
        "ofa_branch": branch_costs(PAPER_DEPTHS),
        "ofa_branch_released": branch_costs(RELEASED_DEPTHS),
    }
    report: Report = {part: _as_numbers(cost) for part, cost in costs.items()}
    fbt = {block: fbt_branch_costs(early.shapes[2], late.shapes[2], block) for block in blocks}
    return report | {"fbt_branch": {block: _as_numbers(cost) for block, cost in fbt.items()}}


def _as_numbers(costs: Mapping[str, Cost]) -> dict[str, dict[str, int]]:
    return {rule: asdict(cost) for rule, cost in costs.items()}


def network_spec(architectures: Entries, name: str) -> NetworkSpec:
    """The untrained network of one entry of architectures.yaml."""
    if name not in architectures:
        raise UserError(f"unknown architecture '{name}'", given=name, choices=architectures)
    stated = {key: architectures[name].get(key) for key in ("family", "create", "options")}
    # Mean and deviation are made up: no count depends on them.
    content = {**stated, "architecture": name, "weights": "none", "mean": [0.5] * 3, "std": [0.5] * 3}
    try:
        return NetworkSpec.model_validate_json(json.dumps(content))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(["config/architectures.yaml: " + name, *map(str, fault["loc"])])
        raise UserError(fault["msg"], where=where) from None


# --- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the costs of a table or of all architectures as JSON; exit code 1 for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        report = _report(options)
        make_folder(options.out.parent)
        write_json(options.out, provenance(f"fbt_core.measure.cost {options.what}") | report)
    except UserError as error:
        print(f"fbt_core.measure.cost: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fbt_core.measure.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", help="`networks`, or a cost table by its name in config/tables/, e.g. table6")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--config", type=Path, default=Path("config"), help="folder of the configuration")
    return parser


def _report(options: argparse.Namespace) -> Report:
    architectures = read_yaml(options.config / "architectures.yaml")
    if options.what == "networks":
        size, classes = 224, 1000
        return {"_image_size": size, "_classes": classes} | measure_networks(
            architectures, list(architectures), classes, size
        )
    file = options.config / "tables" / f"{options.what}.yaml"
    table = read_yaml(file)
    if table.get("kind") != "cost":
        raise UserError(
            f"'{options.what}' is no cost table", where=str(file), hint="its `kind` has to be `cost`"
        )
    return measure_table(table, architectures)


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of the configuration; raises UserError if it is missing or no YAML."""
    if not path.is_file():
        raise UserError("there is no such file", where=str(path), hint="name its folder with --config")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"is not YAML: {error}", where=str(path)) from None


def provenance(command: str) -> Report:
    """The command that makes a file again, and what counted."""
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    return {"_made_by": f"python -m {command} --out FILE.json", "_versions": versions}


if __name__ == "__main__":
    sys.exit(main())
