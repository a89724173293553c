"""RunSpec, its run id and the engine's settings: the contract between planner and engine.

A RunSpec holds everything that can change the measured number and nothing else: no paths, worker
counts, labels or printed numbers. This module imports neither torch nor timm.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from fbt_core.errors import UserError

ENGINE_REVISION = 2
"""Raise it when a fix in the engine (loop, data, recipe, checkpoint) changes any run's number."""
FUSION_REVISION = 1
"""Raise it when a fix in fbt_core/fusion changes the number of runs that use the fused model."""

ID_PATTERN = re.compile(r"^[a-z0-9_]+(-[a-z0-9_]+)*-[0-9a-f]{10}$")

Key = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Family = Literal["cnn", "msa", "mlp"]
Triple = tuple[float, float, float]
Scalar = bool | int | float | str | None
Value = Scalar | tuple[Scalar, ...] | tuple[tuple[Scalar, ...], ...]
RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d+|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t[a-z0-9]+))*")


class Strict(BaseModel):
    """A frozen record that refuses unknown keys and values of the wrong type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DatasetSpec(Strict):
    """Which images a run sees: the loader and all that shapes its output, but not where the files lie."""

    name: Key
    loader: Literal["fashion_mnist", "cifar100", "image_folder"]
    variant: str = Field(description="embedded | full for fashion_mnist, else full")
    classes: int = Field(ge=2)
    train_images: int = Field(ge=1)
    part_of: int | None = Field(
        default=None,
        description="images of the whole training split, if the run sees `train_images` of them only: as "
        "many of each class, the first ones; None = it sees all",
    )
    test_images: int = Field(ge=1)
    image_size: int = Field(ge=8, description="pixels of the square network input")
    mean: Triple
    std: Triple

    @model_validator(mode="after")
    def _check_part(self) -> DatasetSpec:
        if self.part_of is not None and self.part_of <= self.train_images:
            raise ValueError(f"{self.train_images} training images are no part of {self.part_of}")
        return self


class CropSpec(Strict):
    """How a test image reaches the network, as timm does it: resized to size / share, then its centre."""

    share: float = Field(gt=0, le=1, description="of the resized image's side that is kept")
    interpolation: Literal["bilinear", "bicubic"]


class NetworkSpec(Strict):
    """A network in a role: what timm builds, where its weights come from, how it wants its input."""

    architecture: Key
    family: Family
    create: str = Field(description="a timm model name, or module:Class for what create_model cannot build")
    options: dict[str, Value] = Field(description="keyword arguments of the constructor; never num_classes")
    weights: str = Field(description="none | timm:<tag> | file:<sha256> | run:<run id>")
    mean: Triple
    std: Triple

    @field_validator("options")
    @classmethod
    def _write_whole_numbers_one_way(cls, options: dict[str, Value]) -> dict[str, Value]:
        """0 and 0.0 are one setting of a network, so they are one run."""
        return {name: _whole(value) for name, value in options.items()}


def _whole(value: Any) -> Any:
    # Nested lists as well: block arguments hold numbers at any depth.
    if isinstance(value, tuple):
        return tuple(map(_whole, value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


class OptimizerSpec(Strict):
    """Optimiser by timm's name with all of its numbers; no_decay names which parameters are spared decay."""

    name: Literal["sgd", "adamw"]
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    momentum: float | None = None
    no_decay: Literal["one_dimensional", "network_list", "ofa_repository"]
    clip_gradient: float | None = None

    @model_validator(mode="after")
    def _check_momentum(self) -> OptimizerSpec:
        # A missing momentum would be a default of the library's, which no spec states.
        if self.name == "sgd" and self.momentum is None:
            raise ValueError("sgd needs its momentum (timm's sgd is Nesterov's)")
        return self


