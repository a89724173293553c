"""Distil from Python: any two networks, any method, a DataLoader of your own, no YAML.

    from fbt_core import distil
    result = distil("resnet18", teacher, train_loader, test_loader, method="fbt", folder="my-student")
    result.network, result.top1

The loop, the learner, the checkpoints and the results are those of every run here; only the batches come
from elsewhere. What the caller leaves out is as config/methods.yaml and config/recipes.yaml state it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pydantic import ValidationError
from torch import nn
from torch.utils.data import DataLoader

from fbt_core import distributed
from fbt_core.batch_division import check_accumulation, check_batch
from fbt_core.data.order import seed_everything
from fbt_core.distributed import Vote
from fbt_core.errors import UserError
from fbt_core.learner import Learner
from fbt_core.loader_stream import LoaderStream, Seen, look_at
from fbt_core.methods.base import Context
from fbt_core.methods.registry import build_method, method_facts
from fbt_core.run_files import SPEC_FILE, WEIGHTS_FILE, read_json
from fbt_core.run_folder import RunFolder
from fbt_core.spec import (
    ENGINE_REVISION,
    FUSION_REVISION,
    DatasetSpec,
    ExecutionSettings,
    Family,
    MethodSpec,
    NetworkSpec,
    RecipeSpec,
    RunSpec,
    parse_spec,
)
from fbt_core.staged import StagedModel, build_network, stage
from fbt_core.teacher import Teacher
from fbt_core.train import BUILD, StopRequest, reporting_errors, to_device, train_to_the_end
from fbt_core.weights import WeightSources, fill, load_weights, read_weights, state_sha256

PACKAGED = Path(__file__).with_name("recipes.yaml")  # setup.py puts it into a wheel
RECIPES = PACKAGED
if not RECIPES.exists():
    RECIPES = Path(__file__).parents[1] / "config" / "recipes.yaml"
AS_THEY_COME = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""Both networks see the caller's images unchanged."""
NAME = "own_data"
Network = str | nn.Module | StagedModel


@dataclass(frozen=True)
class Distilled:
    """What came out: the student with the weights of its best epoch, in eval mode; top-1 in percent."""

    network: nn.Module
    top1: float
    last_top1: float
    history: list[dict[str, Any]]
    metrics: dict[str, Any]


def distil(
    student: Network,
    teacher: Network | None,
    train: DataLoader[Any],
    test: DataLoader[Any],
    *,
    method: str = "fbt",
    folder: Path | str | None = None,
    classes: int | None = None,
    epochs: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    like: str = "cifar100",
    families: Mapping[str, Family] | None = None,
    seed: int = 0,
    settings: ExecutionSettings | None = None,
) -> Distilled:
    """Train a student on batches (images, labels) of your own; returns it with its scores.

    A name is a timm network: a student's weights are random, a teacher's are those of its tag. `parameters`
    and `recipe` change what is stated for the data set `like`; batch size and augmentation are the loader's.
    `folder` keeps results and checkpoints (the same call goes on at the last epoch's end); None keeps none.
    `families` says what a network is ({"student": "cnn"}) if its blocks do not show it. What does not fit is
    a UserError.
    """
    settings = settings or ExecutionSettings()
    group = distributed.start(settings)
    seen, chosen = look_at(train, test, classes), _method_spec(method, like, parameters or {})
    split = str(chosen.parameters.get("split", "even"))
    staged = {"student": cut(student, seen, split, seed, teaches=False)}
    if method_facts(method).needs_teacher and teacher is not None:
        staged["teacher"] = cut(teacher, seen, split, seed, teaches=True)
    kinds = {role: (families or {}).get(role) or family_of(network) for role, network in staged.items()}
    networks = {role: _network_spec(network, kinds[role], role) for role, network in staged.items()}
    spec = RunSpec(
        dataset=_dataset_spec(seen),
        student=networks["student"],
        teacher=networks.get("teacher"),
        method=chosen,
        recipe=_recipe(like, kinds["student"], epochs, seen.batch, recipe or {}),
        seed=seed,
        engine_revision=ENGINE_REVISION,
    )
    with TemporaryDirectory() if folder is None else nullcontext(folder) as kept:
        results = OwnFolder(Path(kept), spec)
        if not results.complete:
            stream = LoaderStream(spec, settings, train, test, group)
            _train(settings, staged, seen, results, stream)
        return results.result(staged["student"].network)


