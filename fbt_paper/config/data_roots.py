"""Is a dataset in place? Asked before the first training, without torch."""

from __future__ import annotations

from pathlib import Path

from fbt_core.errors import nearest
from fbt_paper.config.load import Config, ConfigError, Problem

# Names only, no look into files: this runs before every workflow; `fbt check-data` reads all of them.
WANTED: dict[str, tuple[tuple[str, ...], ...]] = {
    "cifar100": (("cifar-100-python", "train"),),
    "image_folder": (("train",), ("val", "test", "validation")),
    "fashion_mnist": (),
}
"""Per loader: of each group one name must be in the root."""


def find_root(config: Config, dataset: str) -> Path | None:
    """The dataset's folder, None if its images are shipped; a ConfigError names the setting to fill in."""
    if dataset not in config.datasets:
        choices = nearest(dataset, config.datasets)
        raise ConfigError([Problem("config/datasets.yaml", "", f"unknown dataset '{dataset}'; {choices}")])
    entry, setting = config.datasets[dataset], config.main.data_roots.get(dataset)
    if not entry.needs_root:
        return None
    root = Path(setting).expanduser() if setting else None
    missing = "is not set" if root is None else _missing(root, entry.loader)
    if missing:
        groups = [" or ".join(group) for group in WANTED[entry.loader]]
        wanted = " and ".join(groups) or "the four files of the original download"
        message = f"{missing}; fill in the folder of {entry.title} (it holds {wanted})"
        raise ConfigError([Problem("config/config.yaml", f"data_roots.{dataset}", message)])
    return root


def _missing(root: Path, loader: str) -> str:
    if root.is_file():
        return f"{root} is a file, not a folder"
    if not root.is_dir():
        return f"the folder {root} does not exist"
    for group in WANTED[loader]:
        if not any((root / name).exists() for name in group):
            return f"the folder {root} holds no {' or '.join(group)}"
    return ""
