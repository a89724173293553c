"""Method: what all distillation methods share. The one file that imports timm's young task interface.

A method takes two networks that are cut into stages, and adds terms to the loss of the student:

>>> import timm, torch
>>> from fbt_core.methods import build_method
>>> from fbt_core.spec import MethodSpec
>>> from fbt_core.staged import stage
>>> teacher = stage(timm.create_model("test_vit", num_classes=10, img_size=32), 32)
>>> student = stage(timm.create_model("test_resnet", num_classes=10), 32)
>>> parameters = {"label_weight": 1.0, "logit_weight": 1.0, "temperature": 4.0}
>>> context = Context(10, 50_000, 300, 0.1, 32, student_family="cnn", teacher_family="msa")
>>> method = build_method(MethodSpec(name="kd", parameters=parameters, revision=1), student, teacher, context)

The loop gives it batches, and what the frozen teacher makes of them:

>>> batch = Batch(torch.randn(2, 3, 32, 32), target=torch.tensor([3, 7]), indices=torch.tensor([0, 1]))
>>> with torch.no_grad():
...     seen = teacher.features(batch.images)
>>> result = method.train()(batch, seen)
>>> result["loss"].backward()
>>> list(result["terms"]), tuple(result["output"].shape)
(['labels', 'logits'], (2, 10))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import ModelEmaV3, unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fbt_core.errors import UserError
from fbt_core.losses.labels import cross_entropy
from fbt_core.methods.facts import method_facts
from fbt_core.methods.parameters import read_parameters
from fbt_core.spec import RunSpec
from fbt_core.staged import StagedModel
from fbt_core.staged.base import StagedOutput

COMPARES = "compares the images of a batch"
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Context:
    """What a method may know of the run besides its parameters.

    `labels` (train_images,) int64 gives the class of every training image if the loader knows it;
    only CRD reads it (negatives of other classes), and learns the classes as images come if it is None.
    """

    classes: int
    train_images: int
    epochs: int
    label_smoothing: float
    image_size: int
    student_family: str
    teacher_family: str | None
    labels: Tensor | None = None

    @classmethod
    def of(cls, spec: RunSpec, labels: Tensor | None = None) -> Context:
        """The context of a run."""
        return cls(
            classes=spec.dataset.classes,
            train_images=spec.dataset.train_images,
            epochs=spec.recipe.epochs,
            label_smoothing=spec.recipe.label_smoothing,
            image_size=spec.dataset.image_size,
            student_family=spec.student.family,
            teacher_family=spec.teacher.family if spec.teacher else None,
            labels=labels,
        )


@dataclass
class Batch:
    """A batch: images (B, 3, H, W) normalised for the student, target (B,) or (B, classes), indices (B,)."""

    images: Tensor
    target: Tensor
    indices: Tensor


class Trainable(nn.Module):
    """The student and the method's own modules: everything that is trained or carries state.

    DDP wraps it, EMA copies what has parameters, a checkpoint holds it. Its forward runs a whole step, so
    that DDP sees every use of every parameter.
    """

    def __init__(self, student: StagedModel) -> None:
        super().__init__()
        self.student = student
        # A ModuleDict, so that whatever a method adds is saved, moved and trained.
        self.extras = nn.ModuleDict()

    def averaged(self) -> Trainable:
        """The part that the EMA averages: all that has parameters, so CRD's memory banks are not copied."""
        part = Trainable(self.student)
        learned = {
            name: module for name, module in self.extras.items() if any(True for _ in module.parameters())
        }
        part.extras.update(learned)
        return part

    def forward(self, step: Callable[..., dict[str, Any]], *inputs: Any) -> dict[str, Any]:
        return step(*inputs)


