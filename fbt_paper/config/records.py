"""What may stand in each file of config/: strict records that refuse unknown keys, types and names.

A name that another file defines has a type of its own (DatasetName, MethodName, ...). It looks the name up in
pydantic's validation context, where load.py puts the names of all files; without a context any name passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from fbt_core.errors import nearest
from fbt_core.methods.facts import Text
from fbt_core.spec import (
    CropSpec,
    Family,
    Key,
    RecipeSpec,
    Strict,
    Triple,
    Value,
)
from fbt_paper.config.timm_names import is_unknown, near_names

Score = Literal["best", "last", "ema"]
RecipeRole = Literal["cnn", "msa", "mlp", "teacher"]
Seed = Annotated[int, Field(ge=0)]
Pack = Annotated[int, Field(ge=1)] | Literal["auto"]
TimmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_]*)?$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


# ---------------------------------------------------------------- names


class Among:
    """Refuses a name that is not among those of its kind in the validation context."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, name: str, info: ValidationInfo) -> str:
        # Without choices any name passes: the file that defines them cannot be read and has been reported.
        choices = (info.context or {}).get(self.kind)
        if choices is not None and name not in choices:
            # A ValueError, not our own error: pydantic adds the path and goes on to the next field.
            raise ValueError(f"unknown {self.kind} '{name}'; {nearest(name, choices)}")
        return name


DatasetName = Annotated[Key, AfterValidator(Among("dataset"))]
ArchitectureName = Annotated[Key, AfterValidator(Among("architecture"))]
ScaleName = Annotated[Key, AfterValidator(Among("scale"))]
MethodName = Annotated[Key, AfterValidator(Among("method"))]
FigureName = Annotated[Key, AfterValidator(Among("figure"))]
TableName = Annotated[Key, AfterValidator(Among("table"))]
RecipesName = Annotated[Key, AfterValidator(Among("recipes"))]
RowName = Annotated[Key, AfterValidator(Among("row"))]
ColumnName = Annotated[Key, AfterValidator(Among("column"))]


def _check_network(create: str) -> str:
    if is_unknown(create):
        raise ValueError(f"timm has no '{create}'; {near_names(create)}")
    return create


NetworkName = Annotated[TimmName, AfterValidator(_check_network)]


def _check_weights(source: str) -> str:
    """The weights of a network that timm publishes: timm:<network>.<tag>."""
    kind, _, name = source.partition(":")
    if kind != "timm" or not re.fullmatch(r"\w+\.\w+", name):
        raise ValueError(f"'{source}' names no weights; write timm:<tag>, e.g. timm:resnet18.a1_in1k")
    _check_network(name.partition(".")[0])
    return source


PublishedWeights = Annotated[str, AfterValidator(_check_weights)]


def refuse(faults: Iterable[tuple[tuple[int | str, ...], str]]) -> None:
    """Raise one error for each fault: its path inside the value that is being checked, and its message."""
    errors = [
        InitErrorDetails(type=PydanticCustomError("fault", "{text}", {"text": message}), loc=path, input=None)
        for path, message in faults
    ]
    if errors:
        # A ValueError is one error without a path of its own; these keep theirs, below that of the value.
        raise ValidationError.from_exception_data("", errors)


def _refuse_doubled(values: tuple[Any, ...]) -> tuple[Any, ...]:
    refuse(((i,), f"{value} is given twice") for i, value in enumerate(values) if value in values[:i])
    return values


def _refuse_doubled_keys(lines: tuple[Any, ...]) -> tuple[Any, ...]:
    keys = [line.key for line in lines]
    refuse(((i, "key"), f"the key '{key}' is given twice") for i, key in enumerate(keys) if key in keys[:i])
    return lines


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_refuse_doubled)]


# ---------------------------------------------------------------- config.yaml


