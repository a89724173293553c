"""Real photographs for the tests: 20 of CIFAR-100 and 20 of ImageNet, from the package foolbox."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

CIFAR, IMAGENET = "cifar100", "imagenet"


def photographs(dataset: str) -> list[tuple[Path, int]]:
    """Path and label of each photograph; skips the test where the package is not installed."""
    package = importlib.util.find_spec("foolbox")  # found, never imported: it needs packages we do not
    if package is None or package.origin is None:
        pytest.skip("the photographs of foolbox are not installed (pip install --no-deps foolbox==3.3.4)")
    paths = sorted((Path(package.origin).parent / "data").glob(f"{dataset}_*"))
    return [(path, int(path.stem.split("_")[-1])) for path in paths]
