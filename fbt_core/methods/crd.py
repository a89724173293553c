"""CRD: the student's embedding finds its own image's teacher embedding among many of other classes.

A row of the banks belongs to an image of the training set, and so does its class: under mixup and cutmix the
negatives are of other classes than the row's own image has, whichever image weighs most in the mixture.
What is embedded is what enters the classifier, as in OFA's code: ConvNeXt's after the norm of
its head, the class token of a transformer that has one. `feature: pooled` takes the last stage's average.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fbt_core.collectives import draw_rows, gather_with_gradient
from fbt_core.losses.labels import target_class
from fbt_core.losses.numerics import in_float32, unit_rows
from fbt_core.methods.base import COMPARES, Batch, Method, Terms
from fbt_core.methods.modules import feature_width, image_feature
from fbt_core.staged.base import StagedOutput

SORTED = ("ordered", "positions", "ranks")
UNKNOWN = -1  # the class of an image that was not seen yet


@in_float32
def noise_contrast(log_positive: Tensor, log_negatives: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation with the bank's images as noise, mean over the batch.

    log_positive (B,), log_negatives (B, K): log of exp(similarity / T) / Z; images = N of the bank.
    h = P / (P + K/N); -log h for the positive and -log(1 - h) for the negatives. Tian et al. 2020.
    """
    # In logarithms: P and K/N may lie far apart, and their quotient overflows.
    log_noise = math.log(log_negatives.shape[1] / images)
    positive = functional.logsigmoid(log_positive - log_noise)
    negatives = functional.logsigmoid(log_noise - log_negatives).sum(dim=1)
    return -(positive + negatives).mean()


class Bank(nn.Module):
    """One unit vector per training image, moved towards its newest embedding, and the normaliser Z."""

    def __init__(self, images: int, width: int) -> None:
        super().__init__()
        # Uniform with about unit length: the first similarities are those of random directions.
        bound = 1 / math.sqrt(width / 3)
        self.register_buffer("vectors", torch.empty(images, width).uniform_(-bound, bound))
        self.register_buffer("log_normaliser", torch.zeros(()))
        self.register_buffer("is_normalised", torch.tensor(False))
        # A Python flag beside the buffer, which a step cannot ask: a GPU would wait, a compiled graph break.
        self._normalised = False
        self.register_load_state_dict_post_hook(Bank._read_flag)

    def similarity(self, embedding: Tensor, columns: Tensor, temperature: float) -> Tensor:
        """log of exp(similarity / T) / Z between embeddings (B, D) and the bank's rows `columns` (B, M)."""
        # All similarities by one product, then the columns: gathered first, each image would copy K vectors.
        with torch.autocast(embedding.device.type, enabled=False):
            vectors = self.vectors.clone()  # its rows move before the backward pass
            all_images = embedding.float() @ vectors.t() / temperature
        logits = all_images.gather(1, columns)
        # Constant: Z is a property of the first batch, with no gradient of its own.
        if not self._normalised:
            self._set_normaliser(logits.detach())
        return logits - self.log_normaliser

    @torch.no_grad()
    def update(self, embedding: Tensor, indices: Tensor, momentum: float) -> None:
        """Moves the rows of these images (B,) towards their embeddings (B, D) and back to unit length."""
        moved = self.vectors[indices] * momentum + embedding.float() * (1 - momentum)
        self.vectors[indices] = unit_rows(moved)

    def _read_flag(self, _: object) -> None:
        """A bank that goes on from a checkpoint keeps the Z that it had."""
        self._normalised = bool(self.is_normalised)

    def _set_normaliser(self, logits: Tensor) -> None:
        """Z is estimated once, from the first batch: N times the mean of exp(similarity / T)."""
        # In logarithms, and the mean of means: every process has equally many.
        log_mean = logits.flatten().logsumexp(0, keepdim=True) - math.log(logits.numel())
        # All processes need the same Z, or their banks would stop being equal.
        means = gather_with_gradient(log_mean)
        log_mean = means.logsumexp(0) - math.log(len(means))
        self.log_normaliser.copy_(log_mean + math.log(len(self.vectors)))
        self.is_normalised.fill_(True)
        self._normalised = True