class Execution(Strict):
    """How runs are executed; nothing here changes a number, so nothing here retrains."""

    device: Literal["auto", "cpu", "cuda"] = Field(description="auto takes CUDA if torch sees it")
    workers: int = Field(ge=0, description="loader processes per GPU, unless the scale states them")
    device_cache: bool = Field(
        default=False, description="small images stay on the device, where a recipe allows it"
    )
    channels_last: bool
    cudnn_benchmark: bool = Field(default=False, description="GPUs: cuDNN keeps the fastest of its kernels")
    compile: bool
    gradient_accumulation: int = Field(ge=1)
    checkpoint_minutes: float = Field(gt=0)
    log_steps: int = Field(ge=1)
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        description="where the numbers of each epoch go besides the run's own files"
    )
    pack: Pack = Field(
        default=1,
        description="runs that train together, with one pass of their teacher; auto: what fits a GPU",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_new_key(cls, values: Any) -> Any:
        """A config.yaml of before the trackers says what it must say now."""
        if isinstance(values, dict) and "tensorboard" in values:
            kind = "tensorboard" if values["tensorboard"] else "none"
            raise ValueError(f"`tensorboard: ...` is now `tracker: {kind}`")
        return values


EXPECTED = "top-1 in %; runs measure their teacher's, and warn if it is more than a point below this"


class WeightFile(Strict):
    """A weights file of your own used instead of a teacher's fine-tune run."""

    path: Text
    sha256: Sha256
    expected_top1: float | None = Field(default=None, ge=0, le=100, description=EXPECTED)
    mean: Triple | None = Field(default=None, description="the normalisation it expects; else the dataset's")
    std: Triple | None = None

    @model_validator(mode="after")
    def _check_normalisation(self) -> WeightFile:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; state both or neither")
        return self


class MainConfig(Strict):
    """config/config.yaml: the scale, where data lies, seeds, which reading of the recipes."""

    scale: ScaleName
    recipes: Literal["ofa", "as_printed"]
    seeds: Seeds | None = Field(description="one run per seed; null: those of the scale")
    teacher_seeds: Literal["first", "each"] = Field(
        default="first", description="first: one teacher for all seeds of a student; each: one of each seed"
    )
    score: Score = Field(description="which top-1 the tables show: of the best epoch, the last, or the EMA's")
    data_roots: dict[DatasetName, str | None] = Field(description="dataset -> folder on this machine")
    teacher_files: dict[DatasetName, dict[ArchitectureName, WeightFile]] = Field(
        description="dataset -> architecture -> weights file"
    )
    execution: Execution

    @field_validator("data_roots")
    @classmethod
    def _check_roots(cls, roots: dict[str, str | None], info: ValidationInfo) -> dict[str, str | None]:
        """A dataset whose images are shipped takes no folder."""
        # From the context: whether images are shipped stands in datasets.yaml, another file.
        needing: Mapping[str, bool] = (info.context or {}).get("needs_root", {})
        choices = [name for name, needed in needing.items() if needed]
        message = "its images are shipped with the package, so it takes no folder"
        refuse(
            ((name,), f"{message}; {nearest(name, choices)}")
            for name, root in roots.items()
            if root is not None and needing.get(name) is False
        )
        return roots


class DatasetEntry(Strict):
    """config/datasets.yaml: one dataset, what it holds and how its images enter a network."""

    title: Text
    loader: Literal["fashion_mnist", "cifar100", "image_folder"]
    variant: Key
    needs_root: bool = Field(description="false: the images are shipped with the package")
    classes: int = Field(ge=2)
    train_images: int = Field(ge=1)
    test_images: int = Field(ge=1)
    image_size: int = Field(ge=8, description="pixels of the square network input")
    mean: Triple
    std: Triple
    teachers: Literal["pretrained", "fine_tuned", "from_scratch"] = Field(
        description="pretrained: timm's weights as they are; fine_tuned: a run that starts from them; "
        "from_scratch: a run that starts from nothing"
    )
    recipes: RecipesName = Field(description="whose recipes (config/recipes.yaml) its runs take")
    recipe: dict[str, Any] = Field(
        default={}, description="changes to the recipe of all its runs, teachers too, e.g. {batch_size: 8}"
    )
    licence: Text | None = Field(default=None, description="of the images; for cards of networks")
    test_crop: Literal["network"] | None = Field(
        default=None,
        description="network: a student is tested with its own `test_crop` (architectures.yaml); left out: "
        "small images are tested whole, those of folders with share 0.875, bicubic",
    )


class Pretrained(Strict):
    """timm's weights of an architecture and the normalisation they expect."""

    tag: NetworkName
    mean: Triple
    std: Triple
    expected_top1: float | None = Field(
        default=None, ge=0, le=100, description=f"on ImageNet-1K, in its own test crop: {EXPECTED}"
    )


class ArchitectureEntry(Strict):
    """config/architectures.yaml: one network shape, built by timm."""

    title: Text
    family: Family
    create: NetworkName = Field(description="a timm model name, or module:Class")
    options: dict[str, Value]
    options_by_recipes: dict[Literal["ofa", "as_printed"], dict[DatasetName, dict[str, Value]]] = Field(
        default={}, description="recipe set -> whose recipes (a dataset) -> options that differ there"
    )
    test_crop: CropSpec = Field(
        default=CropSpec(share=0.875, interpolation="bicubic"),
        description="the test image's view of the timm version that the OFA code names",
    )
    pretrained: Pretrained | None = None


class TwinEntry(Strict):
    """config/scales/<scale>.yaml, architectures: an architecture in another size, e.g. its tiny twin."""

    create: NetworkName
    options: dict[str, Value]


Recipes = Annotated[
    dict[DatasetName, Annotated[dict[RecipeRole, RecipeSpec], Field(min_length=1)]], Field(min_length=1)
]
"""dataset -> the student's family, or teacher (fine-tuning) -> recipe."""


class RecipesFile(Strict):
    """config/recipes.yaml: the paper's Table 1 in its two readings, and where its numbers come from."""

    sources: dict[str, Text] = Field(
        description="setting, or `teacher` -> where its numbers come from; a setting of one family as "
        "cnn.<setting>, of one recipe of set `ofa` as cifar100.cnn.<setting>"
    )
    ofa: Recipes
    as_printed: Recipes

    def of(self, reading: str) -> Recipes:
        """The recipes of one of the two readings."""
        return self.ofa if reading == "ofa" else self.as_printed


class Trainings(Strict):
    """What a scale's trainings run on; nothing here changes a number."""

    cpu: bool = Field(default=False, description="true: trains on a CPU; false: without a GPU it stops")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; left out: those of the job")
    workers: int | None = Field(default=None, ge=0, description="instead of config.yaml's `workers`")
    memory_mb: int = Field(default=48000, ge=1, description="of a job that no profile says more about")
    minutes: int = Field(default=1440, ge=1, description="time limit of such a job")


class ScaleEntry(Strict):
    """config/scales/<scale>.yaml: how big the paper is made; what is left out comes from what it extends."""

    title: Text
    extends: ScaleName | None = Field(
        default=None, description="a scale; this file states what differs from it, key by key"
    )
    seeds: Seeds = Field(
        default=(0,), description="one run per seed, unless config.yaml or a table says others"
    )
    targets: Annotated[tuple[Literal["tables", "grid"], ...], Field(min_length=1)] = Field(
        default=("tables", "grid"), description="tables that `snakemake` builds without a target"
    )
    trainings: Trainings = Trainings()
    datasets: dict[DatasetName, DatasetName] = Field(
        default={}, description="which dataset stands in for which"
    )
    kept_for: tuple[ArchitectureName, ...] = Field(
        default=(),
        description="networks whose runs keep the paper's dataset, as their layers are bound to its size",
    )
    student_images: dict[DatasetName, Annotated[int, Field(ge=1)]] = Field(
        default={},
        description="training images that students see of a dataset, as many of each class; teachers that "
        "are trained alone, and datasets not named here, see all",
    )
    source: Text = Field(default="ours", description="where the values of `recipes` come from")
    recipes: dict[Family, RecipeSpec] | None = Field(
        default=None, description="per family; left out: those of config/recipes.yaml"
    )
    recipe_changes: dict[RecipeRole, dict[str, Any]] = Field(
        default={}, description="changes to the recipes, by family or for `teacher` (fine-tuning)"
    )
    teacher_recipes: dict[Family, dict[str, Any]] = Field(
        default={},
        description="changes to `recipes` for networks that are trained alone to teach, e.g. {epochs: 20}",
    )
    architectures: dict[ArchitectureName, TwinEntry] = Field(
        default={}, description="networks in another size; the others are those of architectures.yaml"
    )

    @field_validator("recipes")
    @classmethod
    def _check_families(cls, recipes: dict[str, RecipeSpec] | None) -> dict[str, RecipeSpec] | None:
        # A mapping's type cannot ask for keys, and a missing family would be noticed by some tables only.
        missing = [family for family in ("cnn", "msa", "mlp") if recipes and family not in recipes]
        if missing:
            raise ValueError(f"{', '.join(missing)} is missing")
        return recipes

    @property
    def is_full_size(self) -> bool:
        """Whether all networks are the paper's own."""
        return not self.architectures

    @property
    def has_stand_ins(self) -> bool:
        """Whether other datasets stand in for the paper's: numbers cannot be compared with its own."""
        return bool(self.datasets)


Parameters = dict[str, Value] | None


def _teacher_kind(value: Any) -> str:
    # Chosen by type: a plain union would report a wrong key of a run also as `must be a text`.
    # In <>, as no key of a file is: check.py drops from a location what is not in the file.
    return "<name>" if isinstance(value, str) else "<run>"


class RunSettings(Strict):
    """What the base, a row or a column of a table may set about the run behind a cell."""

    dataset: DatasetName | None = None
    student: ArchitectureName | None = None
    student_weights: PublishedWeights | None = Field(
        default=None, description="timm:<tag>: the student starts from these weights instead of random ones"
    )
    teacher: Teacher | None = Field(
        default=None,
        description="an architecture, or the settings of the run whose student teaches here (TAKD)",
    )
    start: ChainSettings | None = Field(
        default=None, description="settings of the run whose student's weights this run starts from (MTPD)"
    )
    method: MethodName | None = None
    parameters: dict[Key, Value] | None = None
    recipe: dict[str, Any] | None = Field(
        default=None, description="changes to the recipe, e.g. {epochs: 50}"
    )
    measure: Literal["student", "teacher"] | None = Field(
        default=None, description="teacher: the cell shows the teacher's own accuracy"
    )

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, values: Parameters, info: ValidationInfo) -> Parameters:
        """Against the method set here or in the table's base; if both set one, planning reports that."""
        context = info.context or {}
        method, base = info.data.get("method"), context.get("base_method")
        # Pydantic leaves out of `data` what was wrong: an unknown method is not reported once more here.
        if "method" in info.data and (method is None or base in (None, method)):
            _check_values(method or base, values, context)
        return values