class ScheduleSpec(Strict):
    """Learning rate over epochs: warm-up, then cosine or steps."""

    name: Literal["cosine", "step"]
    minimum: float = Field(ge=0)
    warmup_epochs: int = Field(ge=0)
    warmup_start: float = Field(ge=0)
    update: Literal["epoch", "step"] = Field(
        default="epoch", description="when the rate moves: once an epoch (timm's habit) or at every step"
    )
    milestones: tuple[int, ...] | None = None
    factor: float | None = None

    @model_validator(mode="after")
    def _check_steps(self) -> ScheduleSpec:
        if self.name == "step" and (self.milestones is None or self.factor is None):
            raise ValueError("schedule 'step' needs milestones and factor")
        return self


class AugmentationSpec(Strict):
    """What happens to a training image; None switches a step off."""

    crop_scale: tuple[float, float] | None
    flip: float = Field(ge=0, le=1)
    color_jitter: float | None
    rand_augment: str | None = Field(description="timm's policy string, e.g. rand-m9-mstd0.5-inc1")
    mixup: float | None
    cutmix: float | None
    erasing: float | None

    @field_validator("rand_augment")
    @classmethod
    def _check_policy(cls, policy: str | None) -> str | None:
        # Checked when planning: timm would look at it only when training begins.
        if policy is not None and not RAND_AUGMENT.fullmatch(policy):
            parts = "m9 (strength), n2 (changes an image), p0.5, mstd0.5, mmax10, inc1, tweights"
            example = "e.g. rand-m9-mstd0.5-inc1"
            raise ValueError(f"'{policy}' is not RandAugment: `rand` and parts of {parts}, {example}")
        return policy


class RecipeSpec(Strict):
    """One training recipe: optimiser, schedule and augmentation. What it is called is not part of it."""

    epochs: int = Field(ge=1)
    evaluate_every: int | None = Field(
        default=None, ge=1, description="test after each so-many-th epoch and the last; None = after each"
    )
    batch_size: int = Field(ge=2, description="total over all GPUs")
    normalisation_batch: int | None = Field(
        default=None, description="images a BatchNorm normalises over; None = the whole batch"
    )
    allow_changed_batch: Literal[True] | None = Field(
        default=None,
        description="gradient accumulation may change what BatchNorm and losses that compare images see: "
        "the images of one part instead of the batch",
    )
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    augmentation: AugmentationSpec
    label_smoothing: float = Field(ge=0, lt=1)
    ema_decay: float | None = None
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = Field(
        description="tf32: float32 whose products GPUs round to 10 bits; bfloat16, float16: mixed precision"
    )
    teacher_normalisation: Literal["own", "student"]

    @field_validator("evaluate_every")
    @classmethod
    def _write_every_epoch_one_way(cls, epochs: int | None) -> int | None:
        """1 says what leaving it out says, so both are one run."""
        return None if epochs == 1 else epochs

    @model_validator(mode="after")
    def _check_warmup(self) -> RecipeSpec:
        if self.schedule.warmup_epochs > self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs, {self.schedule.warmup_epochs}, is more than epochs, {self.epochs}"
            )
        return self

    def evaluates(self, epoch: int) -> bool:
        """Whether the network is tested after this epoch (from 1)."""
        # The last epoch always: without it there would be no final score.
        return epoch % (self.evaluate_every or 1) == 0 or epoch == self.epochs

    @property
    def tests(self) -> int:
        """After how many epochs the network is tested."""
        return sum(map(self.evaluates, range(1, self.epochs + 1)))


class MethodSpec(Strict):
    """A distillation method with every parameter it takes, and the revision of its code."""

    name: Key
    parameters: dict[str, Value]
    revision: int = Field(ge=1)
    fusion_revision: int | None = Field(default=None, description="set for methods that use the fused model")


