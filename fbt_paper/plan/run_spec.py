"""From the settings of a cell to the spec of its run: one pure function, `run_specs`.

Every function here takes the configuration and settings and returns parts of a spec, or raises ConfigError
with all problems it has found; nothing is kept between calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fbt_core.errors import nearest
from fbt_core.spec import (
    ENGINE_REVISION,
    FUSION_REVISION,
    CropSpec,
    DatasetSpec,
    MethodSpec,
    NetworkSpec,
    RecipeSpec,
    RunSpec,
    Value,
)
from fbt_paper.config.load import Config, validate
from fbt_paper.config.problems import Collector, ConfigError, Problem
from fbt_paper.config.records import ChainSettings
from fbt_paper.plan.settings import Setting, Settings


class Source(NamedTuple):
    """A network in its role, and the runs that make its weights (none if the weights exist already)."""

    network: NetworkSpec
    runs: tuple[RunSpec, ...] = ()


def run_specs(config: Config, settings: Settings, seed: int) -> tuple[RunSpec, ...]:
    """The run of these settings as the last item, after the runs whose weights it reads.

    Raises ConfigError with the problems of all its parts.
    """
    collect = Collector()
    # Not collected: without its data set nothing else of a run can be looked up.
    dataset = dataset_of(config, settings)
    method = collect.try_(method_of, config, settings, dataset)
    student: Source | None = collect.try_(student_of, config, settings, dataset, seed)
    teacher: Source | None = None
    # A table's base may set a teacher for rows that train without one; it must not change their ids.
    if method and config.methods[method.name].needs_teacher:
        teacher = collect.try_(teacher_of, config, settings, dataset, seed)
    recipe = None
    # After the student: the recipe is that of its family.
    if student:
        recipe = collect.try_(recipe_of, config, settings, dataset, student.network.family)
    collect.finish()

    assert student and method and recipe  # else collect has raised
    # Both may name the same run, e.g. a phase that starts from its own teacher.
    if teacher and teacher.network.weights == student.network.weights:
        weights = student.network.weights.replace(":", " ")
        raise settings.required("teacher").error(
            f"the teacher is the student's own {weights}; a pair needs two"
        )
    run = RunSpec(
        dataset=students_part(config, dataset_spec(config, dataset)),
        student=student.network,
        teacher=teacher.network if teacher else None,
        method=method,
        recipe=recipe,
        seed=seed,
        engine_revision=ENGINE_REVISION,
        test_crop=test_crop_of(config, student.network.architecture, dataset),
    )
    # The run itself last: whoever asks takes [-1], and a plan that is trained in this order never waits.
    return (*student.runs, *(teacher.runs if teacher else ()), run)


# ---------------------------------------------------------------- networks


def student_of(config: Config, settings: Settings, dataset: str, seed: int) -> Source:
    """The student: untrained, with published weights, or as the run before it in a chain leaves it (MTPD)."""
    key, weights = settings.required("student").value, settings.values.get("student_weights")
    if "start" not in settings.values:
        return Source(_published(config, key, dataset, weights))
    start = settings.values["start"]
    if weights:
        raise weights.error("the student starts from the run in `start`; keep one of the two")
    before = run_specs(config, settings.of_chain(start, ("dataset", "student")), seed)
    if before[-1].student.architecture != key:
        raise start.error(f"a phase goes on with the same student, '{key}', not another one")
    return _trained(before)


def _published(config: Config, key: str, dataset: str, weights: Setting | None) -> NetworkSpec:
    """The network with timm's weights, if a table asks for them; a network of another size has none."""
    network = network_spec(config, key, dataset)
    if weights is None:
        return network
    published = weights.value.removeprefix("timm:").partition(".")[0]
    if published != config.architectures[key].create:
        message = f"these are weights of {published}, but '{key}' is {config.architectures[key].create}"
        raise weights.error(f"{message}; take a tag of that network")
    if key in config.scale.architectures:
        return network
    return network.model_copy(update={"weights": weights.value})


