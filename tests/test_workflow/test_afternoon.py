"""A stranger's afternoon with the documentation alone: a study of their own, its best student given away."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from tests.test_workflow.test_contributing import Copy, block

CELLS = ("scratch", "half_kd_0_5", "half_kd_1")
TABLE = "Add a table, a sweep and a claim"


def add_the_study(copy: Copy, images: Path) -> None:
    """A method, a network, a data set, a table with a sweep, and a claim: the blocks of CONTRIBUTING.md."""
    copy.add_the_method()
    copy.add_the_architecture()
    copy.add_the_dataset(images)
    (copy.folder / "config/tables/half_kd.yaml").write_text(block(TABLE, "yaml"))
    copy.append("config/claims.yaml", block(TABLE, "yaml", 1))
    # Not of the documentation: a single epoch.
    datasets = copy.folder / "config/datasets.yaml"
    short = "{batch_size: 8, epochs: 1, evaluate_every: 1}"
    datasets.write_text(datasets.read_text().replace("{batch_size: 8}", short))


def fbt(copy: Copy, *arguments: str | Path) -> str:
    return copy.python("-m", "fbt_paper.cli", *map(str, arguments))


@pytest.mark.slow
def test_an_afternoon(tmp_path):
    copy, images = Copy(tmp_path / "mine"), tmp_path / "flowers"
    add_the_study(copy, images)

    # Planned, trained, drawn and judged.
    assert "half_kd_helps" in fbt(copy, "plan", "--claims", "half_kd")
    shown = fbt(copy, "run", "half_kd", "--cores", "2")
    assert "4 runs are done" in shown, "three cells and their teacher"
    assert re.search(r"(holds|undecided|contradicted): Half KD is above training from scratch \(", shown)
    assert "sweeps_half_kd.png" in shown
    results = copy.folder / "results/smoke"
    assert len((results / "figures/sweeps_half_kd.csv").read_text().splitlines()) == 1 + 2
    log = next((results / "logs/train").glob("flowers-half_kd-*.log"))
    assert f"{log.stem}: epoch 1/1  loss " in log.read_text()
    status = fbt(copy, "status", "half_kd", "--runs")
    assert all(f"half_kd/{cell}/top1" in status for cell in CELLS)

    # The best student, loaded by timm alone, says of an image what `fbt eval` says of it.
    with (results / "tables/half_kd.csv").open() as file:
        scores = {line["row"]: float(line["top1"]) for line in csv.DictReader(file)}
    best = max(CELLS, key=scores.__getitem__)
    student, predictions = tmp_path / "my-student", tmp_path / "predictions.csv"
    fbt(copy, "export", f"half_kd/{best}/top1", "--to", student)
    evaluated = fbt(copy, "eval", student, images / "val", "--csv", tmp_path / "classes.csv")
    assert f"20 images: top-1 {scores[best]:.2f} %" in evaluated
    fbt(copy, "eval", student, images / "val/daisy", "--csv", predictions)
    network = timm.create_model(f"local-dir:{student}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=network))
    with predictions.open() as file:
        line = next(csv.DictReader(file))
    picture = Image.open(images / "val/daisy" / line["image"])
    with torch.no_grad():
        shares = network(transform(picture).unsqueeze(0)).softmax(1)[0]
    assert int(shares.argmax()) == int(line["class"])
    assert float(shares.max()) == pytest.approx(float(line["probability"]), abs=1e-4)

    # A second clone: the runs join, and once it has what the study is made of nothing is trained.
    bundle, other = tmp_path / "half_kd.zip", Copy(tmp_path / "theirs")
    assert "4 of 4 runs" in fbt(copy, "bundle", "half_kd", "--to", bundle, "--without-names")
    merged = fbt(other, "merge", bundle)
    assert "4 runs added" in merged and "config/ here names none of them" in merged
    for name in copy.touched():
        (other.folder / name).write_bytes(copy.files()[name])
    again = fbt(other, "merge", bundle)
    assert "0 runs added, 4 were here already" in again and "shows 4 of them" in again
    fbt(other, "run", "half_kd", "--cores", "1")
    assert not (other.folder / "results/smoke/logs/train").exists()
    table = "results/smoke/tables/half_kd.csv"
    assert (other.folder / table).read_text() == (copy.folder / table).read_text()
