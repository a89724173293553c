"""From a dataset's entry to its two splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fbt_core.data import cifar, image_folder, mnist
from fbt_core.data.splits import Split, balanced_part
from fbt_core.errors import UserError
from fbt_core.spec import DatasetSpec

LOADERS = {
    "fashion_mnist": mnist.load_split,
    "cifar100": cifar.load_split,
    "image_folder": image_folder.load_split,
}


def load_splits(dataset: DatasetSpec, roots: Mapping[str, str]) -> tuple[Split, Split]:
    """The training split, or the part of it that the run sees, and the test split; all counts checked."""
    root = dataset_root(dataset, roots)
    load = LOADERS[dataset.loader]
    # `part_of` is what the files must hold; `train_images` is what the run sees of it.
    train: Split = load(root, "train", dataset.classes, dataset.part_of or dataset.train_images)
    # After the loader: the whole split is checked, however little of it is used.
    if dataset.part_of is not None:
        train = train.part(balanced_part(train.labels.numpy(), dataset.train_images))
    return train, load(root, "test", dataset.classes, dataset.test_images)


def dataset_root(dataset: DatasetSpec, roots: Mapping[str, str]) -> Path | None:
    """Where the dataset lies; None for what is shipped inside this package."""
    # Shipped images need no folder; every other data set needs one, named in one file.
    if dataset.variant == "embedded":
        return None
    setting = f"config/config.yaml, data_roots.{dataset.name}"
    if not roots.get(dataset.name):
        raise UserError(
            f"no folder is set for dataset '{dataset.name}'", where=setting, hint="fill in this setting"
        )
    root = Path(roots[dataset.name]).expanduser()
    if not root.is_dir():
        raise UserError(f"folder {root} does not exist", where=setting, hint="correct this setting")
    return root
