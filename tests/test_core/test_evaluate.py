"""A trained network on a folder of images: accuracies by class, predictions without labels, refusals."""

import csv
import json

import pytest
import torch

from fbt_core.data.load import load_splits
from fbt_core.errors import UserError
from fbt_core.export import export
from fbt_core.measure.evaluate import Images, by_class, load_network, main, predict
from fbt_core.run import main as train
from tests.test_core.engine_runs import CLASSES, arguments, make_spec, metrics_of, write_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was trained on squares, and its own test images as files by class."""
    folder = tmp_path_factory.mktemp("trained")
    root, spec = write_images(folder / "data"), make_spec(recipe__epochs=2)
    assert train(arguments(spec, folder / "runs", root)) == 0
    test_split = load_splits(spec.dataset, {"squares": str(root)})[1]
    for number, label in enumerate(test_split.labels.tolist()):
        path = folder / "photos" / f"class{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        test_split.picture(number).save(path)
    return folder, spec


def test_the_runs_own_test_images_give_its_own_score(trained, tmp_path, capsys):
    folder, spec = trained
    run = str(folder / "runs" / spec.id)
    assert main([run, str(folder / "photos"), "--csv", str(tmp_path / "classes.csv")]) == 0
    best = metrics_of(folder / "runs", spec)["best"]
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line == f"30 images: top-1 {best['top1']:.2f} %, top-5 {best['top5']:.2f} %"
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["class"] for row in rows] == [f"class{label}" for label in range(CLASSES)]
    right = sum(float(row["top1"]) * int(row["images"]) for row in rows)
    assert right / 30 == pytest.approx(best["top1"], abs=0.01)


def test_predictions_without_labels_and_from_an_exported_folder(trained, tmp_path, capsys):
    folder, spec = trained
    export(folder / "runs" / spec.id, tmp_path / "out")
    (tmp_path / "photos").mkdir()
    for path in (folder / "photos" / "class1").iterdir():
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    target = tmp_path / "predictions.csv"
    assert main([str(tmp_path / "out"), str(tmp_path / "photos"), "--csv", str(target)]) == 0
    rows = list(csv.DictReader(target.open()))
    network, _ = load_network(folder / "runs" / spec.id, None)
    paths = sorted((tmp_path / "photos").iterdir())
    logits = torch.cat(list(predict(network, spec, paths, "cpu")))
    assert [int(row["class"]) for row in rows] == logits.argmax(1).tolist()
    assert [row["image"] for row in rows] == [path.name for path in paths]
    assert all(0 < float(row["probability"]) <= 1 for row in rows)


def test_a_run_whose_weights_lack_a_classifier_is_refused(trained, tmp_path):
    folder, spec = trained
    metrics = metrics_of(folder / "runs", spec)
    metrics["spec"]["method"]["name"] = "simkd"
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match="SimKD's weights are the student without a trained classifier"):
        load_network(tmp_path, None)


def test_accuracies_worked_out_by_hand():
    images = Images([], [0, 0, 1, 2], ["a", "b", "c"])
    logits = torch.tensor([[3.0, 1, 0], [0, 3, 1], [0, 3, 1], [3, 2, 1]])
    rows, (first, five) = by_class(images, logits)
    assert rows == [("a", 2, 50.0, 100.0), ("b", 1, 100.0, 100.0), ("c", 1, 0.0, 100.0)]
    assert (first, five) == (50.0, 100.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is no folder"),
        (lambda folder: folder.mkdir(), "holds no images"),
        (lambda folder: (folder / "only").mkdir(parents=True), "has 1 class folders, the network 4 classes"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(trained, tmp_path, capsys, make, message):
    folder, spec = trained
    make(tmp_path / "images")
    assert main([str(folder / "runs" / spec.id), str(tmp_path / "images")]) == 1
    assert message in capsys.readouterr().err
