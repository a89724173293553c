"""Features of trained networks as arrays: for Figure 2, and how alike teacher, fused model and student are.

    python -m fbt_core.measure.features stages --runs DIR --network resnet18=RUN --show 0 7 --output x.npz
    python -m fbt_core.measure.features similarity --runs DIR --run <run id> --output y.npz

Everything is measured on test images, in eval mode. Names inside the .npz: see `measure_network` and
`measure_similarity`.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from fbt_core import checkpoint
from fbt_core.data.feed import Feed, Preparation
from fbt_core.data.load import load_splits
from fbt_core.data.order import test_keys
from fbt_core.data.splits import Split
from fbt_core.data.transforms import test_pipeline
from fbt_core.distributed import choose_device
from fbt_core.errors import UserError
from fbt_core.files import make_folder, write_bytes
from fbt_core.fusion import FusedModel
from fbt_core.measure.feature_numbers import (
    SimilarityMatrix,
    energy_maps,
    group_maps,
    group_similarity,
    locality,
    pool,
    spatial_entropy,
    standardise,
)
from fbt_core.methods.base import Method
from fbt_core.spec import ExecutionSettings, RunSpec, parse_spec
from fbt_core.staged import StagedModel, build_network, stage
from fbt_core.staged.base import StagedOutput
from fbt_core.staged.layout import prefix_of, to_map
from fbt_core.teacher import Teacher
from fbt_core.train import make_method, make_network, make_teacher

Arrays = dict[str, np.ndarray]
Grid = tuple[int, int]
BATCH = 64
FUSED_FEATURES = 5  # S1-S3 of the early network, L2G, S4


def read_spec(runs: Path, run: str) -> RunSpec:
    """The spec that a run's folder holds; a UserError if there is none."""
    path = runs / run / "spec.json"
    try:
        return parse_spec(path.read_text())
    except FileNotFoundError:
        raise UserError("there is no such run", where=str(path), hint="train it first") from None
    except ValidationError:
        raise UserError("is no spec of a run", where=str(path)) from None


def load_images(spec: RunSpec, split: Split, numbers: list[int], device: torch.device) -> Iterator[tuple]:
    """(raw uint8 images, images normalised for the run's student) of test images, in batches."""
    # The run's own test pipeline and normalisation: features of what its evaluation saw.
    feed = Feed(split, test_pipeline(split, spec.dataset), 0, device)
    preparation = Preparation(spec.recipe, spec.dataset.classes, spec.student.mean, spec.student.std, device)
    keys = test_keys(len(numbers), BATCH)
    # test_keys counts from 0; the chosen numbers stand for its positions.
    chosen = [key.__class__(tuple(numbers[i] for i in key.indices), key.rows, key.whole) for key in keys]
    for raw in feed(chosen):
        yield raw.images, preparation.images(raw)


# ---------------------------------------------------------------- Figure 2


def measure_stages(
    networks: dict[str, str],
    runs: Path,
    show: list[int],
    measure: int,
    settings: ExecutionSettings,
    positions: int = 1,
) -> Arrays:
    """The arrays of all networks (key -> run id), `images`, the shown ones (K, H, W, 3) uint8, and `grids`.

    `grids` (4, 2): the positions on which the numbers of a stage are measured, the same for all networks.
    Images are enlarged until every last stage has `positions` a side; `sizes`: the input size of each network
    in pixels, its own if it cannot be enlarged (token-mixing layers are bound to their number of tokens).
    """
    specs = {key: read_spec(runs, run) for key, run in networks.items()}
    trained = {key: load_trained(spec, runs, settings) for key, spec in specs.items()}
    trained_at = {key: spec.dataset.image_size for key, spec in specs.items()}
    # One size for all: a feature of a larger image is another feature.
    size = max(needed_size(trained[key], trained_at[key], positions) for key in specs)
    sizes = dict(trained_at)
    for key, spec in specs.items():
        larger = enlarge(trained[key], spec, size) if size > trained_at[key] else None
        # None: its layers are bound to their number of tokens, so it keeps the size that it was trained at.
        if larger is not None:
            trained[key], sizes[key] = larger, size
    grids = common_grids(trained.values())
    arrays: Arrays = {"grids": np.array(grids), "sizes": np.array([sizes[key] for key in specs])}
    for key, spec in specs.items():
        split = load_splits(spec.dataset, settings.data_roots)[1]
        # Shown images first, and none twice: the figure takes the first rows.
        numbers = list(dict.fromkeys([*show, *spread(measure, len(split))]))
        network_arrays, images = measure_network(trained[key], spec, split, numbers, settings, grids)
        arrays |= {
            f"{key}.{name}": values[: len(show)] if name in SHOWN else values
            for name, values in network_arrays.items()
        }
        arrays["images"] = images[: len(show)]
    return arrays