def teacher_of(config: Config, settings: Settings, dataset: str, seed: int) -> Source:
    """The teacher: the student of another run (TAKD), or a network as datasets.yaml says.

    That is timm's weights, a run that fine-tunes them, a run from scratch, or a file of the user's own.
    """
    teacher = settings.required("teacher")
    if isinstance(teacher.value, ChainSettings):
        return _trained(run_specs(config, settings.of_chain(teacher, ("dataset",)), seed))
    key, entry = teacher.value, config.datasets[dataset]
    network = network_spec(config, key, dataset)

    # A file of the user's own takes the place of every other way.  # words: allow
    file = config.main.teacher_files.get(dataset, {}).get(key)
    if file:
        stated = {"mean": file.mean, "std": file.std} if file.mean else {}
        return Source(network.model_copy(update={"weights": f"file:{file.sha256}", **stated}))
    if entry.teachers == "from_scratch":
        return _trained((_run_alone(config, network, dataset, network.family, seed),))

    pretrained = config.architectures[key].pretrained
    if pretrained is None:
        raise teacher.error(
            f"'{key}' cannot teach on {dataset}: architectures.yaml has no `pretrained` for it"
        )
    weights = {"weights": f"timm:{pretrained.tag}"}
    # Weights used as they are want the input they were trained with; fine-tuned ones get the data set's.
    if entry.teachers == "pretrained":
        stated = {"mean": pretrained.mean, "std": pretrained.std}
        return Source(network.model_copy(update={**weights, **stated}))
    return _trained((_run_alone(config, network.model_copy(update=weights), dataset, "teacher", seed),))


def network_spec(config: Config, key: str, dataset: str) -> NetworkSpec:
    """An untrained network, in the size that the scale gives it."""
    entry, data = config.architectures[key], config.datasets[dataset]
    twin, changes = config.scale.architectures.get(key), dict[str, Value]()
    if config.scale.recipes is None:  # else its recipes are its own, and what a reading asks does not count
        changes = entry.options_by_recipes.get(config.main.recipes, {}).get(data.recipes, {})
    return NetworkSpec(
        architecture=key,
        family=entry.family,
        create=(twin or entry).create,
        options=twin.options if twin else {**entry.options, **changes},
        weights="none",
        mean=data.mean,
        std=data.std,
    )


def test_crop_of(config: Config, key: str, dataset: str) -> CropSpec | None:
    """The crop of a student's test images; None if the dataset does not ask for the network's own."""
    if config.datasets[dataset].test_crop is None:
        return None
    return config.architectures[key].test_crop


def _run_alone(config: Config, network: NetworkSpec, dataset: str, role: str, seed: int) -> RunSpec:
    """The run that trains a teacher, for students of this seed."""
    stated, data = find_recipe(config, dataset, role), dataset_spec(config, dataset)
    changes, of_data = scale_changes(config, "teacher_recipes", role), dataset_changes(config, dataset)
    # The data set's changes once more, last: no batch of a scale fits a data set that is smaller.
    recipe = _changed(_changed(stated.value, changes), of_data)
    check_batch(data, recipe, (changes | of_data).get("batch_size", stated))
    # docs/claims.md says what the intervals leave out if one teacher serves all seeds of a student.
    if config.main.teacher_seeds != "each":
        seed = planned_seeds(config)[0]
    return RunSpec(
        dataset=data,
        student=network,
        teacher=None,
        method=method_spec(config, "scratch", dataset, {}),
        recipe=recipe,
        seed=seed,
        engine_revision=ENGINE_REVISION,
        test_crop=test_crop_of(config, network.architecture, dataset),
    )


def _trained(runs: tuple[RunSpec, ...]) -> Source:
    """The last run's student with the weights that the run gives it."""
    network = runs[-1].student.model_copy(update={"weights": f"run:{runs[-1].id}"})
    return Source(network, runs)


# ---------------------------------------------------------------- dataset and method