class OtherClasses(nn.Module):
    """Draws images of other classes; a class is known from the start, or once its image was seen.

    Where the classes are not given, `learn` stores what the batch says: the class, or under mixup and cutmix
    the heaviest one of the mixture, which may be the partner's; the newest answer counts. An image is never
    its own negative, whatever is stored.
    """

    def __init__(self, images: int, labels: Tensor | None) -> None:
        super().__init__()
        known = torch.full((images,), UNKNOWN)
        if labels is not None:
            known = labels.detach().clone().long()
        self.register_buffer("labels", known)
        self.is_complete = labels is not None
        # Sorted once, if the classes are known: else the classes that were learned change at each step.
        if self.is_complete:
            for name, values in zip(SORTED, sort_by_class(known), strict=True):
                self.register_buffer(name, values, persistent=False)
            largest = int(known.bincount().max())
            self.fewest = max(1, images - (largest if largest < images else 1))

    def learn(self, target: Tensor, indices: Tensor) -> None:
        """Notes the classes (B,) of the images (B,), if they were not given."""
        if not self.is_complete:
            self.labels[indices] = target

    def draw(self, indices: Tensor, count: int) -> Tensor:
        """Dataset positions (B, K) of images of other classes than the images `indices` (B,), K <= count.

        K is `count`, or as many as the image with the fewest others has, if classes are given.
        Images sorted by class leave one gap per class, which the drawn number jumps over. Images of unknown
        class count as others of everything but themselves. With a single class all other images are drawn
        from, and a single image has itself alone.
        """
        known = (getattr(self, name) for name in SORTED)
        ordered, positions, ranks = known if self.is_complete else sort_by_class(self.labels)
        # The gap of an image's class in the sorted order is what may not be drawn.
        first, same_class = self._gaps(ordered, ranks, indices)
        available = (len(ordered) - same_class).clamp(min=1)
        # A fixed number of columns: with classes known beforehand, nothing is asked of the device.
        fewest = self.fewest if self.is_complete else int(available.min())
        drawn = draw_rows(len(indices), max(1, min(count, fewest)), indices.device)
        numbers = (drawn * available[:, None]).long()
        # Numbers beyond the gap jump over it, which leaves all others equally likely.
        return positions[(numbers + (numbers >= first[:, None]) * same_class[:, None]) % len(positions)]

    def _gaps(self, ordered: Tensor, ranks: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Where each image's class starts in the sorted labels, and how many images it has (B,).

        For an image of unknown class, or of the only one, the gap is the image alone.
        """
        labels = self.labels[indices]
        first = torch.searchsorted(ordered, labels)
        count = torch.searchsorted(ordered, labels, right=True) - first
        # Without a known class, or with only one class, the image itself is all that can be left out.
        alone = (labels == UNKNOWN) | (count == len(ordered))
        return torch.where(alone, ranks[indices], first), torch.where(alone, 1, count)


def sort_by_class(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The labels (N,) in order, the images in that order, and each image's position in it."""
    ordered, positions = labels.sort(stable=True)
    return ordered, positions, positions.argsort()


class CRD(Method):
    """Cross-entropy and the contrast of both embeddings with the other network's memory bank."""

    needs_whole_batch = COMPARES
    needs_indices = True

    def build_extras(self) -> dict[str, nn.Module]:
        images, width, feature = self.context.train_images, self.settings.width, self.settings.feature
        return {
            "student": nn.Linear(feature_width(self.student, feature), width),
            "teacher": nn.Linear(feature_width(self.teacher, feature), width),
            "student_bank": Bank(images, width),
            "teacher_bank": Bank(images, width),
            "others": OtherClasses(images, self.context.labels),
        }

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        learner = image_feature(self.student, student, self.settings.feature)
        source = image_feature(self.teacher, teacher, self.settings.feature)
        embedded = {
            # Unit vectors in float32: the bank is float32, and half precision would move it in steps.
            "student": unit_rows(self.extras["student"](learner).float()),
            "teacher": unit_rows(self.extras["teacher"](source).float()),
        }
        columns = self._choose_columns(batch)
        weight = self.settings.contrast_weight
        terms = {"labels": self.settings.label_weight * self.label_loss(student.logits, batch)}
        terms["student_contrast"] = weight * self._contrast(embedded["student"], "teacher_bank", columns)
        terms["teacher_contrast"] = weight * self._contrast(embedded["teacher"], "student_bank", columns)
        # After both contrasts: a bank that already held this batch would give the positive away.
        self._update_banks(embedded, batch.indices)
        return terms

    def _choose_columns(self, batch: Batch) -> Tensor:
        """Bank rows (B, 1 + K): the image itself, then the negatives."""
        others, target = self.extras["others"], target_class(batch.target)
        # Classes first: negatives of this batch are drawn with what it has just shown.
        others.learn(gather_with_gradient(target), gather_with_gradient(batch.indices))
        negatives = others.draw(batch.indices, self.settings.negatives)
        # The positive comes first, which is how `_contrast` knows it.
        return torch.cat([batch.indices[:, None], negatives], dim=1)

    def _contrast(self, embedding: Tensor, bank: str, columns: Tensor) -> Tensor:
        logits = self.extras[bank].similarity(embedding, columns, self.settings.temperature)
        return noise_contrast(logits[:, 0], logits[:, 1:], self.context.train_images)

    def _update_banks(self, embedded: dict[str, Tensor], indices: Tensor) -> None:
        """Every process moves the rows of all processes' images, so that the banks stay equal."""
        # Gathered: a bank that differed between processes would train different students.
        indices = gather_with_gradient(indices)
        for name, embedding in embedded.items():
            gathered = gather_with_gradient(embedding.detach())
            self.extras[f"{name}_bank"].update(gathered, indices, self.settings.momentum)


METHOD = CRD
