"""FCFD: features agree when the other network's later stages make the same of them.

Mixed paths change from one network to the other once, through a bridge; a few are drawn at each step. Made
for CNN pairs; adapted to any pair: bridges turn every layout into maps and back, class tokens are the later
network's own in the same batch, features are compared as maps, and the last ones also after the teacher's
own pooling. The released code has a ReLU before that pooling; so has this one if the teacher's own last
feature is rectified, and none if it is not (a transformer's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fbt_core.losses.logits import kl_divergence
from fbt_core.losses.numerics import in_float32
from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.methods.modules import rectified_features, shrink
from fbt_core.staged import StagedModel
from fbt_core.staged.base import FeatureShape, StagedOutput
from fbt_core.staged.layout import from_map, prefix_of, to_map


@in_float32
def feature_loss(feature: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference in the teacher's space (any shape). Liu et al. 2023."""
    return functional.mse_loss(feature, teacher)


class Path(NamedTuple):
    """A mixed path: the early stages of one network up to `stage` (0..2), the later ones of the other."""

    early: Literal["student", "teacher"]
    late: Literal["student", "teacher"]
    stage: int

    @property
    def bridge(self) -> str:
        return f"{self.early}_to_{self.late}{self.stage + 1}"


class Bridge(nn.Module):
    """Takes a stage's feature into the other network's space, as a map (B, C, H, W) on its grid.

    A 3x3 convolution with BatchNorm; its stride is the ratio of the grids, a 4x4 transposed one doubles,
    other ratios are pooled or enlarged first. A LeakyReLU follows if the target feature is rectified.
    """

    def __init__(self, source: FeatureShape, target: FeatureShape, rectified: bool) -> None:
        super().__init__()
        self.shape, self.grid, self.rectified = source, target.grid, rectified
        # The convolution changes the grid itself where it can; else the map is resized before it.
        convolution, self.resizes = _bridge_convolution(source, target)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        activation = nn.LeakyReLU(0.1) if rectified else nn.Identity()
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(target.width), activation)

    def forward(self, feature: Tensor) -> Tensor:
        feature_map = to_map(feature, self.shape)
        return self.layers(_resize(feature_map, self.grid) if self.resizes else feature_map)


class PathStatistics(nn.Module):
    """The BatchNorm statistics of one mixed path: the networks' own never see its features."""

    def __init__(self, norms: list[_BatchNorm]) -> None:
        super().__init__()
        for i, norm in enumerate(norms):
            self.register_buffer(f"mean{i}", torch.zeros_like(norm.running_mean))
            self.register_buffer(f"var{i}", torch.ones_like(norm.running_var))
            self.register_buffer(f"count{i}", torch.zeros_like(norm.num_batches_tracked))

    @contextmanager
    def used_by(self, norms: list[_BatchNorm]) -> Iterator[None]:
        """Inside, these BatchNorms normalise by the batch and keep this path's statistics."""
        names = ("running_mean", "running_var", "num_batches_tracked")
        saved = [(norm, norm.training, [getattr(norm, name) for name in names]) for norm in norms]
        for i, norm in enumerate(norms):
            # Also in the frozen teacher: a mixed pass is normalised by its own batch.
            norm.training = True
            for name, buffer in zip(names, (f"mean{i}", f"var{i}", f"count{i}"), strict=True):
                setattr(norm, name, getattr(self, buffer))
        try:
            yield
        # Always put back: a pass that fails must not leave foreign statistics in a network.
        finally:
            for norm, training, buffers in saved:
                norm.training = training
                for name, buffer in zip(names, buffers, strict=True):
                    setattr(norm, name, buffer)


