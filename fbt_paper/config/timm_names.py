"""The network names timm knows, read from its source files: importing timm would import torch."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from fbt_core.errors import did_you_mean

REGISTERED = re.compile(r"@register_model\s+def (\w+)")
RENAMED = re.compile(r"^register_model_deprecations\((.*?)^\}", re.MULTILINE | re.DOTALL)
OLD_NAME = re.compile(r"'(\w+)'\s*:")
TAGGED = re.compile(r"""["'](\w+\.\w+)["']""")


@cache
def timm_names() -> frozenset[str]:
    """Every name that timm.create_model takes, old ones included; none if timm is not installed."""
    # Read as text: timm's own list exists only after its import, which imports torch.
    names: set[str] = set()
    for text in _models():
        names.update(REGISTERED.findall(text))
        # Names that timm has given up still build networks, with a warning.
        for block in RENAMED.findall(text):
            names.update(OLD_NAME.findall(block))
    return frozenset(names)


@cache
def timm_tags() -> frozenset[str]:
    """Every name with the tag of its weights, e.g. resnet34.a1_in1k; none if timm is not installed."""
    return frozenset(name for text in _models() for name in TAGGED.findall(text))


@cache
def _models() -> tuple[str, ...]:
    paths = sorted(timm_folder("models").rglob("*.py"))
    return tuple(path.read_text(encoding="utf-8") for path in paths)


def timm_folder(part: str = "") -> Path:
    """Where timm's source lies; a folder that does not exist if timm is not installed."""
    package = importlib.util.find_spec("timm")
    folders = (package.submodule_search_locations or ()) if package else ()
    return Path(next(iter(folders), "timm-is-not-installed")) / part


def is_unknown(create: str) -> bool:
    """Whether timm has no such network, no such weights (a tag after a point) or no such class."""
    module, colon, name = create.partition(":")
    if not colon:
        # Without timm nothing is known, so nothing is refused: planning works on a machine without torch.
        known = timm_tags() if "." in module else timm_names()
        return bool(known) and module not in known
    if not module.startswith("timm.") or not timm_names():
        return False
    # A class of other modules cannot be looked up without importing them; it is left to the engine.
    return not re.search(rf"^class {name}\b", _source(module), re.MULTILINE)


@cache
def _source(module: str) -> str:
    path = timm_folder(module.partition(".")[2].replace(".", "/")).with_suffix(".py")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def near_names(create: str) -> str:
    """The nearest of timm's many names, as the tail of a message."""
    module, colon, _ = create.partition(":")
    if colon:
        classes = re.findall(r"^class (\w+)", _source(module), re.MULTILINE)
        return f"valid in {module}: {', '.join(classes) or 'nothing, there is no such file'}"
    name, point, _ = module.partition(".")
    if point and name in timm_names():
        tags = sorted(known for known in timm_tags() if known.startswith(f"{name}."))
        return f"valid: {', '.join(tags) or f'{name}, for which timm has no weights'}"
    matches = did_you_mean(name, sorted(timm_names()), count=3)
    return matches[0] if matches else "`timm.list_models()` names them all"