def dataset_of(config: Config, settings: Settings) -> str:
    """Key of the dataset, or of the one that stands in for it at this scale."""
    networks = (settings.values.get(name) for name in ("student", "teacher"))
    names = [network.value for network in networks if network and isinstance(network.value, str)]
    return stand_in(config, settings.required("dataset").value, names)


def stand_in(config: Config, dataset: str, networks: Iterable[str]) -> str:
    """The dataset that a run with these networks trains on at this scale."""
    if set(networks) & set(config.scale.kept_for):
        return dataset
    return config.scale.datasets.get(dataset, dataset)


def dataset_spec(config: Config, key: str) -> DatasetSpec:
    """What a run sees of a dataset: its entry in datasets.yaml without title, teachers and recipes."""
    entry = config.datasets[key]
    # Nothing else: what a data set is called or who teaches on it must change no id.
    return DatasetSpec(
        name=key,
        loader=entry.loader,
        variant=entry.variant,
        classes=entry.classes,
        train_images=entry.train_images,
        test_images=entry.test_images,
        image_size=entry.image_size,
        mean=entry.mean,
        std=entry.std,
    )


def students_part(config: Config, dataset: DatasetSpec) -> DatasetSpec:
    """What students see of a dataset: the part that the scale gives them, or all of it."""
    images, there = config.scale.student_images.get(dataset.name), dataset.train_images
    if images is None or images == there:
        return dataset
    if images > there:
        file, path = f"config/scales/{config.main.scale}.yaml", f"student_images.{dataset.name}"
        message = f"{images} is more than the training set of {dataset.name} ({there} images)"
        raise ConfigError([Problem(file, path, f"{message}; use {there} or fewer")])
    return dataset.model_copy(update={"train_images": images, "part_of": there})


def method_of(config: Config, settings: Settings, dataset: str) -> MethodSpec:
    """The method with all its parameters; raises ConfigError for values that it cannot train with."""
    name, changes = settings.required("method").value, settings.group("parameters")
    entry = config.methods[name]
    problems = []
    for key, setting in changes.items():
        message = entry.fault(name, key, setting.value)
        if message:
            problems.append(Problem(setting.file, setting.path, message))
    if problems:
        raise ConfigError(problems)

    # 1 and 1.0 are one value: as their parameter's type they are one run id as well.
    values = {key: entry.parameters[key].typed(setting.value) for key, setting in changes.items()}
    method = method_spec(config, name, dataset, values)
    classes = config.datasets[dataset].classes
    # After the values themselves: only of valid ones can be said whether they go together.
    for names, message in entry.conflicts(entry.complete(method.parameters), classes):
        # The line that somebody has written, if there is one; the other value may be a default.
        source = next((changes[key] for key in names if key in changes), None)
        source = source or Setting(None, "config/methods.yaml", name)
        problems.append(Problem(source.file, source.path, message))
    if problems:
        raise ConfigError(problems)
    return method


def method_spec(config: Config, name: str, dataset: str, changes: Mapping[str, Value]) -> MethodSpec:
    """A method with the parameters of config/methods.yaml and these changes, and its code's revisions."""
    facts = config.methods[name]
    return MethodSpec(
        name=name,
        parameters=facts.in_spec({**facts.values_for(dataset, config.lineage), **changes}),
        revision=facts.revision,
        fusion_revision=FUSION_REVISION if facts.uses_fusion else None,
    )


# ---------------------------------------------------------------- recipe


def planned_seeds(config: Config) -> tuple[int, ...]:
    """The seeds of config.yaml, else those of the scale."""
    return config.main.seeds or config.scale.seeds


def find_recipe(config: Config, dataset: str, role: Any) -> Setting:
    """The recipe of a dataset for a family, or for `teacher` (fine-tuning), and where config/ states it.

    Raises ConfigError if there is none.
    """
    recipes: Mapping[Any, RecipeSpec]
    if config.scale.recipes:
        recipes, file, path = config.scale.recipes, f"config/scales/{config.main.scale}.yaml", "recipes"
    else:
        reading, source = config.main.recipes, config.datasets[dataset].recipes
        recipes = config.recipes.of(reading)[source]
        file, path = "config/recipes.yaml", f"{reading}.{source}"
    if role not in recipes:
        raise ConfigError([Problem(file, path, f"has no recipe for '{role}'; {nearest(role, recipes)}")])
    of_scale = _changed(recipes[role], scale_changes(config, "recipe_changes", role))
    return Setting(_changed(of_scale, dataset_changes(config, dataset)), file, f"{path}.{role}")


