"""PAT: small trainable prompts adapt the frozen teacher, one attention over all stages adapts the student.

The student's four stages are cut into regions that attend to each other; what comes out is aligned with the
stages of a prompted pass through the teacher. A prompt is fed with the gap that the step before left, which
checkpoints keep. Prompts stand before the teacher's stages, in Swin after the patch merging that opens one.

The released code has faults that change results. It rereads the memory of a map as tokens without moving
the axes back (teachers with tokens), drops the last token instead of the class token, and adds the position
of the image in its batch to all of its tokens. `variant: corrected` moves the axes, drops class tokens and
adds positions of tokens; `released` does as that code does. For a CNN teacher with a student that has no
class token only the positions differ. The teacher stays in eval mode, also in an epoch's first step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fbt_core.collectives import gather_with_gradient, own_rows
from fbt_core.distributed import world_size
from fbt_core.losses.logits import kl_divergence
from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.methods.parameters import ParameterError
from fbt_core.methods.reviewkd import hierarchical_context
from fbt_core.staged.base import FeatureShape, StagedOutput
from fbt_core.staged.layout import from_map, prefix_of, to_map


def as_map(x: Tensor, shape: FeatureShape, released: bool) -> Tensor:
    """A feature as a map (B, C, H, W); the released code drops its last tokens, not its first ones."""
    if released and shape.layout == "tokens":
        return x[:, : math.prod(shape.grid)].transpose(1, 2).unflatten(2, shape.grid)
    return to_map(x, shape)


def stretch(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map on another grid, each position the one that it falls on."""
    if feature_map.shape[2:] == grid:
        return feature_map
    return functional.interpolate(feature_map, grid, mode="nearest")


# ---------------------------------------------------------------- the student's side


class RegionEmbedding(nn.Module):
    """A stage's map (B, C, H, W) as `regions` x `regions` tokens (B, regions^2, width).

    A convolution whose kernel is a region; a grid that regions do not divide is stretched first.
    """

    def __init__(self, shape: FeatureShape, width: int, regions: int) -> None:
        super().__init__()
        # At least one position a region: a small grid is stretched, and regions repeat positions.
        kernel = tuple(math.ceil(max(side, regions) / regions) for side in shape.grid)
        self.grid = (regions * kernel[0], regions * kernel[1])
        self.conv = nn.Conv2d(shape.width, width, kernel, stride=kernel)

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.conv(stretch(feature_map, self.grid)).flatten(2).transpose(1, 2)


class RegionAttention(nn.Module):
    """RAA: one attention over the regions of all stages, (B, regions^2, width) of each stage in and out.

    Query, key and value are the student's; there is no output layer and no residual.
    """

    def __init__(
        self, shapes: Sequence[FeatureShape], width: int, heads: int, regions: int, released: bool
    ) -> None:
        super().__init__()
        self.shapes, self.heads, self.released = shapes, heads, released
        self.embeddings = nn.ModuleList(RegionEmbedding(shape, width, regions) for shape in shapes)
        self.norm = nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        maps = [as_map(x, shape, self.released) for x, shape in zip(stages, self.shapes, strict=True)]
        tokens = [embed(x) for embed, x in zip(self.embeddings, maps, strict=True)]
        # All stages in one sequence, so that regions of one stage attend to those of the others.
        normed = self.norm(torch.cat(tokens, dim=1))
        key, value = self.key_value(normed).chunk(2, dim=2)
        positions = self._positions(normed)
        inputs = (self.query(normed) + positions, key + positions, value)
        # torch's own attention wants heads in the second dimension.
        query, key, value = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in inputs)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return mixed.chunk(len(stages), dim=1)

    def _positions(self, tokens: Tensor) -> Tensor:
        """Sines of the tokens' positions (1, N, width); as released of the images' rows in the batch."""
        images, count, width = tokens.shape
        if not self.released:
            return sine_table(torch.arange(count, device=tokens.device), width).to(tokens.dtype)[None]
        return sine_table(own_rows(images, tokens.device), width).to(tokens.dtype)[:, None]


def sine_table(positions: Tensor, width: int) -> Tensor:
    """Row by position (N, width): entry 2i is sin(position 10000^(-2i / width)), entry 2i + 1 its cosine."""
    # In float64: angles of large positions lose digits in float32.
    even = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)
    angles = positions[:, None] * 10000 ** (-even / width)
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)


class ToMap(nn.Module):
    """A map (B, C, h, w) at another width and on another grid: stretched, BatchNorm, 1x1 convolution."""

    def __init__(self, width: int, target: FeatureShape) -> None:
        super().__init__()
        self.grid = target.grid
        self.bn, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, target.width, 1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.conv(self.bn(stretch(feature_map, self.grid)))