class Method(TrainingTask):
    """A distillation method: `method(batch, teacher)` gives the loss, its terms and the student's logits.

    A subclass adds its modules in `build_extras` and gives its weighted loss terms in `terms`; it reads the
    parameters that config/methods.yaml states for it as attributes of `settings`. The teacher stays in eval
    mode and never changes.
    """

    unused_parameters = False
    """True if a step may leave a trainable parameter without gradient (DDP must know)."""
    needs_indices = False
    """True if the method reads `Batch.indices`, the numbers of the images in the training set."""
    needs_whole_batch: str | None = None
    """Why parts of a batch would not give what the whole does (COMPARES); None: every image counts alone."""

    def __init__(
        self,
        student: StagedModel,
        teacher: StagedModel | None,
        parameters: Mapping[str, Any],
        context: Context,
    ) -> None:
        super().__init__(verbose=False)
        # Checked before anything is built; a method reads its numbers from here alone.
        self.settings = read_parameters(self.name, method_facts(self.name), parameters, context.classes)
        self.context, self.epoch = context, 0
        self.trainable_module = Trainable(student)
        # The teacher stays outside the trainable module: DDP, EMA and the optimiser must not see it.
        self.teacher = self._frozen(teacher)
        self.extras.update(self.build_extras())

    @property
    def name(self) -> str:
        """The method's name: the name of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def student(self) -> StagedModel:
        """The student, also inside DDP."""
        return unwrap_model(self.trainable_module).student

    @property
    def extras(self) -> nn.ModuleDict:
        """The method's own modules (projectors, fused model, memory banks), also inside DDP."""
        return unwrap_model(self.trainable_module).extras

    def build_extras(self) -> dict[str, nn.Module]:
        """The modules the method adds to the student; they are trained with it and thrown away afterwards."""
        return {}

    def terms(self, student: StagedOutput, teacher: StagedOutput | None, batch: Batch) -> Terms:
        """The named loss terms with their weights, each a scalar; they sum to the loss."""
        raise NotImplementedError(f"{type(self).__name__} must define terms()")

    def forward(self, batch: Batch, teacher: StagedOutput | None) -> dict[str, Any]:
        """One step: `loss` (scalar), `output` (the student's logits), `terms` (detached, sum to the loss).

        `teacher` is what the teacher gave for the batch, without graph; None for a method without teacher.
        """
        return self.trainable_module(self.step, batch, teacher)

    def step(self, batch: Batch, teacher: StagedOutput | None) -> dict[str, Any]:
        """The student's pass and the loss; runs inside the trainable module's forward."""
        student = self.student.features(batch.images)
        return self.collect(student.logits, self.terms(student, teacher, batch))

    def collect(self, output: Tensor, terms: Terms) -> dict[str, Any]:
        """The result of a step from the student's logits and the weighted terms."""
        # In float32: a sum of half-precision terms would round away the small ones.
        terms = {name: term.float() for name, term in terms.items()}
        # Detached for the log: the graph would live until the losses are read.
        detached = {name: term.detach() for name, term in terms.items()}
        return {"loss": torch.stack(list(terms.values())).sum(), "output": output, "terms": detached}

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy on the batch's labels, smoothed as the recipe says."""
        return cross_entropy(logits, batch.target, self.context.label_smoothing)

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch (from 0), also after a resume: ramps read `self.epoch`."""
        self.epoch = epoch

    def adapt_normalisation(self, adapt: Callable[[nn.Module], nn.Module]) -> None:
        """Called once, before DDP: `adapt` changes the BatchNorms of all that normalises by the batch.

        That is the trainable module, unless a method says else: a frozen teacher's keep to their statistics.
        """
        self.trainable_module = adapt(self.trainable_module)

    def ramp(self, epochs: int, start: int = 1) -> float:
        """A weight that rises linearly to 1 over the first `epochs` epochs; 0 epochs mean 1 at once.

        It is start / epochs in the first epoch.
        """
        return min(1.0, (self.epoch + start) / epochs) if epochs else 1.0

    def setup_ema(self, decay: float = 0.9999, **options: Any) -> nn.Module:
        """Create the EMA copy of what is averaged."""
        self.trainable_module_ema = ModelEmaV3(self.trainable_module.averaged(), decay=decay, **options)
        return self.trainable_module_ema

    def update_ema(self, step: int | None = None) -> None:
        """Move the EMA copy towards the present weights."""
        if self.has_ema():
            self.trainable_module_ema.update(unwrap_model(self.trainable_module).averaged(), step=step)

    def eval_network(self, trainable: Trainable) -> nn.Module:
        """The network whose score is reported, images to logits: the student unless a method says else."""
        return trainable.student

    @property
    def has_fused_model(self) -> bool:
        """Whether a fused model stands between teacher and student; its own score is reported as well."""
        return False

    def fused_logits(self, images: Tensor, teacher: StagedOutput) -> Tensor:
        """The fused model's logits (B, classes), given what the teacher makes of the images."""
        raise NotImplementedError(f"{type(self).__name__} has no fused model")

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The network to evaluate, from the trained module or from its EMA copy (None without EMA)."""
        module = self.get_trainable_module(ema=ema) if module is None else module
        return None if module is None else self.eval_network(unwrap_model(module))

    def prepare_distributed(self, device_ids: list[int] | None = None, **options: Any) -> Method:
        """Wraps the trainable module in DDP; the frozen teacher stays as it is.

        Buffers are each process's own: banks and statistics follow from what all processes gathered.
        """
        # Newer versions of torch have another name for it.
        if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
            options.setdefault("forward_sync_buffers", False)
        else:
            options.setdefault("broadcast_buffers", False)
        self.trainable_module = DistributedDataParallel(
            self.trainable_module,
            device_ids=device_ids,
            find_unused_parameters=self.unused_parameters,
            **options,
        )
        return self

    def train(self, mode: bool = True) -> Method:
        """Training or evaluation mode for the trainable module; the teacher stays in eval for ever."""
        # timm's task sets the mode of all its modules, the teacher among them.
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _frozen(self, teacher: StagedModel | None) -> StagedModel | None:
        """The teacher in eval mode without gradients; a missing one is an error if it is needed."""
        if not method_facts(self.name).needs_teacher:
            return None
        if teacher is None:
            raise UserError(f"method '{self.name}' needs a teacher", hint="name one, or use method 'scratch'")
        return teacher.freeze()