class FCFD(Method):
    """Cross-entropy and KL for the student, KL for mixed paths, MSE in the teacher's space in each stage.

    `paths` mixed paths are drawn a step, from both directions or from one.
    """

    unused_parameters = True  # bridges of paths that were not drawn
    needs_whole_batch = "draws its mixed paths once for all images of a batch"

    def build_extras(self) -> dict[str, nn.Module]:
        networks = {"student": self.student, "teacher": self.teacher}
        # Looked at once: whether a feature is rectified decides about activations for good.
        rectified = {name: rectified_features(network) for name, network in networks.items()}
        extras: dict[str, nn.Module] = {}
        # Bridges of all stages into the teacher's space: their features are compared there.
        for path in [*self._candidates(), *(Path("student", "teacher", stage) for stage in range(4))]:
            early, late = networks[path.early].shapes[path.stage], networks[path.late].shapes[path.stage]
            extras[path.bridge] = Bridge(early, late, rectified[path.late][path.stage])
        for path in self._candidates():
            extras[f"statistics_{path.bridge}"] = PathStatistics(late_norms(networks[path.late], path.stage))
        return extras

    def adapt_normalisation(self, adapt: Callable[[nn.Module], nn.Module]) -> None:
        """Also the teacher's BatchNorms, which normalise by the batch in mixed passes."""
        super().adapt_normalisation(adapt)
        # In eval, whatever was replaced: the teacher's own pass keeps to its statistics.
        self.teacher = adapt(self.teacher).eval()

    def step(self, batch: Batch, teacher: StagedOutput | None) -> dict[str, Any]:
        student = self.student.features(batch.images)
        bridged = [self.extras[f"student_to_teacher{i + 1}"](x) for i, x in enumerate(student.stages)]
        # All drawn paths of a step for the whole batch: a draw per image would run each path for every image.
        mixed = {path: self._run_path(path, student, teacher, bridged) for path in self._draw_paths()}
        terms = {
            "labels": self.settings.label_weight * self.label_loss(student.logits, batch),
            "logits": self.settings.logit_weight * self._divergence(student.logits, teacher),
            "mixed": self.settings.mixed_weight * self._mixed_loss(mixed, teacher),
        }
        return self.collect(student.logits, {**terms, **self._feature_terms(bridged, mixed, teacher)})

    def _candidates(self) -> list[Path]:
        """All paths that change networks once, after stage 1, 2 or 3, in the directions that are on."""
        pairs = (("student", "teacher"), ("teacher", "student"))
        chosen = [pair for pair in pairs if self.settings.directions in ("both", "_to_".join(pair))]
        return [Path(early, late, stage) for early, late in chosen for stage in range(3)]

    def _draw_paths(self) -> list[Path]:
        """The paths of this step, without repeats; torch's default generator draws, so a resume is exact."""
        candidates = self._candidates()
        # A permutation cut off: no path twice, and every set equally likely.
        drawn = torch.randperm(len(candidates))[: self.settings.paths]
        return [candidates[i] for i in sorted(drawn.tolist())]

    def _run_path(
        self, path: Path, student: StagedOutput, teacher: StagedOutput, bridged: list[Tensor]
    ) -> StagedOutput:
        """The later stages of a path and its logits; class tokens are the later network's own."""
        if path.late == "teacher":
            late, passed, entering = self.teacher, teacher, bridged[path.stage]
        else:
            late, passed = self.student, student
            entering = self.extras[path.bridge](teacher.stages[path.stage])
        shape = late.shapes[path.stage]
        x = from_map(entering, shape, prefix_of(passed.stages[path.stage], shape))
        with self.extras[f"statistics_{path.bridge}"].used_by(late_norms(late, path.stage)):
            stages = late.run(x, first=path.stage + 1)
            pooled, logits = late.finish(stages[-1])
            return StagedOutput(stages, pooled, logits)

    def _divergence(self, logits: Tensor, teacher: StagedOutput) -> Tensor:
        return kl_divergence(logits, teacher.logits, self.settings.temperature)

    def _mixed_loss(self, mixed: dict[Path, StagedOutput], teacher: StagedOutput) -> Tensor:
        """KL of every drawn path's logits to the teacher's, summed."""
        # A zero of float32 to start from: with no path drawn the term is still a tensor.
        zero = teacher.logits.new_zeros((), dtype=torch.float32)
        return sum((self._divergence(output.logits, teacher) for output in mixed.values()), start=zero)

    def _feature_terms(
        self, bridged: list[Tensor], mixed: dict[Path, StagedOutput], teacher: StagedOutput
    ) -> Terms:
        """Per stage, MSE to the teacher's map of all features in its space; the last also after pooling."""
        weight = self.settings.feature_weight * self.ramp(self.settings.ramp_epochs)
        # Paths that end in the teacher only: those in the student's space cannot be compared there.
        inside = [(path.stage, output) for path, output in mixed.items() if path.late == "teacher"]
        terms = {}
        for i, shape in enumerate(self.teacher.shapes):
            maps = [to_map(output.stages[i - stage - 1], shape) for stage, output in inside if stage < i]
            target = to_map(teacher.stages[i], shape)
            terms[f"stage{i + 1}"] = weight * sum(feature_loss(x, target) for x in [bridged[i], *maps])
        terms["pooled"] = weight * self._pooled_loss(bridged[3], [output for _, output in inside], teacher)
        return terms

    def _pooled_loss(self, bridged: Tensor, inside: list[StagedOutput], teacher: StagedOutput) -> Tensor:
        """MSE after the teacher's own normalisation and pooling, summed over the features in its space.

        A bridged feature loses what is below zero if the teacher's own is rectified, as the features of
        mixed paths did in the teacher's last stage.
        """
        shape = self.teacher.shapes[3]
        if self.extras[Path("student", "teacher", 3).bridge].rectified:
            bridged = functional.relu(bridged)
        feature = from_map(bridged, shape, prefix_of(teacher.stages[3], shape))
        pooled = [self.teacher.pool(self.teacher.norm(feature)), *(output.pooled for output in inside)]
        return sum(feature_loss(x, teacher.pooled) for x in pooled)


def late_norms(network: StagedModel, stage: int) -> list[_BatchNorm]:
    """The BatchNorms with running statistics that come after a stage (0..2), the head's included."""
    parts = [*range(stage + 1, 4), "head"]
    owned = [module for part in parts for module in network.stage_modules(part)]
    modules = [inner for module in owned if isinstance(module, nn.Module) for inner in module.modules()]
    return [norm for norm in modules if isinstance(norm, _BatchNorm) and norm.running_mean is not None]


def _bridge_convolution(source: FeatureShape, target: FeatureShape) -> tuple[nn.Module, bool]:
    """The convolution between two shapes, and whether the map must be resized before it."""
    # A whole ratio is the convolution's own stride.
    down = [a // b for a, b in zip(source.grid, target.grid, strict=True) if a % b == 0]
    if len(down) == 2:
        return nn.Conv2d(source.width, target.width, 3, stride=tuple(down), padding=1, bias=False), False
    # Doubling is a transposed convolution; all other ratios are resized.
    if all(2 * a == b for a, b in zip(source.grid, target.grid, strict=True)):
        return nn.ConvTranspose2d(source.width, target.width, 4, stride=2, padding=1, bias=False), False
    return nn.Conv2d(source.width, target.width, 3, padding=1, bias=False), True


def _resize(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average-pooled to a smaller grid, bilinear to a larger one."""
    if all(a >= b for a, b in zip(feature_map.shape[2:], grid, strict=True)):
        return shrink(feature_map, grid)
    return functional.interpolate(feature_map, size=grid, mode="bilinear", align_corners=False)


METHOD = FCFD
