"""Small trainable modules that several methods add to the student and throw away after training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fbt_core.losses.logits import entropy_weight, standardise
from fbt_core.methods.parameters import ParameterError, Parameters
from fbt_core.staged import StagedModel
from fbt_core.staged.base import FeatureShape, StagedOutput
from fbt_core.staged.layout import to_map

Grid = tuple[int, int]


class Temperature(nn.Module):
    """A temperature, learnable on a log scale and kept between two bounds, as a method's parameters say."""

    def __init__(self, settings: Parameters) -> None:
        super().__init__()
        self.bounds = (math.log(settings.temperature_min), math.log(settings.temperature_max))
        # On a log scale a step changes the temperature by a share, wherever it stands.
        initial = torch.tensor(math.log(settings.temperature_initial))
        self.logarithm = nn.Parameter(initial, requires_grad=settings.learnable_temperature)

    def forward(self) -> Tensor:
        """The temperature, a scalar; a value that left the bounds is put back so that it can move again."""
        # Outside the graph: inside, clamp would cut the gradient off at a bound for good.
        with torch.no_grad():
            self.logarithm.clamp_(min=self.bounds[0], max=self.bounds[1])
        return self.logarithm.exp()


class Aligned(nn.Module):
    """Brings the features of two unlike stages to maps of one grid and width.

    The learner's feature becomes a map (class token dropped) and gets the source's width by a convolution
    whose stride is the ratio of the grids (a patch embedding); if that ratio is not whole it is pooled.
    The source's feature is only reshaped, and pooled if its grid is the larger one.
    """

    def __init__(self, learner: FeatureShape, source: FeatureShape) -> None:
        super().__init__()
        self.shapes, self.grid = (learner, source), common_grid(learner.grid, source.grid)
        # A stride has to be a whole number; other grids are pooled first.
        whole = all(large % small == 0 for large, small in zip(learner.grid, self.grid, strict=True))
        self.pools = not whole
        ratio = (1, 1)
        if whole:
            ratio = (learner.grid[0] // self.grid[0], learner.grid[1] // self.grid[1])
        self.embedding = nn.Conv2d(learner.width, source.width, ratio, ratio, bias=False)
        # Linear gain: no activation follows.
        nn.init.kaiming_normal_(self.embedding.weight, mode="fan_in", nonlinearity="linear")

    def forward(self, learner: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Two features in their own layouts -> two maps (B, C, H, W) of the source's width."""
        learner_map, source_map = to_map(learner, self.shapes[0]), to_map(source, self.shapes[1])
        if self.pools:
            learner_map = shrink(learner_map, self.grid)
        return self.embedding(learner_map), shrink(source_map, self.grid)


def common_grid(first: Grid, second: Grid) -> Grid:
    """The smaller of two grids, side by side."""
    return min(first[0], second[0]), min(first[1], second[1])


def shrink(feature_map: Tensor, grid: Grid) -> Tensor:
    """A map (B, C, H, W) average-pooled to a grid; a whole ratio takes the pooling that GPUs do exactly."""
    height, width = feature_map.shape[2:]
    if (height, width) == grid:
        return feature_map
    # avg_pool2d is the same for a whole ratio, and its backward is deterministic on GPUs.
    if height % grid[0] == 0 and width % grid[1] == 0:
        return functional.avg_pool2d(feature_map, (height // grid[0], width // grid[1]))
    return functional.adaptive_avg_pool2d(feature_map, grid)


def feature_width(network: StagedModel, feature: str) -> int:
    """The width of the feature that stands for an image: what enters the classifier, or the pooled one."""
    if feature == "pooled":
        return network.width
    if network.classifier_width is None:
        name = type(network.network).__name__
        raise ParameterError(f"{name} does not show what enters its classifier", hint="set feature: pooled")
    return network.classifier_width


def image_feature(network: StagedModel, output: StagedOutput, feature: str) -> Tensor:
    """The feature (B, D) that stands for an image: what enters the classifier, or the pooled one."""
    if feature == "pooled":
        return output.pooled
    return network.classifier_input(output)


def logits_to_compare(
    settings: Parameters, student: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Student's and teacher's logits and the images' weights, as KD's and DKD's options say.

    `standardise` is LSKD's, `image_weight: entropy` EA-KD's, whose entropies are those of the raw logits.
    """
    weight = None
    # Before the logits are standardised: EA-KD's entropies are those of the raw ones.
    if settings.image_weight == "entropy":
        weight = entropy_weight(student, teacher, settings.entropy_temperature, settings.entropy_bound)
    if settings.standardise:
        student, teacher = standardise(student), standardise(teacher)
    return student, teacher, weight


def rectified_features(network: StagedModel) -> tuple[bool, ...]:
    """Whether each stage's output, and last the normalised feature, is never negative (it ends in a ReLU).

    Read from one random image of a generator of its own, in eval mode.
    """
    weight = next(network.parameters())
    # A generator of its own: looking at a network must not change what is drawn later.
    image = torch.randn(
        1, 3, network.image_size, network.image_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad(), evaluating(network):
        stages = network.run(network.stem(image.to(weight.device, weight.dtype)))
        return tuple(bool((feature >= 0).all()) for feature in [*stages, network.norm(stages[-1])])


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards every module has the mode it had."""
    # Each module's own mode: parts of a method are in eval while others train.
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
