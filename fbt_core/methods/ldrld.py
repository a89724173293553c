"""LDRLD: the classes that the student ranks first are compared pair by pair, all others among themselves.

For each image the student's largest logits choose the classes; both networks' logits are restricted to each
pair of them, to all of them, and to the rest. Near ranks, and high ones, weigh more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fbt_core.losses.logits import kl_divergence
from fbt_core.losses.numerics import in_float32
from fbt_core.methods.base import Batch, Method, Terms
from fbt_core.staged.base import StagedOutput


@in_float32
def local_divergence(
    student: Tensor, teacher: Tensor, count: int, temperature: float, offset: float, decay: float
) -> Tensor:
    """The mean over all pairs of the `count` chosen classes, and over all of them together, of T^2 KL.

    student, teacher (B, C) logits. The pair of ranks a < b (from 1) weighs 2 / (offset + b - a) times
    exp(-decay (a + b)), all classes together weigh 1; arXiv:2507.15911, in the released form.
    """
    # Every pair once: the upper triangle.
    first, second = torch.triu_indices(count, count, offset=1, device=student.device)
    chosen = student.topk(count).indices
    learner, source = student.gather(1, chosen), teacher.gather(1, chosen)
    pairs = [torch.stack((logits[:, first], logits[:, second]), dim=2) for logits in (learner, source)]
    # Ranks count from 0 here and from 1 in the paper, hence + 2.
    weights = 2 / (offset + second - first) * torch.exp(-decay * (first + second + 2))
    # A pair of an image is a row of two classes: the mean over rows, with these weights, is the mean wanted.
    learned, taught = (logits.flatten(0, 1) for logits in pairs)
    # kl_divergence averages over rows, and the wanted sum is over the pairs.
    of_pairs = kl_divergence(learned, taught, temperature, weights.repeat(len(student))) * len(first)
    return (of_pairs + kl_divergence(learner, source, temperature)) / (math.comb(count, 2) + 1)


@in_float32
def rest_divergence(student: Tensor, teacher: Tensor, count: int, temperature: float) -> Tensor:
    """T^2 KL over the classes (B, C - count) that are not among the student's `count` largest logits."""
    # A full sort, because topk keeps the largest only.
    others = student.argsort(dim=1, descending=True)[:, count:]
    return kl_divergence(student.gather(1, others), teacher.gather(1, others), temperature)


class LDRLD(Method):
    """Cross-entropy, and the two divergences over the classes that the student ranks first and over the rest.

    `selected` classes are chosen; which ones is not differentiated.
    """

    def terms(self, student: StagedOutput, teacher: StagedOutput, batch: Batch) -> Terms:
        s = self.settings
        local = local_divergence(
            student.logits, teacher.logits, s.selected, s.temperature, s.rank_offset, s.rank_decay
        )
        rest = rest_divergence(student.logits, teacher.logits, s.selected, s.temperature)
        return {
            "labels": s.label_weight * self.label_loss(student.logits, batch),
            "local": s.local_weight * local,
            "rest": s.rest_weight * rest,
        }


METHOD = LDRLD