class ToTokens(nn.Module):
    """Tokens (B, n, d) as those of a teacher with tokens, in the form of a map (B, C, H, W).

    BatchNorm whose channels are the n tokens, linear d -> C, BatchNorm over the C channels, linear n -> H W.
    """

    def __init__(self, tokens: int, width: int, target: FeatureShape) -> None:
        super().__init__()
        self.grid = target.grid
        self.bn1, self.linear1 = nn.BatchNorm1d(tokens), nn.Linear(width, target.width)
        self.bn2 = nn.BatchNorm1d(target.width)
        self.linear2 = nn.Linear(tokens, math.prod(target.grid))
        for linear in (self.linear1, self.linear2):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        channels = self.bn2(self.linear1(self.bn1(tokens)).transpose(1, 2))
        return self.linear2(channels).unflatten(2, self.grid)


class Aligner(nn.Module):
    """A stage's regions (B, regions^2, width) as the teacher's map (B, C, H, W), in its network's own way."""

    def __init__(self, width: int, regions: int, target: FeatureShape) -> None:
        super().__init__()
        self.regions = regions
        self.from_regions = target.layout != "nchw"
        # Teachers with maps keep the regions' order in the plane; others mix regions by a linear layer.
        if self.from_regions:
            self.layers = ToTokens(regions**2, width, target)
        else:
            self.layers = ToMap(width, target)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.from_regions:
            return self.layers(tokens)
        return self.layers(tokens.transpose(1, 2).unflatten(2, (self.regions, self.regions)))


# ---------------------------------------------------------------- the teacher's side


class Gate(nn.Module):
    """A map (B, C, H, W) as one weight per channel (B, C, 1, 1): average, squeezed layer, ReLU, sigmoid."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        # Narrow stages of small networks would be squeezed to nothing.
        inner = max(1, width // reduction)
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, feature_map: Tensor) -> Tensor:
        pooled = feature_map.mean(dim=(2, 3), keepdim=True)
        return torch.sigmoid(self.up(functional.relu(self.down(pooled))))


class Stack(nn.Module):
    """Convolutions 1x1, 5x5 and 1x1, a gate that replaces the map (as released), a last 1x1: (B, C, 1, 1)."""

    def __init__(self, width_in: int, width: int, groups: int, depthwise: bool, reduction: int) -> None:
        super().__init__()
        of_second = width if depthwise else 1
        self.conv1 = nn.Conv2d(width_in, width, 1, groups=groups)
        self.conv2 = nn.Conv2d(width, width, 5, padding=2, groups=of_second)
        self.conv3 = nn.Conv2d(width, width, 1)
        self.gate = Gate(width, reduction)
        self.conv4 = nn.Conv2d(width, width, 1, groups=groups)

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.conv4(self.gate(self.conv3(self.conv2(self.conv1(feature_map)))))


class PromptBlock(nn.Module):
    """What is added to a teacher's feature as it enters a stage; nothing at the start, as `beta` is 0.

    `entry` is the feature's shape, `left` that of the stage's output and of the gap (B, C, H, W) that the
    step before left there. Widths that the groups do not divide take their greatest common divisor.
    """

    def __init__(
        self, entry: FeatureShape, left: FeatureShape, groups: int, reduction: int, released: bool
    ) -> None:
        super().__init__()
        self.shape, self.released = entry, released
        # gcd: a convolution's groups have to divide its width.
        width, groups = entry.width, math.gcd(entry.width, groups)
        self.fusion = Stack(2 * width, width, 1, False, reduction)
        self.prompt = Stack(width, width, groups, True, reduction)
        # Zero: at the start the prompted teacher is the teacher itself.
        self.beta = nn.Parameter(torch.zeros(1))
        is_same = (left.width, left.grid) == (width, entry.grid)
        self.aligner = nn.Identity() if is_same else ToMap(left.width, entry)

    def forward(self, x: Tensor, gap: Tensor | None) -> Tensor:
        """The feature in its own layout, with the prompt."""
        feature_map = as_map(x, self.shape, self.released)
        prompted_by = feature_map
        # Without a gap (first step, or another batch size) the feature prompts itself.
        if gap is not None:
            prompted_by = self.fusion(torch.cat((feature_map, self.aligner(gap)), dim=1))
        prompted = feature_map + self.beta * self.prompt(prompted_by)
        # Reproduced: the released code reads the map's memory as if it were tokens.
        if self.released and self.shape.layout != "nchw":
            return self._reread(prompted, x)
        return from_map(prompted, self.shape, prefix_of(x, self.shape))

    def _reread(self, prompted: Tensor, x: Tensor) -> Tensor:
        """The map's memory as tokens with the axes left as they are; the last tokens pass by."""
        if self.shape.layout == "nhwc":
            return prompted.reshape(x.shape)
        count = math.prod(self.shape.grid)
        return torch.cat((prompted.reshape(len(x), count, -1), x[:, count:]), dim=1)