class ChainSettings(Strict):
    """The run before in a chain; what it leaves out it takes from the run after it."""

    student: ArchitectureName | None = None
    student_weights: PublishedWeights | None = None
    teacher: Teacher | None = None
    start: ChainSettings | None = None
    method: MethodName | None = None
    parameters: dict[Key, Value] | None = None
    recipe: dict[str, Any] | None = None

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, values: Parameters, info: ValidationInfo) -> Parameters:
        _check_values(info.data.get("method"), values, info.context or {})
        return values


def _check_values(method: str | None, values: Parameters, context: Mapping[str, Any]) -> None:
    """Refuse parameters that the method does not take, and values that they cannot have."""
    # Without a context, or while the method is unknown, only the form can be checked.
    fault = context.get("parameter_fault")
    if fault and method:
        faults = {name: fault(method, name, value) for name, value in (values or {}).items()}
        refuse(((name,), message) for name, message in faults.items() if message)


Teacher = Annotated[
    Annotated[ArchitectureName, Tag("<name>")] | Annotated[ChainSettings, Tag("<run>")],
    Discriminator(_teacher_kind),
]
# The two records name a type that is defined after them, and ChainSettings names itself.
RunSettings.model_rebuild()
ChainSettings.model_rebuild()


class TableLine(RunSettings):
    """A row or a column: its key (reference.csv), its label as printed, and what it sets."""

    key: Key
    label: Text


