"""The teacher's own top-1, measured once before its students learn: it stands beside their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fbt_core.data.feed import Preparation
from fbt_core.data.splits import Split
from fbt_core.learner import Learner
from fbt_core.spec import TeacherFacts
from fbt_core.staged import StagedModel
from fbt_core.stream import TestImages

MARGIN = 1.0
"""Points below its expected top-1 from which on a teacher is warned of."""


def note_teacher(
    learners: Sequence[Learner], network: StagedModel | None, split: Split, between: Callable[[], None]
) -> None:
    """One pass over the test images for all learners that do not know their teacher's top-1 yet.

    The teacher sees the images in its own crop and normalisation, whatever its students' batches have.
    `between` is called after each batch, as in `Learner.evaluate`.
    """
    taught = [learner for learner in learners if learner.spec.teacher is not None]
    # A resumed run knows it from its checkpoint; teachers do not change.
    waiting = [learner for learner in taught if learner.state.teacher_top1 is None]
    if network is None or not waiting:
        return
    # Any of them: their teacher and test images are the same.
    first = waiting[0]
    spec, settings, group = first.spec, first.settings, first.group
    assert spec.teacher is not None  # it has a network
    facts = settings.facts_of(spec.dataset.name, spec.teacher)
    # Small images are tested whole: only where the student has a crop of its own has the teacher one.
    crop = spec.test_crop and (facts.test_crop or spec.test_crop)
    # Its own normalisation, also if a recipe shows it the student's in training.
    mean, std = spec.teacher.mean, spec.teacher.std
    preparation = Preparation(
        spec.recipe, spec.dataset.classes, mean, std, group.device, settings.channels_last
    )
    tests = TestImages(spec, settings, split, group, preparation, crop)
    top1 = first.evaluate(network, tests, between)["top1"]
    for learner in waiting:
        learner.state.teacher_top1 = top1
        learner.folder.note(describe(learner, top1, facts))


def describe(learner: Learner, top1: float, facts: TeacherFacts) -> str:
    """A line for the log; a warning if the teacher is clearly below what it should reach."""
    teacher, dataset = learner.spec.teacher, learner.spec.dataset.name
    assert teacher is not None
    text = f"teacher {teacher.architecture} ({teacher.weights}): top-1 {top1:.2f} % on {dataset}"
    expected = facts.expected_top1
    # A teacher far below is likely not the one that is meant: other weights, or another normalisation.
    if expected is None or top1 >= expected - MARGIN:
        return text
    return f"warning: {text}; its expected_top1 is {expected:.2f} %"
