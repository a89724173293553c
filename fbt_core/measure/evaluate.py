"""Try a trained network on a folder of images: top-1, top-5, each class, or predictions without labels.

python -m fbt_core.measure.evaluate results/smoke/runs/RUN photographs/ --csv classes.csv
python -m fbt_core.measure.evaluate EXPORTED-FOLDER photographs/ --csv predictions.csv

`photographs/CLASS/*` has labels: the sorted names of the folders are the classes 0, 1, 2, ... `photographs/*`
has none: the CSV holds the predicted class of each image and its probability.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor, nn

from fbt_core.data.image_folder import SUFFIXES
from fbt_core.data.pictures import open_picture
from fbt_core.errors import UserError
from fbt_core.export import build_student, check_classifier, load_exported, preprocessing, read_metrics
from fbt_core.files import write_text
from fbt_core.run_files import WEIGHTS_FILE
from fbt_core.spec import RunSpec, parse_spec
from fbt_core.weights import fill, read_weights

BATCH = 64


@dataclass(frozen=True)
class Images:
    """Paths of images in a fixed order; `labels` are numbers of `classes`, or None where nothing is known."""

    paths: list[Path]
    labels: list[int] | None
    classes: list[str]


def read_folder(folder: Path, classes: int) -> Images:
    """The images of a folder, by class if it has folders of classes; UserError if it does not fit."""
    if not folder.is_dir():
        raise UserError("is no folder", where=str(folder))
    # Hidden folders are no classes: file managers leave them behind.
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    # Labels are positions in the sorted names; another number of folders would shift them all.
    if names and len(names) != classes:
        what = f"has {len(names)} class folders, the network {classes} classes"
        hint = "one folder per class, sorted as in training; or all images in one folder, without labels"
        raise UserError(what, where=str(folder), hint=hint)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names or ["."]):
        images = [path for path in sorted((folder / name).iterdir()) if path.suffix.lower() in SUFFIXES]
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise UserError(f"holds no images ({', '.join(SUFFIXES)})", where=str(folder))
    return Images(paths, labels if names else None, names)


def load_network(source: Path, weights: Path | None) -> tuple[nn.Module, RunSpec]:
    """The network of a run's folder or of an exported folder, with its own weights or those of a file."""
    # An exported folder is known by its config; a run's folder has metrics instead.
    if (source / "config.json").exists():
        spec = parse_spec(json.dumps(json.loads((source / "config.json").read_text())["spec"]))
        network = load_exported(source)
    else:
        spec = parse_spec(json.dumps(read_metrics(source)["spec"]))
        # The published weights of some methods are no classifier; those of the user's own file may be.
        if weights is None:
            check_classifier(spec)
        network = build_student(spec)
        fill(network, read_weights(source / WEIGHTS_FILE), where=str(source / WEIGHTS_FILE), new_head=False)
    if weights is not None:
        fill(network, read_weights(weights), where=str(weights), new_head=False)
    return network.eval(), spec


@torch.no_grad()
def predict(network: nn.Module, spec: RunSpec, paths: list[Path], device: str) -> Iterator[Tensor]:
    """Logits (B, classes) of the images, batch by batch, on the CPU."""
    # The view of the run's own evaluation: another crop would give another score.
    view = preprocessing(spec)
    transform = transforms_imagenet_eval(
        view["image_size"],
        crop_pct=view["crop_pct"],
        interpolation=view["interpolation"],
        mean=view["mean"],
        std=view["std"],
    )
    network.to(device)
    for start in range(0, len(paths), BATCH):
        pictures = [transform(open_picture(path)) for path in paths[start : start + BATCH]]
        yield network(torch.stack(pictures).to(device)).float().cpu()


ClassRow = tuple[str, int, float, float]
"""A class's name, its number of images, top-1 and top-5 in percent."""


def by_class(images: Images, logits: Tensor) -> tuple[list[ClassRow], tuple[float, float]]:
    """Every class that has images; and top-1 and top-5 (percent) over all images."""
    labels = torch.tensor(images.labels)
    top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    right = 100 * torch.stack([top[:, 0], top.any(1)], dim=1).double()
    rows = []
    for label, name in enumerate(images.classes):
        # A class without images has no accuracy, which is not 0.
        mine = labels == label
        if mine.any():
            top1, top5 = right[mine].mean(0).tolist()
            rows.append((name, int(mine.sum()), top1, top5))
    top1, top5 = right.mean(0).tolist()
    return rows, (top1, top5)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m fbt_core.measure.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("network", type=Path, help="the folder of a finished run, or an exported one")
    parser.add_argument("images", type=Path, help="FOLDER/CLASS/* with labels, or FOLDER/* without")
    parser.add_argument("--weights", type=Path, help="weights of your own for the same network")
    parser.add_argument("--csv", type=Path, help="write per class, or the predictions, to this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(arguments)
    try:
        network, spec = load_network(chosen.network, chosen.weights)
        images = read_folder(chosen.images, spec.dataset.classes)
        logits = torch.cat(list(predict(network, spec, images.paths, chosen.device)))
        report(images, logits, chosen.csv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def report(images: Images, logits: Tensor, path: Path | None) -> None:
    """Print the accuracies, or how many images were classified, and write the CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # Without labels there is nothing to count; the classes themselves are the answer.
    if images.labels is None:
        shares, classes = logits.softmax(1).max(1)
        writer.writerow(("image", "class", "probability"))
        for file, label, share in zip(images.paths, classes.tolist(), shares.tolist(), strict=True):
            writer.writerow((file.name, label, f"{share:.4f}"))
        print(
            f"{len(images.paths)} images without labels"
            + ("" if path else "; --csv FILE writes their classes")
        )
    else:
        rows, (first, five) = by_class(images, logits)
        writer.writerow(("class", "images", "top1", "top5"))
        for name, count, top1, top5 in rows:
            writer.writerow((name, count, f"{top1:.2f}", f"{top5:.2f}"))
        print(f"{len(images.paths)} images: top-1 {first:.2f} %, top-5 {five:.2f} %")
    if path:
        write_text(path, text.getvalue())
        print(path)


if __name__ == "__main__":
    sys.exit(main())