class SweptLine(TableLine):
    """One row of a sweep: the value that it sets, and the key and label of the item that it comes from."""

    item: Key
    item_label: Text
    swept: Text
    value: bool | int | float | str


class SweepLine(TableLine):
    """A row, or an item that makes a row of each value of one setting."""

    sweep: dict[Text, tuple[bool | int | float | str, ...]] | None = Field(
        default=None,
        description="one setting and its values, e.g. {parameters.gamma: [1.0, 1.5]}: rows, and a line plot",
    )

    @field_validator("sweep")
    @classmethod
    def _check_sweep(cls, sweep: dict[str, tuple[Value, ...]] | None, info: ValidationInfo) -> Any:
        if sweep is None:
            return None
        name = next(iter(sweep), "")
        group, _, setting = name.partition(".")
        if len(sweep) != 1 or group not in ("parameters", "recipe") or not setting:
            example = "{parameters.gamma: [1.0, 1.5]} or {recipe.epochs: [100, 300]}"
            raise ValueError(f"a sweep changes one setting, {example}")
        values = sweep[name]
        if len(set(map(swept_key, values))) != len(values) or len(values) < 2:
            raise ValueError(f"{name}: a sweep needs two values or more, each once")
        if setting in (info.data.get(group) or {}):
            raise ValueError(f"{name} is set in this row as well; keep one of the two")
        context = info.context or {}
        method = info.data.get("method") or context.get("base_method")
        for index, value in enumerate(values if group == "parameters" else ()):
            fault = context.get("parameter_fault")
            if fault and method and (message := fault(method, setting, value)):
                refuse([((name, index), message)])
        return sweep


