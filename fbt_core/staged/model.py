"""StagedModel: a timm network as stem, four stages and head, equal to the network bit for bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from fbt_core.staged.base import FeatureShape, Parts, Piece, StagedOutput, UnknownStructure
from fbt_core.staged.dealing import STAGES, check_split, deal
from fbt_core.staged.measuring import dry_run, shape_of
from fbt_core.staged.preactivations import find_last_relus, record_input
from fbt_core.staged.registry import find_cut

Part = Literal["stem", "head"] | int


class StagedModel(nn.Module):
    """A network cut into stem, four stages and head; `staged(x)` is `network(x)` to the last bit.

    The network is the only registered child. `shapes` are those of the four stages' outputs, derived by a dry
    run, `entries` those of what enters the stages' first blocks; `width` is that of the pooled feature,
    `classifier_width` that of what enters the classifier (None if the network does not show it). Made by
    `stage`.
    """

    shapes: tuple[FeatureShape, FeatureShape, FeatureShape, FeatureShape]
    entries: tuple[FeatureShape, FeatureShape, FeatureShape, FeatureShape]
    stem_shape: FeatureShape
    width: int
    classifier_width: int | None
    classes: int
    adapter: str

    def __init__(self, network: nn.Module, parts: Parts, image: Tensor, split: str) -> None:
        super().__init__()
        self.network = network
        self.image_size = image.shape[-1]
        self._parts, self._frozen = parts, False
        self._last_relus: dict[str, tuple[str | None, ...]] = {}
        self._keeps_stem = False
        self._measure(image, split)

    def _measure(self, image: Tensor, split: str) -> None:
        """Derive ends of stages, shapes and widths from one image, and check the cut against the network."""
        x = self._parts.stem.run(self.network, image)
        self._piece_shapes = [shape_of(x, self._parts)]
        self._piece_entries = []
        for piece in self._parts.body:
            opened = piece.opening(self.network, x) if piece.opening else x
            self._piece_entries.append(shape_of(opened, self._parts))
            x = piece.run(self.network, x)
            self._piece_shapes.append(shape_of(x, self._parts))
        self._deal(split)
        normed = self.norm(x)
        self._skipped, self._averaged = _pooling(normed, self.shapes[-1])
        self.width = self.pool(normed).shape[1]
        logits = self.head(normed)
        # To the last bit: a cut that is nearly right would be another network.
        if not _same(logits, self.network(image)):
            raise UnknownStructure("the stages one after the other do not give the network's own output")
        self.classes = logits.shape[-1]
        self.classifier_width = _classifier_width(self.network, normed, logits)

    def _deal(self, split: str) -> None:
        """Choose where the stem and the stages end."""
        self.split, self._ends = split, self._ends_of(split)
        self.stem_shape, *stage_shapes = (self._piece_shapes[end] for end in self._ends)
        self.shapes = tuple(stage_shapes)  # type: ignore[assignment]
        self.entries = tuple(self._piece_entries[end] for end in self._ends[:STAGES])  # type: ignore[assignment]

    def _ends_of(self, split: str) -> tuple[int, ...]:
        return deal([shape.grid for shape in self._piece_shapes[1:]], split)

    def view(self, split: str) -> StagedModel:
        """The same parameters in modules and buffers of its own, dealt by its own split.

        What is done to it (statistics, modes, hooks, other BatchNorms) shows nowhere else.
        """
        # Parameters are in the memo, so the copy shares them; modules and buffers are its own.
        twin = copy.deepcopy(self, {id(parameter): parameter for parameter in self.parameters()})
        twin._deal(split)
        return twin

    def freeze(self) -> StagedModel:
        """Eval mode for good (train() changes nothing) and no gradient for any parameter; returns itself."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> StagedModel:
        """Train or eval mode; a frozen network stays in eval mode."""
        return super().train(mode and not self._frozen)

    def forward(self, x: Tensor) -> Tensor:
        """The logits (B, classes), exactly the network's."""
        return self.head(self.norm(self.run(self.stem(x))[-1]))

    def features(self, x: Tensor) -> StagedOutput:
        """All four stage features, the pooled feature and the logits of one pass."""
        return self.features_by_split(x, {self.split})[self.split]

    def features_by_split(self, x: Tensor, splits: Collection[str]) -> dict[str, StagedOutput]:
        """What `features` gives for each way to deal the blocks, all from one pass."""
        # One pass serves all splits: they differ only in which outputs are called stages.
        ends = {split: self._ends_of(split) for split in splits}
        x, start = self.stem(x), self._ends[0]  # where the stem ends, no split changes
        passed = {start: x}
        for end in sorted({end for cut in ends.values() for end in cut[1:]}):
            x = passed[end] = self._run_pieces(x, start, end)
            start = end
        normed = self.norm(x)
        pooled, logits = self.pool(normed), self.head(normed)
        outputs = {}
        for split, (start, *stages) in ends.items():
            outputs[split] = StagedOutput([passed[end] for end in stages], pooled, logits, normed)
            outputs[split].stem = passed[start] if self._keeps_stem else None
        self._add_preactivations(outputs)
        return outputs

    def _add_preactivations(self, outputs: dict[str, StagedOutput]) -> None:
        """What the last ReLUs took in this pass, for the splits that are to keep it."""
        chosen = {split: self._last_relus[split] for split in outputs if split in self._last_relus}
        recorded = {relu: self._recorded(relu) for relus in chosen.values() for relu in relus if relu}
        for split, relus in chosen.items():
            pairs = zip(relus, outputs[split].stages, strict=True)
            outputs[split].preactivations = [recorded[relu] if relu else feature for relu, feature in pairs]

    def keep_preactivations(self) -> None:
        """From now on `features` also gives what a stage is before its last ReLU, if it ends in one."""
        # Looked for once: it takes a pass of its own.
        if self.split not in self._last_relus:
            with dry_run(self.network, self.image_size) as image:
                relus = find_last_relus(self.network, self.stages, self.stem(image))
            self._keep({self.split: relus})

    def keep_for(self, view: StagedModel) -> None:
        """From now on give what a view of this network was asked to keep."""
        self._keep(view._last_relus)
        self._keeps_stem = self._keeps_stem or view._keeps_stem

    def _keep(self, last_relus: dict[str, tuple[str | None, ...]]) -> None:
        # A hook each, however many views ask for the same ReLU.
        hooked = {relu for relus in self._last_relus.values() for relu in relus}
        self._last_relus.update(last_relus)
        for relu in {relu for relus in last_relus.values() for relu in relus if relu} - hooked:
            self.network.get_submodule(relu).register_forward_pre_hook(record_input)

    def keep_stem(self) -> None:
        """From now on `features` also gives what stage 1 takes."""
        self._keeps_stem = True

    def open_stage(self, index: int, x: Tensor) -> Tensor:
        """What enters the first block of stage 0..3, of the shape `entries[index]`; of most what x is."""
        opening = self._parts.body[self._ends[index]].opening
        return opening(self.network, x) if opening else x

    def close_stage(self, index: int, x: Tensor) -> Tensor:
        """The output of stage 0..3 from what enters its first block."""
        start, end = self._ends[index : index + 2]
        first = self._parts.body[start]
        return self._run_pieces((first.rest or first.run)(self.network, x), start + 1, end)

    def classifier_input(self, output: StagedOutput) -> Tensor:
        """What enters the classifier (B, D): the pooled feature, its norm after it, or the class token."""
        return self.network.forward_head(output.normed, pre_logits=True)

    def run(self, x: Tensor, first: int = 0, last: int = STAGES - 1) -> list[Tensor]:
        """The outputs of stages first..last; x is what stage `first` takes."""
        outputs = []
        for index in range(first, last + 1):
            x = self.stages[index](x)
            outputs.append(x)
        return outputs

    def finish(self, last_feature: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled feature (B, width) and the logits (B, classes) from the fourth stage's output."""
        normed = self.norm(last_feature)
        return self.pool(normed), self.head(normed)

    def stem(self, x: Tensor) -> Tensor:
        """What the network does before its first stage."""
        return self._run_pieces(self._parts.stem.run(self.network, x), 0, self._ends[0])

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The four stages as callables."""
        return tuple(Stage(self, index) for index in range(STAGES))

    def norm(self, x: Tensor) -> Tensor:
        """What the network does between its last stage and its pooling."""
        return self._parts.norm(self.network, x)

    def head(self, normed: Tensor) -> Tensor:
        """The logits from the normalised last feature."""
        return self._parts.head(self.network, normed)

    def pool(self, normed: Tensor) -> Tensor:
        """The average over positions (B, width); tokens in front of the patches are dropped."""
        if normed.dim() == 3:
            return normed[:, self._skipped :].mean(1)
        return normed.mean(self._averaged)

    def stage_modules(self, part: Part) -> tuple[nn.Module | nn.Parameter, ...]:
        """The modules and bare parameters that stage 0..3, the "stem" or the "head" uses, none twice."""
        return tuple(_find(self.network, name) for name in self._owned_names(part))

    def stage_parameters(self, part: Part) -> Iterator[nn.Parameter]:
        """The parameters of stage 0..3, of the "stem" or of the "head"."""
        for owned in self.stage_modules(part):
            yield from [owned] if isinstance(owned, nn.Parameter) else owned.parameters()

    def _owned_names(self, part: Part) -> tuple[str, ...]:
        stem, body = self._parts.stem, self._parts.body
        if part == "head":
            return _unowned(self.network, [stem, *body])
        if part == "stem":
            chosen = (stem, *body[: self._ends[0]])
        else:
            chosen = body[self._ends[part] : self._ends[part + 1]]
        return tuple(name for piece in chosen for name in piece.owns)

    def _recorded(self, relu: str) -> Tensor:
        """What the ReLU took in this pass; it is not kept longer, as it holds the pass's graph."""
        # Taken away: it would hold this pass's activations until the next one.
        module = self.network.get_submodule(relu)
        recorded = module.recorded
        del module.recorded
        return recorded

    def _run_pieces(self, x: Tensor, start: int, end: int) -> Tensor:
        for piece in self._parts.body[start:end]:
            x = piece.run(self.network, x)
        return x


class Stage:
    """One of the four stages as a callable, and the shape that it gives."""

    def __init__(self, staged: StagedModel, index: int) -> None:
        self.staged, self.index = staged, index

    def __call__(self, x: Tensor) -> Tensor:
        """The stage's output, in the layout of `shape`."""
        start, end = self.staged._ends[self.index : self.index + 2]
        return self.staged._run_pieces(x, start, end)

    @property
    def shape(self) -> FeatureShape:
        """The shape of the stage's output."""
        return self.staged.shapes[self.index]


def stage(
    network: nn.Module, image_size: int, split: str = "even", parts: Parts | None = None
) -> StagedModel:
    """Cut a network into stem, four stages and head for square images of this size.

    `split` deals the blocks of a network without stages of its own: even 3/3/3/3, ofa 2/2/6/2 (of 12).
    `parts` says what the parts of a network of your own are; those of timm's networks are found.
    Raises UnknownStructure when no adapter can cut it to the last bit.
    """
    # Before the dry run: a wrong name costs no pass.
    check_split(split)
    with dry_run(network, image_size) as image:
        if parts is None:
            name, staged = find_cut(network, image, lambda parts: StagedModel(network, parts, image, split))
        else:
            name, staged = "given", StagedModel(network, parts, image, split)
    # The module's own flag follows the network, which was in eval for the dry run.
    staged.adapter, staged.training = name, network.training
    return staged


def _pooling(normed: Tensor, last: FeatureShape) -> tuple[int, tuple[int, ...]]:
    """How many tokens stand in front of the patches, and over which dimensions a map is averaged."""
    if normed.dim() == 3:
        # More tokens than positions: the rest are class tokens in front.
        return max(normed.shape[1] - math.prod(last.grid), 0), ()
    if normed.dim() != 4:
        raise UnknownStructure(f"its last feature of shape {tuple(normed.shape)} has no positions to average")
    channels_last = last.layout == "nhwc" and normed.shape[1:3] == last.grid
    return 0, (1, 2) if channels_last else (2, 3)


def _classifier_width(network: nn.Module, normed: Tensor, logits: Tensor) -> int | None:
    """The width of what enters the classifier, if timm's `pre_logits` gives just that."""
    try:
        entering = network.forward_head(normed, pre_logits=True)
        # Checked and not believed: some networks normalise or drop between pre_logits and classifier.
        exact = entering.dim() == 2 and _same(network.get_classifier()(entering), logits)
    except (AttributeError, TypeError, RuntimeError):  # another signature, several classifiers, none at all
        return None
    return entering.shape[1] if exact else None


def _same(ours: object, theirs: object) -> bool:
    return isinstance(ours, Tensor) and isinstance(theirs, Tensor) and torch.equal(ours, theirs)


def _find(network: nn.Module, name: str) -> nn.Module | nn.Parameter:
    parent_name, _, last = name.rpartition(".")
    return getattr(network.get_submodule(parent_name), last)


def _unowned(network: nn.Module, pieces: list[Piece]) -> tuple[str, ...]:
    """The largest modules and bare parameters that no piece owns: those of norm and head."""
    owned = {name for piece in pieces for name in piece.owns}

    def collect(module: nn.Module, prefix: str) -> Iterator[str]:
        for name in [
            *(n for n, _ in module.named_parameters(recurse=False)),
            *(n for n, _ in module.named_children()),
        ]:
            full = prefix + name
            if full in owned:
                continue
            child = getattr(module, name)
            if isinstance(child, nn.Module) and any(other.startswith(full + ".") for other in owned):
                yield from collect(child, full + ".")
            else:
                yield full

    return tuple(collect(network, ""))


__all__ = ["Stage", "StagedModel", "stage"]
