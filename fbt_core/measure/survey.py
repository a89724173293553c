"""Survey of timm: which networks can be cut exactly, and fused as student and as teacher.

One small network of each timm model file that has `forward_intermediates`, at the smallest size it takes.

    python -m fbt_core.measure.survey regnet                             # the files named
    python -m fbt_core.measure.survey --write docs/timm-survey.md        # all of them (minutes), as Markdown
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from fbt_core.fusion import FusedModel
from fbt_core.fusion.fused import Direction
from fbt_core.staged.base import UnknownStructure
from fbt_core.staged.model import StagedModel, stage
from fbt_core.staged.registry import first_line

NETWORKS = Path(__file__).with_name("survey_networks.txt")
SIZES = (64, 96, 112, 128, 160, 192, 224, 240, 256, 384)
CLASSES = 10
SECONDS = 60
OF_THE_STUDENT = {
    "teacher_head": ("early stages", ("stem", 0, 1, 2)),
    "student_head": ("late parts", (3, "head")),
}
BLOCK = {"block": "swin", "block_heads": 6, "block_window": 7, "block_mlp_ratio": 4.0}


class _OutOfTime(BaseException):
    """Not an Exception: no adapter may take it for its own failure."""


@dataclass
class SurveyedNetwork:
    """What the survey found about one network; `reason` says why it is not all three."""

    file: str
    network: str
    image_size: int | None = None
    adapter: str = ""
    cut: bool = False
    student: bool = False
    teacher: bool = False
    reason: str = ""
    seconds: float = 0.0

    @property
    def passes(self) -> bool:
        """Cut exactly, fusable as student and as teacher."""
        return self.cut and self.student and self.teacher


def model_files() -> list[str]:
    """timm's model files that have `forward_intermediates`, by name."""
    folder = Path(timm.models.__file__).parent
    files = [path for path in folder.glob("*.py") if "def forward_intermediates" in path.read_text("utf-8")]
    return sorted(path.stem for path in files)


def surveyed_networks() -> dict[str, str]:
    """File -> the network that stands for it: the listed one, or the smallest if none is listed."""
    listed = dict(line.split() for line in NETWORKS.read_text("utf-8").splitlines())
    # Listed ones stand in a file: finding the smallest builds every network of a timm file.
    return {file: listed.get(file) or smallest_network(file) for file in model_files()}


def smallest_network(file: str) -> str:
    """The network of a timm file with the fewest parameters, none of them allocated; no test networks."""
    names = [name for name in timm.list_models(module=file) if not name.startswith("test_")]

    def count(name: str) -> int:
        # Meta tensors: only the count is wanted.
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(name).parameters())

    return min(names, key=count)


def survey(
    files: list[str] | None = None, report: Callable[[SurveyedNetwork], None] = lambda _: None
) -> list[SurveyedNetwork]:
    """A result for each file (all of them when none is named); each is reported as it comes."""
    chosen = {file: name for file, name in surveyed_networks().items() if not files or file in files}
    networks = []
    for file, name in chosen.items():
        networks.append(examine(file, name))
        report(networks[-1])
    return networks


def examine(file: str, name: str) -> SurveyedNetwork:
    """Build the network, cut it, fuse it both ways; never raises, gives up after SECONDS."""
    result, started = SurveyedNetwork(file, name), time.monotonic()
    try:
        # A network may hang or take minutes, and the other files wait.
        with _time_limit(SECONDS):
            staged = _smallest_staged(result)
            _check_equal(staged)
            result.cut = True
            _try_fusion(result, staged)
    except UnknownStructure as error:
        result.reason = error.tried or first_line(error)
    except _OutOfTime:
        result.reason = f"takes more than {SECONDS} s"
    except Exception as error:  # a survey reports whatever a network does
        result.reason = first_line(error)
    result.seconds = time.monotonic() - started
    return result


def _smallest_staged(result: SurveyedNetwork) -> StagedModel:
    """The network, cut at the smallest size that it takes."""
    config, network = timm.get_pretrained_cfg(result.network), None
    fixed, own_size = bool(getattr(config, "fixed_input_size", False)), int(config.input_size[-1])
    for size in [*(size for size in SIZES if size < own_size), own_size]:
        # A fixed size is part of the network, so it is built anew for each; others are built once.
        if network is None or fixed:
            network = _build(result.network, {"img_size": size} if fixed else {})
        # From small to large: the first size that passes makes the survey fast.
        if size == own_size or _takes(network, size):
            break
    result.image_size = size
    staged = stage(network, size)
    result.adapter = staged.adapter
    return staged


def _takes(network: nn.Module, size: int) -> bool:
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))
    except Exception:  # whatever a network says about too small an image
        return False
    return True


def _build(name: str, options: dict[str, int]) -> nn.Module:
    """The network with noise on every parameter: zeros would hide a wrong cut."""
    torch.manual_seed(0)
    # Random draws of its own seed: the same network is surveyed each time.
    network = timm.create_model(name, num_classes=CLASSES, **options)
    with torch.no_grad():
        # On every parameter: scales that begin at zero would hide a block that is left out.
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return network