class RunSpec(Strict):
    """Full settings of one training: same spec, same number (on CPU: same bytes)."""

    dataset: DatasetSpec
    student: NetworkSpec
    teacher: NetworkSpec | None
    method: MethodSpec
    recipe: RecipeSpec
    seed: int = Field(ge=0)
    engine_revision: int = Field(ge=1)
    test_crop: CropSpec | None = Field(
        default=None,
        description="None: small images are tested whole, those of folders with share 0.875, bicubic",
    )

    @model_validator(mode="after")
    def _check_teacher(self) -> RunSpec:
        if self.teacher is not None and self.teacher.weights == "none":
            raise ValueError("a teacher needs weights: timm:<tag>, file:<sha256> or run:<run id>")
        return self

    @property
    def id(self) -> str:
        """Readable slug and the first 10 hex digits of the canonical JSON's sha256."""
        # Words for people; the digits stand for all settings.
        names = [self.dataset.name, self.method.name]
        names += [self.teacher.architecture] if self.teacher else []
        return "-".join([*names, self.student.architecture, self.digest()[:10]])

    def canonical_json(self) -> str:
        """Sorted keys, no blanks, None left out: a new optional field keeps old ids."""
        content = self.model_dump(mode="json", exclude_none=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    def digest(self) -> str:
        """The sha256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def needed_runs(self) -> tuple[str, ...]:
        """Ids of the runs whose weights this run reads (teacher, initial student)."""
        networks = [network for network in (self.teacher, self.student) if network]
        return tuple(n.weights.removeprefix("run:") for n in networks if n.weights.startswith("run:"))


def parse_spec(text: str) -> RunSpec:
    """A RunSpec from its JSON (lists become tuples); raises pydantic.ValidationError when it is not one."""
    return RunSpec.model_validate_json(text)


def check_frozen(spec: RunSpec, path: Path) -> None:
    """Refuse a file named after a run that holds another one; any other file may hold any spec."""
    # Only a name that looks like a run's id promises a content.
    if ID_PATTERN.fullmatch(path.stem) and path.stem != spec.id:
        hint = "the file was changed; delete it and start the workflow again, which writes it"
        raise UserError(f"holds the spec of {spec.id}", where=str(path), hint=hint)


class TeacherFacts(Strict):
    """What is known of a teacher beforehand: how it wants its test images, and the top-1 it should reach."""

    test_crop: CropSpec | None = Field(default=None, description="None: the student's")
    expected_top1: float | None = Field(default=None, ge=0, le=100)


class ExecutionSettings(Strict):
    """How a run is executed. None of it may change the number, so none of it is in the spec."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    allow_cpu: bool = Field(
        default=True, description="False: stop when device auto finds no CUDA (paper scale)"
    )
    threads: int | None = Field(default=None, description="torch CPU threads; None = what the job was given")
    workers: int = Field(default=0, ge=0, description="loader processes per GPU")
    device_cache: bool = Field(
        default=False,
        description="small images stay on the device, and are cropped, flipped and resized there (pixels "
        "differ by rounding); recipes with RandAugment or colour jitter keep the loaders",
    )
    channels_last: bool = False
    cudnn_benchmark: bool = Field(
        default=False, description="GPUs: cuDNN tries its kernels and keeps the fastest for each shape"
    )
    compile: bool = False
    gradient_accumulation: int = Field(default=1, ge=1)
    checkpoint_minutes: float = Field(default=15.0, gt=0)
    log_steps: int = Field(default=50, ge=1)
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    data_roots: dict[str, str] = Field(default_factory=dict)
    weight_files: dict[str, str] = Field(default_factory=dict, description="sha256 -> path")
    teachers: dict[str, TeacherFacts] = Field(
        default_factory=dict, description="dataset/architecture -> what is known of this teacher"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_former_key(cls, values: Any) -> Any:
        """Settings that were frozen for a waiting job may still say `tensorboard`."""
        # A job may wait for weeks, and be started by a newer version.
        if not isinstance(values, dict) or "tensorboard" not in values:
            return values
        kept = {name: value for name, value in values.items() if name != "tensorboard"}
        return {"tracker": "tensorboard", **kept} if values["tensorboard"] else kept

    def facts_of(self, dataset: str, teacher: NetworkSpec) -> TeacherFacts:
        """What is known of a teacher of a dataset."""
        return self.teachers.get(f"{dataset}/{teacher.architecture}", TeacherFacts())
