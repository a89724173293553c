"""How much of a GPU the runs of a pack keep, and how many of them `pack: auto` puts together.

The runs of a pack take their steps one after the other: what a step keeps of a batch, and the teacher, are
there once, as for a run alone. What adds up is what each run keeps from step to step; that is counted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fbt_core.methods.facts import MethodFacts
from fbt_core.spec import RunSpec
from fbt_paper.plan.bill import BANK_METHOD

LARGEST = 16
"""No pack of `auto` is larger: sixteen runs save nearly all that can be saved (docs/packs.md)."""
STATE_SHARE = 0.5
"""Share of a GPU that `auto` fills; the rest is for the teacher and a step, as for a run alone (assumed)."""
EXTRA_MODULES = 2.0
"""A method with modules of its own trains so many times the student's weights (assumed)."""
FLOAT = 4
OPTIMISER_KEEPS = {"sgd": 1, "adamw": 2}
"""Numbers that an optimiser keeps of each weight: momentum; AdamW's two moments."""
BANKS = 4
"""CRD's two banks, and the copy of each that a step makes."""


def state_gb(spec: RunSpec, gpus: int, facts: MethodFacts, parameters: Mapping[str, int]) -> float | None:
    """GB that a run keeps on each GPU from step to step; None if its network's parameters were not counted.

    Weights, gradients, what the optimiser and the averaged weights keep of each, memory banks; in float32.
    """
    counted = parameters.get(spec.student.architecture)
    if counted is None:
        return None
    trained = counted * (EXTRA_MODULES if facts.extra_parameters else 1)
    # A weight, its gradient, and with several GPUs the buffer through which gradients are exchanged.
    copies = 2 + OPTIMISER_KEEPS[spec.recipe.optimizer.name]
    copies += (spec.recipe.ema_decay is not None) + (gpus > 1)
    banks = 0
    if spec.method.name == BANK_METHOD:
        banks = BANKS * spec.dataset.train_images * int(str(spec.method.parameters["width"]))
    return FLOAT * (copies * trained + banks) / 1e9


def fits_memory(states: Sequence[float | None], memory: float) -> bool:
    """Whether `auto` puts runs together that keep so many GB each on a device that has `memory` GB.

    One that was not counted trains alone.
    """
    counted = [state for state in states if state is not None]
    if len(counted) < len(states) or len(states) > LARGEST:
        return False
    return sum(counted) <= STATE_SHARE * memory
