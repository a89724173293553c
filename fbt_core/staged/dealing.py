"""Deal the pieces of a network to four stages: by resolution, or by the split if it never changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Literal, get_args

from fbt_core.errors import UserError
from fbt_core.staged.base import UnknownStructure

Split = Literal["even", "ofa"]
Grid = tuple[int, int]
STAGES = 4
FRACTIONS: dict[str, tuple[int, int, int, int]] = {"even": (3, 6, 9, 12), "ofa": (2, 4, 10, 12)}
"""Where stages end in a 12-block network: 3/3/3/3 (the paper) and 2/2/6/2 (the OFA repository's branches)."""


def check_split(split: str) -> None:
    """Raises UserError when the split is unknown."""
    if split not in get_args(Split):
        raise UserError(f"unknown split {split!r}", given=split, choices=get_args(Split))


def deal(grids: Sequence[Grid], split: str) -> tuple[int, ...]:
    """Where the stem and the four stages end: five counts of pieces, from each piece's output grid.

    Four pieces are the network's own stages. Otherwise a stage is a resolution: more than four of them give
    the first ones to the stem, one is dealt by the split, two or three are halved, the longest first.
    Raises UnknownStructure when there are fewer than four pieces.
    """
    check_split(split)
    if len(grids) < STAGES:
        raise UnknownStructure(f"a body of {len(grids)} pieces cannot make {STAGES} stages")
    # Four pieces are stages that the network's authors made.
    if len(grids) == STAGES:
        return (0, 1, 2, 3, 4)
    # Neighbours of one grid are a resolution: strides between them are where networks change.
    sizes = [len(list(run)) for _, run in groupby(grids)]
    if len(sizes) == 1:
        return (0, *_fractions(len(grids), FRACTIONS[split]))
    # Halved longest first: stages of few blocks stay whole.
    while len(sizes) < STAGES:
        sizes = _halve_longest(sizes)
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    # More than four resolutions: the first ones are little more than downsampling.
    in_stem = ends[-STAGES - 1] if len(sizes) > STAGES else 0
    return (in_stem, *ends[-STAGES:])


def _fractions(pieces: int, twelfths: Sequence[int]) -> tuple[int, ...]:
    """Stage ends in proportion to those of a 12-block network, at least one piece a stage."""
    # Rounded half up, and not to even as Python does: one rule for all depths.
    ends = [math.floor(pieces * twelfth / 12 + 0.5) for twelfth in twelfths]
    for index in range(STAGES):
        # At least one piece a stage, from the front and then from the back.
        ends[index] = max(ends[index], ends[index - 1] + 1 if index else 1)
    return tuple(min(end, pieces - (STAGES - 1 - index)) for index, end in enumerate(ends))


def _halve_longest(sizes: list[int]) -> list[int]:
    longest = sizes.index(max(sizes))
    half = sizes[longest] // 2
    return [*sizes[:longest], sizes[longest] - half, half, *sizes[longest + 1 :]]