def _train(
    settings: ExecutionSettings,
    staged: Mapping[str, StagedModel],
    seen: Seen,
    folder: OwnFolder,
    stream: LoaderStream,
) -> None:
    """The product's own training, from two networks to published results."""
    spec, group, network = folder.spec, stream.group, staged.get("teacher")
    seed_everything(spec.seed, BUILD, 1)
    # Methods that remember images count all of them, also those that an epoch drops.
    context = replace(Context.of(spec, None), train_images=seen.numbers)
    method = build_method(spec.method, staged["student"], network, context)
    # Every refusal before the folder is opened: a failed call leaves nothing behind.
    check_batch(spec.recipe, group, settings.gradient_accumulation)
    check_accumulation(method, spec.recipe, settings.gradient_accumulation)
    stream.check(method)
    method = to_device(method, settings, group)
    with reporting_errors([folder], group):
        folder.open()
        vote = Vote()
        learner = EpochLearner(spec, settings, group, method, folder)
        learner.resume(vote)
        teacher = Teacher.of(spec, network)
        train_to_the_end([learner], stream, teacher, stream.test_labels(), vote, StopRequest())
    # The loop notes an error and goes on with other runs; here there is none.
    if folder.error:
        raise folder.error


class EpochLearner(Learner):
    """Saves at epochs' ends only: within an epoch nobody knows which of the caller's batches come next."""

    @property
    def checkpoint_due(self) -> bool:
        """At every epoch's end, and never before it."""
        return self.state.step == 0

    def save(self, finish: bool) -> None:
        """Write a checkpoint if an epoch has just ended; else only wait for the one before, if asked."""
        if self.state.step == 0:
            super().save(finish)
        elif finish:
            self.writer.finish()


