"""What may stand in each file of config/: strict records that refuse unknown keys and wrong types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from fbt_core.methods.facts import Scale, Text
from fbt_core.spec import (
    CropSpec,
    Family,
    Key,
    RecipeSpec,
    Strict,
    Triple,
    Value,
)

Score = Literal["best", "last", "ema"]
RecipeRole = Literal["cnn", "msa", "mlp", "teacher"]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
TimmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_]*)?$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Execution(Strict):
    """How runs are executed; nothing here changes a number, so nothing here retrains."""

    device: Literal["auto", "cpu", "cuda"] = Field(description="auto takes CUDA where torch sees it")
    workers: int = Field(ge=0, description="loader processes per GPU at scale paper")
    channels_last: bool
    compile: bool
    gradient_accumulation: int = Field(ge=1)
    checkpoint_minutes: float = Field(gt=0)
    log_steps: int = Field(ge=1)
    tensorboard: bool


class WeightFile(Strict):
    """A weights file of your own that takes the place of a teacher's fine-tune run."""

    path: Text
    sha256: Sha256
    mean: Triple | None = Field(default=None, description="the normalisation it expects; else the dataset's")
    std: Triple | None = None

    @model_validator(mode="after")
    def _check_normalisation(self) -> WeightFile:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; state both or neither")
        return self


class MainConfig(Strict):
    """config/config.yaml: the scale, where data lies, seeds, which reading of the recipes."""

    scale: Scale
    recipes: Literal["ofa", "as_printed"]
    seeds: Seeds = Field(description="one run per seed at scale paper")
    score: Score = Field(description="which top-1 the tables show: of the best epoch, the last, or the EMA's")
    data_roots: dict[Key, str | None] = Field(description="dataset -> folder on this machine")
    teacher_files: dict[Key, dict[Key, WeightFile]] = Field(
        description="dataset -> architecture -> weights file"
    )
    execution: Execution


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
    recipes: Key = Field(description="whose recipes (config/recipes.yaml) its runs take")
    test_crop: Literal["network"] | None = Field(
        default=None,
        description="network: a student is tested with its own `test_crop` (architectures.yaml); left out: "
        "small images are tested whole, those of folders with share 0.875, bicubic",
    )


class Pretrained(Strict):
    """timm's weights of an architecture and the normalisation they expect."""

    tag: TimmName
    mean: Triple
    std: Triple


class ArchitectureEntry(Strict):
    """config/architectures.yaml: one network shape, built by timm."""

    title: Text
    family: Family
    create: TimmName = Field(description="a timm model name, or module:Class")
    options: dict[str, Value]
    options_by_recipes: dict[Literal["ofa", "as_printed"], dict[Key, dict[str, Value]]] = Field(
        default={}, description="recipe set -> whose recipes (a dataset) -> options that differ there"
    )
    test_crop: CropSpec = Field(
        default=CropSpec(share=0.875, interpolation="bicubic"),
        description="the test image's view of the timm version that the OFA code names",
    )
    pretrained: Pretrained | None = None


class TwinEntry(Strict):
    """config/smoke.yaml, architectures: the tiny twin of an architecture."""

    create: TimmName
    options: dict[str, Value]


Recipes = Annotated[
    dict[Key, Annotated[dict[RecipeRole, RecipeSpec], Field(min_length=1)]], Field(min_length=1)
]
"""dataset -> the student's family, or teacher (fine-tuning) -> recipe."""


class RecipesFile(Strict):
    """config/recipes.yaml: the paper's Table 1 in its two readings, and where its numbers come from."""

    sources: dict[str, Text] = Field(description="setting, or `teacher` -> where its numbers come from")
    ofa: Recipes
    as_printed: Recipes

    def of(self, reading: str) -> Recipes:
        """The recipes of one of the two readings."""
        return self.ofa if reading == "ofa" else self.as_printed


class SmokeConfig(Strict):
    """config/smoke.yaml: the overlay that makes the whole paper tiny."""

    datasets: dict[Key, Key] = Field(description="which dataset stands in for which")
    seeds: Seeds
    recipes: dict[Family, RecipeSpec]
    architectures: dict[Key, TwinEntry]


def _teacher_kind(value: Any) -> str:
    return "<name>" if isinstance(value, str) else "<run>"


class RunSettings(Strict):
    """What the base, a row or a column of a table may set about the run behind a cell."""

    dataset: Key | None = None
    student: Key | None = None
    teacher: Teacher | None = Field(
        default=None,
        description="an architecture, or the settings of the run whose student teaches here (TAKD)",
    )
    start: ChainSettings | None = Field(
        default=None, description="settings of the run whose student's weights this run starts from (MTPD)"
    )
    method: Key | None = None
    parameters: dict[Key, Value] | None = None
    recipe: dict[str, Any] | None = Field(
        default=None, description="changes to the recipe, e.g. {epochs: 50}"
    )
    measure: Literal["student", "teacher"] | None = Field(
        default=None, description="teacher: the cell shows the teacher's own accuracy"
    )


class ChainSettings(Strict):
    """The run before in a chain; what it leaves out it takes from the run after it."""

    student: Key | None = None
    teacher: Teacher | None = None
    start: ChainSettings | None = None
    method: Key | None = None
    parameters: dict[Key, Value] | None = None
    recipe: dict[str, Any] | None = None


Teacher = Annotated[
    Annotated[Key, Tag("<name>")] | Annotated[ChainSettings, Tag("<run>")], Discriminator(_teacher_kind)
]
RunSettings.model_rebuild()
ChainSettings.model_rebuild()


class Line(RunSettings):
    """A row or a column: its key (reference.csv), its label as printed, and what it sets."""

    key: Key
    label: Text


class Gain(Strict):
    """A closing line with the mean over the table of (cell - the same pair's `over`)."""

    key: Key
    label: Text
    over: Key = Field(description="key of the row or column that is subtracted")
    along: Literal["rows", "columns"] = Field(description="average along the rows or along the columns")


class AccuracyTable(Strict):
    """config/tables/<table>.yaml: base x rows x columns; a cell is one printed top-1 accuracy."""

    kind: Literal["accuracy"]
    title: Text
    caption: Text
    target: Literal["tables", "grid"] = Field(description="grid: at smoke not part of `all`")
    corner: str = Field(description="heading above the row labels")
    seeds: dict[Scale, Seeds] | None = Field(default=None, description="instead of config's, for this table")
    base: RunSettings
    rows: Annotated[tuple[Line, ...], Field(min_length=1)]
    columns: Annotated[tuple[Line, ...], Field(min_length=1)]
    skip: tuple[tuple[Key, Key], ...] = Field(default=(), description="[row, column] pairs without a cell")
    gain: Gain | None = None


class CostPair(Strict):
    """One row of the cost table."""

    key: Key
    label: Text
    teacher: Key
    student: Key


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
    rows: Annotated[tuple[CostPair, ...], Field(min_length=1)]
    footnotes: tuple[Text, ...] = ()


Table = AccuracyTable | CostTable


class ReferenceRow(Strict):
    """One line of <table>.reference.csv: a printed number and where it was printed."""

    row: Key
    column: Key
    value: float
    source: Text
    status: Literal["primary", "secondary", "other"]
    note: str = ""
