"""What a scale may ask of a run: a part of the training images, and a test after some epochs only."""

import numpy as np
import pytest
from pydantic import ValidationError

from fbt_core.data.load import load_splits
from fbt_core.run import main
from fbt_core.spec import DatasetSpec
from tests.test_core.engine_runs import CLASSES, TRAIN, arguments, make_spec, metrics_of, write_images


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def dataset(**changes) -> DatasetSpec:
    return make_spec().dataset.model_copy(update=changes)


def test_a_part_of_the_training_images_is_the_first_ones_of_each_class(root):
    whole, tested = load_splits(dataset(), {"squares": str(root)})
    part, as_before = load_splits(dataset(train_images=40, part_of=TRAIN), {"squares": str(root)})
    first = np.sort(np.concatenate([np.flatnonzero(whole.labels == label)[:10] for label in range(CLASSES)]))
    assert np.array_equal(part.images, whole.images[first])
    assert part.labels.equal(whole.labels[first])
    assert as_before.labels.equal(tested.labels) and np.array_equal(as_before.images, tested.images)


def test_a_part_is_smaller_than_the_whole():
    with pytest.raises(ValidationError, match="96 training images are no part of 96"):
        make_spec(dataset__part_of=TRAIN)


def test_a_part_and_fewer_tests_make_other_runs_and_their_absence_the_same_ones():
    whole = make_spec()
    assert "part_of" not in whole.canonical_json() and "evaluate_every" not in whole.canonical_json()
    ids = {whole.id, make_spec(dataset__train_images=48, dataset__part_of=TRAIN).id}
    ids.add(make_spec(dataset__train_images=48).id)
    ids.add(make_spec(recipe__evaluate_every=2).id)
    assert len(ids) == 4
    assert make_spec(recipe__evaluate_every=1).id == whole.id


@pytest.mark.parametrize(("every", "tested"), [(None, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_which_epochs_end_with_a_test(every, tested):
    recipe = make_spec(recipe__epochs=5, recipe__evaluate_every=every).recipe
    assert [epoch for epoch in range(1, 6) if recipe.evaluates(epoch)] == tested
    assert recipe.tests == len(tested)


def test_the_warm_up_may_be_the_whole_training():
    recipe = make_spec(recipe__epochs=1).recipe
    assert recipe.schedule.warmup_epochs == recipe.epochs


def test_only_some_epochs_are_evaluated_and_the_last_one_always(root, tmp_path):
    often = make_spec(recipe__epochs=5)
    seldom = make_spec(recipe__epochs=5, recipe__evaluate_every=2)
    for spec in (often, seldom):
        assert main(arguments(spec, tmp_path, root)) == 0
    every, some = metrics_of(tmp_path, often), metrics_of(tmp_path, seldom)
    tested = [line["epoch"] for line in some["history"] if line["top1"] is not None]
    assert tested == [2, 4, 5]
    for all_lines, line in zip(every["history"], some["history"], strict=True):
        names = ("top1", "top5", "top1_ema", "test_loss") if line["epoch"] in tested else ()
        assert {name: line[name] for name in names} == {name: all_lines[name] for name in names}
        assert line["loss"] == all_lines["loss"]
        left_out = [line[name] for name in ("top1", "top5", "top1_ema", "test_loss")]
        assert names or left_out == [None] * 4
    assert some["last"] == every["last"]
    assert some["best"]["top1"] == max(line["top1"] for line in some["history"] if line["top1"] is not None)
    assert "not evaluated" in (tmp_path / seldom.id / "log.txt").read_text()
