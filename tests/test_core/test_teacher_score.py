"""The teacher's own top-1 and the fused model's stand in the results of the students."""

import signal

import numpy as np
import pytest

from fbt_core.learner import Learner
from fbt_core.methods.base import Method
from fbt_core.run import main
from tests.test_core.engine_runs import (
    KD,
    arguments,
    at_step,
    in_child,
    make_spec,
    metrics_of,
    network,
    write_images,
)
from tests.test_core.test_engine_recipes import teaching_spec

UNLIKE = {"mean": (0.9, 0.9, 0.9), "std": (0.05, 0.05, 0.05)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def taught(root, tmp_path_factory):
    """The folder of runs with a trained teacher, and the spec of a student of it."""
    runs = tmp_path_factory.mktemp("runs")
    teacher = make_spec(student=network("teacher"), recipe__epochs=25)
    assert main(arguments(teacher, runs, root)) == 0
    method = {"name": "kd", "parameters": KD, "revision": 1}
    return runs, teacher, make_spec(teacher=network("teacher", weights=f"run:{teacher.id}"), method=method)


def test_a_teacher_that_was_trained_has_the_top1_of_its_own_run(root, taught):
    runs, teacher, student = taught
    assert main(arguments(student, runs, root)) == 0
    measured = metrics_of(runs, student)["teacher_top1"]
    assert measured == pytest.approx(metrics_of(runs, teacher)["best"]["top1"]) and measured > 30
    assert metrics_of(runs, teacher)["teacher_top1"] is None


def test_a_teacher_is_measured_in_its_own_normalisation_whatever_its_students_have(root, taught):
    runs, teacher, student = taught
    unlike = student.model_copy(
        update={
            "student": student.student.model_copy(update=UNLIKE),
            "recipe": student.recipe.model_copy(update={"teacher_normalisation": "student"}),
        }
    )
    assert main(arguments(unlike, runs, root)) == 0
    assert metrics_of(runs, unlike)["teacher_top1"] == metrics_of(runs, teacher)["best"]["top1"]


@pytest.mark.parametrize(("below", "warned"), [(0.5, False), (1.5, True)])
def test_a_teacher_below_what_is_expected_of_it_is_warned_of(root, tmp_path, below, warned):
    spec, files = teaching_spec("kd", tmp_path, seed=3)
    assert main(arguments(spec, tmp_path, root, weight_files=files)) == 0
    top1 = metrics_of(tmp_path, spec)["teacher_top1"]
    other = spec.model_copy(update={"seed": 4})
    known = {"squares/teacher": {"expected_top1": top1 + below}}
    assert main(arguments(other, tmp_path, root, weight_files=files, teachers=known)) == 0
    log = (tmp_path / other.id / "log.txt").read_text()
    assert f"top-1 {top1:.2f} % on squares" in log
    assert (f"; its expected_top1 is {top1 + below:.2f} %" in log) == warned == ("warning: teacher" in log)


def test_a_run_that_goes_on_does_not_measure_its_teacher_again(root, taught, tmp_path):
    runs, _, student = taught
    again = student.model_copy(update={"seed": 11})
    stopped = in_child(arguments(again, runs, root), at_step(3, lambda: signal.raise_signal(signal.SIGTERM)))
    assert stopped != 0
    evaluated: list[str] = []
    evaluate = Learner.evaluate

    def noting(learner, network, tests, between):
        evaluated.append(type(network).__name__)
        return evaluate(learner, network, tests, between)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "evaluate", noting)
        assert main(arguments(again, runs, root)) == 0
        assert evaluated == []
        # One that begins measures it once.
        assert main(arguments(student.model_copy(update={"seed": 12}), runs, root)) == 0
        assert len(evaluated) == 1
    assert metrics_of(runs, again)["teacher_top1"] > 30


def test_the_fused_models_own_top1_is_in_the_history(root, tmp_path):
    spec, files = teaching_spec("fbt", tmp_path, seed=3, recipe__epochs=3, recipe__evaluate_every=2)
    assert main(arguments(spec, tmp_path, root, weight_files=files)) == 0
    metrics = metrics_of(tmp_path, spec)
    fused = [line["top1_fused"] for line in metrics["history"]]
    assert fused[0] is None and metrics["fused_top1"] == fused[2]
    assert all(abs(0.3 * top1 - round(0.3 * top1)) < 1e-6 for top1 in fused[1:])


def test_the_fused_score_is_of_the_fused_logits(root, tmp_path, monkeypatch):
    """With logits that name the right class for a third of the images it is a third."""
    spec, files = teaching_spec("fbt", tmp_path, seed=5, recipe__epochs=1)
    method = next(cls for cls in Method.__subclasses__() if cls.__name__ == "FBT")
    seen = iter(range(1000))

    def first_class(self, images, teacher):
        assert teacher.logits.shape == (len(images), 4) and not self.training
        next(seen)
        return (teacher.logits.detach() * 0).index_fill(1, teacher.logits.new_zeros(1).long(), 1.0)

    monkeypatch.setattr(method, "fused_logits", first_class)
    assert main(arguments(spec, tmp_path, root, weight_files=files)) == 0
    share = 100 * np.mean([number % 4 == 0 for number in range(30)])
    assert metrics_of(tmp_path, spec)["fused_top1"] == pytest.approx(share)