def needed_size(staged: StagedModel, size: int, positions: int) -> int:
    """The image size at which the last stage has so many positions a side; `size` if it has them already."""
    # Rounded up: with one pixel less the last stage would be a position short.
    return max(size, -(-size * positions // min(staged.shapes[-1].grid)))


def enlarge(staged: StagedModel, spec: RunSpec, size: int) -> StagedModel | None:
    """The same network with the same weights for larger images; None if its layers are bound to its own size.

    Position and relative-bias tables are interpolated by timm, as when it loads weights of another size.
    """
    larger = build_network(spec.student, spec.dataset.classes, size)
    state = staged.network.state_dict()
    # timm's own translation of weights to another size, where a network's file has one.
    adapt = getattr(sys.modules[type(staged.network).__module__], "checkpoint_filter_fn", None)
    try:
        larger.load_state_dict(adapt(state, larger) if adapt else state)
    # A shape that cannot be interpolated: the caller measures this network at its own size.
    except RuntimeError:
        return None
    return stage(larger, size, staged.split).freeze()


SHOWN = ("stage1", "stage2", "stage3", "stage4", "groups")


def common_grids(networks: Iterable[StagedModel]) -> list[Grid]:
    """Per stage the coarsest grid that a network has: neighbours are then equally far apart in all."""
    stages = zip(*([shape.grid for shape in network.shapes] for network in networks), strict=True)
    return [(min(height for height, _ in grids), min(width for _, width in grids)) for grids in stages]


def spread(count: int, images: int) -> list[int]:
    """`count` image numbers spread evenly over a split (all of them if it has fewer)."""
    if count >= images:
        return list(range(images))
    return sorted({i * images // count for i in range(count)})


def load_trained(spec: RunSpec, runs: Path, settings: ExecutionSettings) -> StagedModel:
    """The student of a run with the weights that the run has published, cut into stages."""
    # The student's entry with the run's weights: from here on it is loaded like any teacher.
    network = spec.student.model_copy(update={"weights": f"run:{spec.id}"})
    return make_network(network, spec, settings, runs).freeze()


@torch.no_grad()
def measure_network(
    staged: StagedModel,
    spec: RunSpec,
    split: Split,
    numbers: list[int],
    settings: ExecutionSettings,
    grids: list[Grid],
) -> tuple[Arrays, np.ndarray]:
    """One network's arrays, and the images as uint8 (N, H, W, 3).

    stage1..stage4 (N, h, w) energy of each stage; groups (N, 3, h, w) energy of its channel groups;
    entropy, locality (4,) and group_similarity (), measured on `grids`; stage_similarity (4, 4) linear CKA
    between its stages.
    """
    device = choose_device(settings)
    staged = staged.to(device)
    similarity = SimilarityMatrix(4, 4)
    maps: list[list[Tensor]] = [[], [], [], []]
    pictures = []
    for raw, images in load_images(spec, split, numbers, device):
        if (size := staged.image_size) != images.shape[-1]:
            images = interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
        stages = as_maps(staged, staged.features(images))
        # The unbiased estimate divides by n - 3: a last batch of three images has none.
        if len(images) >= 4:
            similarity.add(stages, stages)
        for kept, feature in zip(maps, stages, strict=True):
            kept.append(feature.float().cpu())
        pictures.append(raw.expand(-1, 3, -1, -1).permute(0, 2, 3, 1))
    arrays = describe([torch.cat(parts) for parts in maps], grids)
    return {**arrays, "stage_similarity": similarity.value().numpy()}, torch.cat(pictures).numpy()


def as_maps(staged: StagedModel, output: StagedOutput) -> list[Tensor]:
    """The four stage features as maps (B, C, H, W), without class tokens."""
    return [to_map(feature, shape) for feature, shape in zip(output.stages, staged.shapes, strict=True)]


def describe(features: list[Tensor], grids: list[Grid]) -> Arrays:
    """Energy maps of four stage features (N, C, H, W) as they are, and their numbers on the common grids."""
    standard = [standardise(feature) for feature in features]
    groups = group_maps(standard[-1])
    energies = [energy_maps(feature) for feature in standard]
    return {
        **{f"stage{i}": energy.numpy() for i, energy in enumerate(energies, start=1)},
        "groups": groups.numpy(),
        "entropy": np.array(
            [float(spatial_entropy(pool(e, grid)).mean()) for e, grid in zip(energies, grids, strict=True)]
        ),
        "locality": np.array(
            [locality(standardise(pool(f, grid))) for f, grid in zip(features, grids, strict=True)]
        ),
        "group_similarity": np.array(group_similarity(pool(groups, grids[-1]))),
    }


# ---------------------------------------------------------------- teacher, fused model, student


def measure_similarity(runs: Path, run: str, measure: int, settings: ExecutionSettings) -> Arrays:
    """Linear CKA of all stage pairs: `<before|after>.<first>.<second>` (4 or 5, 4 or 5).

    `before` are the run's initial weights (they follow from its seed), `after` those of its last checkpoint,
    which alone holds the fused model. Models: teacher, student (S1-S4) and, if the method has one, fused
    (S1, S2, S3, L2G, S4). A UserError if the run has no teacher or no checkpoint.
    """
    spec = read_spec(runs, run)
    if spec.teacher is None:
        raise UserError("has no teacher to compare with", where=run)
    train_split, test_split = load_splits(spec.dataset, settings.data_roots)
    # The run's own building: its initial weights follow from the seed, so `before` needs no file.
    teacher = make_teacher(spec, settings, runs)
    method = make_method(spec, settings, runs, train_split, teacher).to(choose_device(settings)).eval()
    numbers = spread(measure, len(test_split))
    before = compare_models(method, spec, test_split, numbers, settings)
    # The last checkpoint, not the published weights, which hold no fused model.
    load_last(method, runs / run, spec)
    after = compare_models(method, spec, test_split, numbers, settings)
    moments = {"before": before, "after": after}
    return {f"{when}.{pair}": value for when, matrices in moments.items() for pair, value in matrices.items()}


def load_last(method: Method, folder: Path, spec: RunSpec) -> None:
    """Fill the method with the run's last checkpoint (student, fused model, projectors)."""
    state, _ = checkpoint.load(folder, spec)
    if state is None:
        hint = "the similarity figure needs the run's last.pt, which alone holds the fused model"
        raise UserError("no checkpoint is left of this run", where=str(folder), hint=hint)
    method.trainable_module.load_state_dict(state["trainable"])


@torch.no_grad()
def compare_models(
    method: Method, spec: RunSpec, split: Split, numbers: list[int], settings: ExecutionSettings
) -> Arrays:
    """CKA of teacher x student and, with a fused model, teacher x fused and fused x student."""
    fused = dict(method.extras).get("fused")
    # A method without fused model still has the pair that all have.
    pairs = [("teacher", "student")]
    if fused is not None:
        pairs += [("teacher", "fused"), ("fused", "student")]
    teacher = Teacher.of(spec, method.teacher)
    matrices: dict[str, SimilarityMatrix] = {}
    for _, images in load_images(spec, split, numbers, choose_device(settings)):
        if len(images) < 4:
            continue
        features = observe(method, teacher, fused, images)
        for first, second in pairs:
            rows, columns = features[first], features[second]
            matrix = matrices.setdefault(f"{first}.{second}", SimilarityMatrix(len(rows), len(columns)))
            matrix.add(rows, columns)
    return {pair: matrix.value().numpy() for pair, matrix in matrices.items()}


def observe(
    method: Method, teacher: Teacher, fused: FusedModel | None, images: Tensor
) -> dict[str, list[Tensor]]:
    """One pass of all models: features per model, in order."""
    student, observed = method.student.features(images), teacher.observe(images)
    features = {"student": as_maps(method.student, student), "teacher": as_maps(method.teacher, observed)}
    if fused is not None:
        features["fused"] = fused_features(method, fused, student, observed)
    return features


def fused_features(
    method: Method, fused: FusedModel, student: StagedOutput, teacher: StagedOutput
) -> list[Tensor]:
    """S1-S3 of the network that begins the fused model, L2G's output and, if it has one, S4's output."""
    # Which network begins the fused model decides which of its features are whose.
    if fused.direction == "teacher_head":
        early, early_output, last, last_output = method.student, student, method.teacher, teacher
    else:
        early, early_output, last, last_output = method.teacher, teacher, method.student, student
    shape = fused.l2g.output_shape
    bridged = fused.l2g(early_output.stages[2], prefix_of(last_output.stages[2], shape))
    features = [*as_maps(early, early_output)[:3], to_map(bridged, shape)]
    if fused.classifier is None:
        features.append(to_map(last.run(bridged, first=3)[-1], last.shapes[3]))
    return features


# ---------------------------------------------------------------- command line


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Publish the arrays as a compressed .npz, whole or not at all."""
    make_folder(path.parent)
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)
    write_bytes(path, archive.getvalue())


def read_networks(pairs: list[str]) -> dict[str, str]:
    """KEY=RUN arguments as a mapping."""
    faults = [pair for pair in pairs if "=" not in pair]
    if faults:
        raise UserError(
            f"'{faults[0]}' is not KEY=RUN", where="--network", hint="write e.g. resnet18=<run id>"
        )
    return dict(pair.split("=", 1) for pair in pairs)


def read_settings(text: str) -> ExecutionSettings:
    """The settings of the command line; a UserError names the first fault of the JSON."""
    try:
        return ExecutionSettings.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        path = ".".join(["--settings", *map(str, fault["loc"])])
        raise UserError(fault["msg"], where=path) from None


def build_parser() -> argparse.ArgumentParser:
    """Options of the two commands."""
    parser = argparse.ArgumentParser(
        prog="python -m fbt_core.measure.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    stages = commands.add_parser("stages", help="features of the four stages of several networks")
    stages.add_argument(
        "--network", action="append", required=True, metavar="KEY=RUN", help="a run's student; repeat it"
    )
    stages.add_argument(
        "--show", type=int, nargs="+", required=True, metavar="IMAGE", help="test images to keep"
    )
    stages.add_argument(
        "--positions",
        type=int,
        default=1,
        metavar="SIDE",
        help="enlarge images until every last stage has so many positions a side, where a network allows it",
    )
    similarity = commands.add_parser("similarity", help="CKA of teacher, fused model and student")
    similarity.add_argument("--run", required=True, help="id of a distillation run")
    for command in (stages, similarity):
        command.add_argument("--runs", type=Path, required=True, help="the folder of all runs")
        command.add_argument("--measure", type=int, default=256, help="test images behind the numbers (256)")
        command.add_argument("--settings", default="{}", help="ExecutionSettings as JSON")
        command.add_argument("--output", type=Path, required=True, help="the .npz to write")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Extract what the command line asks for; a user's error is one line and exit code 1."""
    chosen = build_parser().parse_args(arguments)
    try:
        settings = read_settings(chosen.settings)
        torch.set_num_threads(settings.threads or torch.get_num_threads())
        if chosen.command == "stages":
            networks = read_networks(chosen.network)
            arrays = measure_stages(
                networks, chosen.runs, chosen.show, chosen.measure, settings, chosen.positions
            )
        else:
            arrays = measure_similarity(chosen.runs, chosen.run, chosen.measure, settings)
        write_arrays(chosen.output, arrays)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