class Gap(nn.Module):
    """What a step leaves to the next one: student minus teacher at one stage (B, C, H, W), without gradient.

    Each process keeps the rows of its own images; a state holds those of all of them, in the whole batch's
    order. It is no buffer of a module with parameters, because the EMA would average it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0), persistent=False)

    def of(self, images: int) -> Tensor | None:
        """The gap for a batch of so many images; None in the first step, or if the one before was larger."""
        # Rows belong to images of the step before: another number of them fits no batch.
        return self.rows if len(self.rows) == images else None

    def leave(self, rows: Tensor) -> None:
        # Detached: the next step must not reach back into this one's graph.
        self.rows = rows.detach()

    def get_extra_state(self) -> Tensor:
        """The whole batch's gap: every process has to ask for it."""
        return gather_with_gradient(self.rows) if len(self.rows) else self.rows

    def set_extra_state(self, state: Tensor) -> None:
        """Take this process's own rows."""
        # Rows of the whole batch come from a checkpoint of any number of processes.
        mine = own_rows(len(state) // world_size(), state.device)
        self.rows = (state[mine] if len(state) else state).to(self.rows.device)


class PAT(Method):
    """Cross-entropy, KL, averages of maps at every stage of the prompted teacher, KL of the two teachers.

    Prompts, attention and aligners are trained with the student; the gradient of the stages' terms passes
    through the frozen teacher into the prompts.
    """

    unused_parameters = True  # what a gap enters by, in the first step
    needs_whole_batch = "keeps the gap that each image of a batch leaves to the next batch"

    def build_extras(self) -> dict[str, nn.Module]:
        s, released = self.settings, self.settings.variant == "released"
        # Heads divide the width, and sines come in pairs with cosines.
        if s.width % (2 * s.heads):
            raise ParameterError(f"width {s.width} is no multiple of twice the heads ({s.heads})")
        # The prompted pass begins behind the stem, so the shared pass has to keep what the stem gave.
        self.teacher.keep_stem()
        extras: dict[str, nn.Module] = {
            "attention": RegionAttention(self.student.shapes, s.width, s.heads, s.regions, released)
        }
        for i, (entry, left) in enumerate(zip(self.teacher.entries, self.teacher.shapes, strict=True)):
            extras[f"aligner{i + 1}"] = Aligner(s.width, s.regions, left)
            extras[f"prompt{i + 1}"] = PromptBlock(entry, left, s.groups, s.reduction, released)
            extras[f"gap{i + 1}"] = Gap()
        return extras

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        s = self.settings
        prompted = self._run_prompted(teacher.stem)
        # Prompts adapt the teacher's features, and must not move its own answers.
        regularisation = kl_divergence(prompted.logits, teacher.logits, 1.0)
        return {
            "labels": s.label_weight * self.label_loss(student.logits, batch),
            "logits": s.logit_weight * kl_divergence(student.logits, teacher.logits, s.temperature),
            "features": s.feature_weight * self._compare(student, prompted),
            "regularisation": s.regularisation_weight * regularisation,
        }

    def _run_prompted(self, x: Tensor) -> StagedOutput:
        """The teacher's stages from what its stem gave, each with its prompt; the gradient passes through."""
        stages: list[Tensor] = []
        for i in range(4):
            x = self.teacher.open_stage(i, x)
            # The prompt enters before the stage's first block, behind what changes the grid.
            x = self.extras[f"prompt{i + 1}"](x, self.extras[f"gap{i + 1}"].of(len(x)))
            x = self.teacher.close_stage(i, x)
            stages.append(x)
        pooled, logits = self.teacher.finish(x)
        return StagedOutput(stages, pooled, logits)

    def _compare(self, student: StagedOutput, prompted: StagedOutput) -> Tensor:
        """The sum over the stages; each leaves its gap to the next step."""
        released, losses = self.settings.variant == "released", []
        for i, regions in enumerate(self.extras["attention"](student.stages)):
            learner = self.extras[f"aligner{i + 1}"](regions)
            source = as_map(prompted.stages[i], self.teacher.shapes[i], released)
            losses.append(hierarchical_context(learner, source))
            # After the loss: this step has used the gap of the one before.
            self.extras[f"gap{i + 1}"].leave(learner - source)
        return torch.stack(losses).sum()


METHOD = PAT