def _check_equal(staged: StagedModel) -> None:
    """Raises UnknownStructure unless staged and bare network agree to the last bit, in both modes."""
    images = torch.randn(2, 3, staged.image_size, staged.image_size)
    # Both modes: BatchNorm and dropout take other ways in training.
    for mode in (False, True):
        staged.train(mode)
        outputs = []
        for model in (staged, staged.network):
            # The same seed before both passes: dropout and drop path then drop the same.
            torch.manual_seed(1)
            with torch.no_grad():
                outputs.append(model(images))
        if not (isinstance(outputs[1], Tensor) and torch.equal(outputs[0], outputs[1])):
            raise UnknownStructure(f"staged and bare network differ in {'train' if mode else 'eval'} mode")


def _try_fusion(result: SurveyedNetwork, staged: StagedModel) -> None:
    """One forward and backward with a small ResNet on the other side, as its student and as its teacher.

    A ResNet's student ends the fused model if it is an MSA or MLP, and begins it if it is a CNN: structure
    does not say the family, so both are tried. A ResNet's teacher ends it, whatever its family.
    """
    for direction in get_args(Direction):
        # Noted one by one: what passed before a failure stays in the table.
        _fuse_once(staged.train(), stage(_partner(), staged.image_size), direction)
    result.student = True
    _fuse_once(stage(_partner(), staged.image_size).train(), staged, "teacher_head")
    result.teacher = True


def _partner() -> nn.Module:
    return ResNet(
        BasicBlock,
        layers=(1, 1, 1, 1),
        num_classes=CLASSES,
        channels=(8, 16, 32, 64),
        stem_width=4,
        stem_type="deep",
    )


def _fuse_once(student: StagedModel, teacher: StagedModel, direction: Direction) -> None:
    """Raises UnknownStructure unless the fused loss reaches the student's stages in it and is finite."""
    fused = FusedModel(student, teacher, direction, stage4="fused", class_token="gradient", **BLOCK)
    name, parts = OF_THE_STUDENT[direction]
    student.zero_grad()
    images = torch.randn(2, 3, student.image_size, student.image_size)
    with torch.no_grad():
        teacher_output = teacher.features(images)
    # A loss of both outputs, so that the gradient through either shows.
    pooled, logits = fused(student.features(images), teacher_output)
    (logits.square().mean() + pooled.square().mean()).backward()
    gradients = [parameter.grad for part in parts for parameter in student.stage_parameters(part)]
    # Finite first: a NaN would pass as a gradient that is there.
    if not all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None):
        raise UnknownStructure("the fused loss has a gradient that is not finite")
    if not any(gradient is not None and gradient.any() for gradient in gradients):
        raise UnknownStructure(f"the fused loss does not reach the student's {name}")


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _OutOfTime

    # An alarm, because no loop of ours runs while a network computes.
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- what the command prints and writes

YES_NO = {True: "yes", False: "no"}
HEAD = """\
# Which timm networks can be cut and fused

Made by `python -m fbt_core.measure.survey --write docs/timm-survey.md`: one small network of each
timm model file that has `forward_intermediates`, at the smallest image size (64 px or more) that it takes.
*cut*: stem, four stages and head give the network's own output to the last bit, in eval and in train mode.
*student*, *teacher*: one forward and backward of the fused model with a small ResNet on the other side; a
student has to begin it, as a CNN does, and to end it, as an MSA or MLP does.

"""


def line(result: SurveyedNetwork) -> str:
    """One result for the terminal."""
    answers = " ".join(f"{YES_NO[answer]:4}" for answer in (result.cut, result.student, result.teacher))
    size = result.image_size or "-"
    name = f"{result.file:26}{result.network:40}{size:>5}"
    return f"{name}  {answers} {result.seconds:5.1f} s  {result.reason[:150]}"


def totals(networks: list[SurveyedNetwork]) -> str:
    """How many passed each question and all three."""
    names = ("cut", "student", "teacher", "passes")
    counts = {name: sum(getattr(result, name) for result in networks) for name in names}
    return (
        f"{len(networks)} files: {counts['cut']} cut bit-exactly, {counts['student']} fusable as student, "
        f"{counts['teacher']} fusable as teacher, {counts['passes']} all three (timm {timm.__version__})"
    )


def markdown(networks: list[SurveyedNetwork]) -> str:
    """The networks as a document."""
    rows = ["| file | network | px | adapter | cut | student | teacher | reason |", "|---" * 8 + "|"]
    for result in networks:
        answers = " | ".join(YES_NO[answer] for answer in (result.cut, result.student, result.teacher))
        size, reason = result.image_size or "-", result.reason.replace("|", "/")
        rows.append(
            f"| {result.file} | {result.network} | {size} | {result.adapter} | {answers} | {reason} |"
        )
    return f"{HEAD}{totals(networks)}.\n\n" + "\n".join(rows) + "\n"


def main() -> None:
    """Survey timm's model files and print one line for each, then the totals."""
    parser = argparse.ArgumentParser(
        prog="python -m fbt_core.measure.survey",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", help="timm model files, e.g. resnet; all if none is named")
    parser.add_argument("--write", type=Path, help="write the result as a Markdown table")
    options = parser.parse_args()
    unknown = sorted(set(options.files) - set(model_files()))
    if unknown:
        parser.error(f"no timm model file with forward_intermediates: {', '.join(unknown)}")
    torch.set_num_threads(1)
    networks = survey(options.files, report=lambda network: print(line(network), flush=True))
    print(totals(networks))
    if options.write:
        options.write.write_text(markdown(networks), "utf-8")


if __name__ == "__main__":
    main()