def scale_changes(config: Config, name: str, role: str) -> dict[str, Setting]:
    """What the scale changes in the recipe of a role, and where its file states it."""
    file, changes = f"config/scales/{config.main.scale}.yaml", getattr(config.scale, name).get(role, {})
    return {key: Setting(value, file, f"{name}.{role}.{key}") for key, value in changes.items()}


def dataset_changes(config: Config, dataset: str) -> dict[str, Setting]:
    """What a data set changes in the recipes of all its runs, and where config/datasets.yaml states it."""
    file, changes = "config/datasets.yaml", config.datasets[dataset].recipe
    return {key: Setting(value, file, f"{dataset}.recipe.{key}") for key, value in changes.items()}


def recipe_of(config: Config, settings: Settings, dataset: str, family: str) -> RecipeSpec:
    """The recipe of the student's family with the changes that the table makes to it."""
    stated, changes = find_recipe(config, dataset, family), settings.group("recipe")
    recipe = _changed(stated.value, changes)
    seen = students_part(config, dataset_spec(config, dataset))
    stating = dataset_changes(config, dataset) | changes
    check_batch(seen, recipe, stating.get("batch_size", stated))
    return recipe


def _changed(recipe: RecipeSpec, changes: Mapping[str, Setting]) -> RecipeSpec:
    """A recipe with a table's changes; a mapping (optimizer: {...}) changes the keys it names only."""
    if not changes:
        return recipe
    # A copy of the record with other values would not be checked by pydantic: the whole is validated again.
    content: dict[str, Any] = recipe.model_dump(mode="json")
    for name, setting in changes.items():
        if name not in content:
            raise setting.error(f"unknown key of a recipe; {nearest(name, content)}")
        nested = isinstance(setting.value, dict) and isinstance(content[name], dict)
        content[name] = {**content[name], **setting.value} if nested else setting.value
    try:
        return validate(RecipeSpec, content, "")
    except ConfigError as error:
        raise ConfigError(_source_of(problem, changes) for problem in error.problems) from None


def _source_of(problem: Problem, changes: Mapping[str, Setting]) -> Problem:
    """A changed recipe's problem with the line of the table's file that states the change."""
    # The problem lies in the changed recipe, which is in no file: its first part is the key that was changed.
    key = re.split(r"[.\[]", problem.path, maxsplit=1)[0]
    if key in changes:
        path = changes[key].path + problem.path.removeprefix(key)
        return replace(problem, file=changes[key].file, path=path)
    first = next(iter(changes.values()))
    return replace(problem, file=first.file, path=first.path.rpartition(".")[0])


def check_batch(dataset: DatasetSpec, recipe: RecipeSpec, source: Setting) -> None:
    """Refuse a batch with more images than the run sees, or with an odd number of them to mix in pairs."""
    batch, images = recipe.batch_size, dataset.train_images
    if not source.path.endswith("batch_size"):
        source = replace(source, path=f"{source.path}.batch_size")
    if batch > images:
        message = f"{batch} is larger than the training set of {dataset.name} ({images} images)"
        entry = f"`recipe: {{batch_size: {images}}}` of {dataset.name} in config/datasets.yaml"
        raise source.error(f"{message}; use {images} or fewer: {entry} counts for all its runs")
    mixes = recipe.augmentation.mixup or recipe.augmentation.cutmix
    if mixes and batch % 2:
        message = f"mixup and cutmix mix pairs of images, so {batch} must be even"
        raise source.error(f"{message}; use {batch - 1} or {batch + 1}, or set both to null")
