"""The oldest versions that both distributions allow, as constraints for pip: see `make test-lowest`.

    python scripts/lowest_versions.py > constraints.txt

torch and torchvision are left out: their oldest versions are named in pyproject.toml and not tested.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNTESTED = ("torch", "torchvision")


def lowest_versions() -> dict[str, str]:
    """Package -> its lower bound, the higher one if both distributions state one."""
    lowest: dict[str, str] = {}
    for file in (ROOT / "pyproject.toml", ROOT / "plugin/pyproject.toml"):
        for line in tomllib.loads(file.read_text())["project"]["dependencies"]:
            match = re.fullmatch(r"([\w.-]+)>=([\d.]+)(,<[\d.]+)?", line)
            if match is None:
                raise SystemExit(f"{file}: {line}: needs a lower bound, name>=version")
            name, version = match[1], match[2]
            known = lowest.get(name, version)
            lowest[name] = max(known, version, key=lambda text: [int(part) for part in text.split(".")])
    return {name: version for name, version in lowest.items() if name not in UNTESTED}


if __name__ == "__main__":
    for package, version in lowest_versions().items():
        print(f"{package}=={version}")