def swept_key(value: object) -> str:
    """A value as part of a row's key: 1.5 is 1_5."""
    return re.sub(r"[^a-z0-9]+", "_", _say(value).lower().replace("-", "minus_"))


def _say(value: object) -> str:
    """A value as read: 1 for 1.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def row_keys(item: Mapping[str, Any]) -> list[str]:
    """Keys of the rows that an item of a table's file makes; of plain values, which may have any type."""
    key, sweep = str(item.get("key")), item.get("sweep")
    values = next(iter(sweep.values()), None) if isinstance(sweep, dict) else None
    if not isinstance(values, list):
        return [key]
    return [f"{key}_{swept_key(value)}" for value in values]


def _make_rows(items: tuple[SweepLine, ...]) -> tuple[TableLine, ...]:
    """The rows: each item without a sweep, and one of each value of an item with one."""
    rows: list[TableLine] = []
    for item in items:
        if item.sweep is None:
            rows.append(item)
            continue
        ((name, values),) = item.sweep.items()
        group, _, setting = name.partition(".")
        said = setting.replace("_", " ")
        stated = {field: getattr(item, field) for field in RunSettings.model_fields}
        for value in values:
            changed = {**stated, group: {**(stated[group] or {}), setting: value}}
            key, label = f"{item.key}_{swept_key(value)}", f"{item.label}, {said} {_say(value)}"
            rows.append(
                SweptLine.model_construct(
                    key=key,
                    label=label,
                    item=item.key,
                    item_label=item.label,
                    swept=said,
                    value=value,
                    **changed,
                )
            )
    return tuple(rows)


class Gain(Strict):
    """A closing line with the mean over the table of (cell - the same pair's `over`)."""

    key: Key
    label: Text
    # Above `over`: a validator sees only the fields that stand before its own.
    along: Literal["rows", "columns"] = Field(description="average along the rows or along the columns")
    over: Key = Field(description="key of the row or column that is subtracted")

    @field_validator("over")
    @classmethod
    def _check_over(cls, over: str, info: ValidationInfo) -> str:
        """A gain averaged along the rows subtracts a column, one along the columns a row."""
        # If `along` was wrong it is not in `data`, and which names are valid is not known.
        kind = {"rows": "column", "columns": "row"}.get(info.data.get("along", ""))
        return Among(kind)(over, info) if kind else over