class OwnFolder(RunFolder):
    """The caller's folder. Its results have no run id: no spec says what the caller's batches hold."""

    def __init__(self, path: Path, spec: RunSpec) -> None:
        super().__init__(path.parent, spec)
        self.path = path
        # The spec holds all but the caller's images: another training must not be continued here.
        before = path / SPEC_FILE
        if before.exists() and parse_spec(before.read_text()) != spec:
            hint = "name another folder, or call it with the settings of spec.json"
            raise UserError("holds another training", where=str(path), hint=hint)

    def publish(self, weights: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """The results as a run leaves them, but without a run id."""
        super().publish(weights, {**metrics, "run": None})

    def result(self, network: nn.Module) -> Distilled:
        """What lies in the folder, and the network with its weights."""
        metrics = read_json(self.path / "metrics.json")
        assert metrics is not None
        fill(network, read_weights(self.path / WEIGHTS_FILE), where=str(self.path), new_head=False)
        best, last = metrics["best"]["top1"], metrics["last"]["top1"]
        return Distilled(network.eval(), best, last, metrics["history"], metrics)


# ---------------------------------------------------------------- networks


def cut(network: Network, seen: Seen, split: str, seed: int, teaches: bool) -> StagedModel:
    """A network in stages: built by timm if it is a name, cut if it is not cut yet."""
    if isinstance(network, str):
        seed_everything(seed, BUILD, 0)
        spec = NetworkSpec(architecture="named", family="cnn", create=network.split(".")[0], options={},
                           weights=f"timm:{network}" if teaches else "none", **AS_THEY_COME)  # fmt: skip
        network = build_network(spec, seen.classes, seen.size)
        load_weights(network, spec, WeightSources(Path(), {}), new_head=False)
    if not isinstance(network, StagedModel):
        network = stage(network, seen.size, split)
    # Before training: a wrong number of classes would end in an index error on the device.
    if network.classes != seen.classes:
        role, hint = "student", None
        if teaches:
            role, hint = "teacher", "train it on these classes first, e.g. with method='scratch'"
        what = f"has {network.classes} classes, the data {seen.classes}"
        raise UserError(what, where=f"distil: {role}", hint=hint)
    return network


def family_of(staged: StagedModel) -> Family:
    """cnn, msa or mlp, by what the blocks are made of: attention between tokens; maps; or neither."""
    # By names of classes: timm's attention modules have no common base.
    names = [type(module).__name__ for module in staged.network.modules()]
    if any("Attention" in name or name.endswith(("Attn", "MHSA")) for name in names):
        return "msa"
    return "cnn" if staged.shapes[-1].layout == "nchw" else "mlp"


def _network_spec(staged: StagedModel, family: Family, role: str) -> NetworkSpec:
    """What a spec can say of a network that came as an object; a teacher's weights by their sha256."""
    kind = type(staged.network)
    # A valid key of a spec from whatever a class is called.
    key = re.sub(r"[^a-z0-9_]+", "_", kind.__name__.lower())[:40].strip("_") or role
    weights = "none"
    if role == "teacher":
        weights = f"file:{state_sha256(staged.network)}"
    return NetworkSpec(
        architecture=key if key[0].isalpha() else f"n{key}"[:40],
        family=family,
        create=f"{kind.__module__}:{kind.__qualname__}",
        options={},
        weights=weights,
        **AS_THEY_COME,
    )


# ---------------------------------------------------------------- stated values


def _dataset_spec(seen: Seen) -> DatasetSpec:
    """The caller's data as far as a spec can say it: how many images of which size, not which."""
    return DatasetSpec(
        name=NAME,
        loader="image_folder",
        variant="full",
        classes=seen.classes,
        train_images=seen.train_images,
        test_images=seen.test_images,
        image_size=seen.size,
        **AS_THEY_COME,
    )


def _method_spec(method: str, like: str, changes: Mapping[str, Any]) -> MethodSpec:
    """A method with the values of config/methods.yaml and these changes; the method itself checks them."""
    facts = method_facts(method)
    known = facts.parameters
    # In the parameter's own type, so that 1 and 1.0 give one spec.
    changed = {name: known[name].typed(value) if name in known else value for name, value in changes.items()}
    return MethodSpec(
        name=method,
        parameters=facts.in_spec({**facts.values_for(like, ()), **changed}),
        revision=facts.revision,
        fusion_revision=FUSION_REVISION if facts.uses_fusion else None,
    )


@cache
def _recipes() -> dict[str, Any]:
    """The recipes of config/recipes.yaml in the reading `ofa`: data set -> family -> recipe."""
    content: dict[str, Any] = yaml.safe_load(RECIPES.read_text())["ofa"]
    return content


def _recipe(
    like: str, family: Family, epochs: int | None, batch: int, changes: Mapping[str, Any]
) -> RecipeSpec:
    """The stated recipe with these changes; a mapping (optimizer: {...}) changes the keys it names only."""
    if like not in _recipes():
        raise UserError(f"there are no recipes for '{like}'", where="like", given=like, choices=_recipes())
    # A copy: recipes are read once and kept for later calls.
    content = dict(_recipes()[like][family])
    # What was done to the images has been done by the loader.
    content["augmentation"] = {"flip": 0.0, **dict.fromkeys(
        ("crop_scale", "color_jitter", "rand_augment", "mixup", "cutmix", "erasing"))}  # fmt: skip
    changes = {**changes, "batch_size": batch}
    if epochs is not None:
        changes["epochs"] = epochs
    for name, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(content.get(name), Mapping)
        content[name] = {**content[name], **value} if nested else value
    try:
        return RecipeSpec.model_validate_json(json.dumps(content))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise UserError("; ".join(faults), where="recipe") from None