class AccuracyTable(Strict):
    """config/tables/<table>.yaml: base x rows x columns; a cell is one printed top-1 accuracy."""

    kind: Literal["accuracy"]
    title: Text
    caption: Text
    target: Literal["tables", "grid"] = Field(
        description="a scale says which of the two `snakemake` builds without a target"
    )
    corner: str = Field(description="heading above the row labels")
    seeds: dict[ScaleName, Seeds] | None = Field(
        default=None, description="instead of the scale's, for this table"
    )
    base: RunSettings
    rows: Annotated[
        tuple[SweepLine, ...],
        Field(min_length=1),
        AfterValidator(_make_rows),
        AfterValidator(_refuse_doubled_keys),
    ]
    columns: Annotated[tuple[TableLine, ...], Field(min_length=1), AfterValidator(_refuse_doubled_keys)]
    skip: tuple[tuple[RowName, ColumnName], ...] = Field(
        default=(), description="[row, column] pairs without a cell"
    )
    gain: Gain | None = None
    priority: int = Field(default=0, description="jobs of tables with a higher one start first")

    @property
    def sweeps(self) -> dict[str, list[SweptLine]]:
        """Rows of each sweep, by the key of its item."""
        swept: dict[str, list[SweptLine]] = {}
        for row in self.rows:
            if isinstance(row, SweptLine):
                swept.setdefault(row.item, []).append(row)
        return swept

    def row_path(self, index: int) -> str:
        """Where the file states a row: rows of a sweep share an item."""
        items = [row.item if isinstance(row, SweptLine) else row.key for row in self.rows]
        return f"rows[{list(dict.fromkeys(items)).index(items[index])}]"


class CostPair(Strict):
    """One row of the cost table."""

    key: Key
    label: Text
    teacher: ArchitectureName
    student: ArchitectureName


class CostTable(Strict):
    """config/tables/table6.yaml: extra parameters and FLOPs, counted at full size; nothing is trained."""

    kind: Literal["cost"]
    title: Text
    caption: Text
    target: Literal["tables"]
    corner: str
    image_size: int = Field(ge=8)
    classes: int = Field(ge=2)
    blocks: tuple[Literal["swin", "swinv2", "vit"], ...]
    paper_block: Literal["swin", "swinv2", "vit"] = Field(
        description="the block whose counts match the paper's digits"
    )
    rows: Annotated[tuple[CostPair, ...], Field(min_length=1), AfterValidator(_refuse_doubled_keys)]
    footnotes: tuple[Text, ...] = ()


class RecipeColumn(Strict):
    """One printed column of a table of recipes, and the recipe that its head names."""

    key: Key
    label: Text
    dataset: DatasetName
    family: RecipeRole


def _recipe_paths(model: type[BaseModel] = RecipeSpec, prefix: str = "") -> Iterator[str]:
    """Every setting of a recipe by its path: epochs, optimizer.name."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _recipe_paths(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


class RecipeLine(Strict):
    """One setting: its path in a recipe, and what is printed for it in each column."""

    key: Key
    label: Text
    setting: Text = Field(description="e.g. optimizer.weight_decay; image_size is the dataset's")
    printed: tuple[Text, ...]

    @field_validator("setting")
    @classmethod
    def _check_setting(cls, setting: str) -> str:
        choices = ["image_size", *_recipe_paths()]
        if setting not in choices:
            raise ValueError(f"a recipe has no setting '{setting}'; {nearest(setting, choices)}")
        return setting


class RecipeTable(Strict):
    """config/tables/table1.yaml: the recipes in their two readings beside what is printed."""

    kind: Literal["recipes"]
    title: Text
    caption: Text
    target: Literal["tables"]
    corner: str
    columns: Annotated[tuple[RecipeColumn, ...], Field(min_length=1), AfterValidator(_refuse_doubled_keys)]
    rows: Annotated[tuple[RecipeLine, ...], Field(min_length=1), AfterValidator(_refuse_doubled_keys)]
    swapped: Text = Field(description="of a value that is printed under the other dataset's head")

    @model_validator(mode="after")
    def _check_printed(self) -> RecipeTable:
        count = len(self.columns)
        refuse(
            (("rows", i, "printed"), f"must hold {count} texts, one per column")
            for i, row in enumerate(self.rows)
            if len(row.printed) != count
        )
        return self


Table = AccuracyTable | CostTable | RecipeTable


class ReferenceRow(Strict):
    """One line of <table>.reference.csv: a printed number and where it was printed.

    An independent run of others is no printed number: a cell may have several beside its printed one.
    """

    row: RowName
    column: ColumnName
    value: float
    source: Text
    status: Literal["primary", "secondary", "other", "independent"]
    note: str = ""
