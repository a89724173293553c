"""Build a timm network from its NetworkSpec: random weights, any size, and nothing but a network.

A spec comes from a file that a user may have been given, so it may only name what timm registers, classes of
`timm.models` and `fbt_core.staged`, and packages that the user himself lists in FBT_NETWORK_PACKAGES.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any

import timm
from timm.layers import get_act_layer
from timm.models._efficientnet_builder import decode_arch_def
from torch import nn

from fbt_core.errors import UserError, did_you_mean
from fbt_core.spec import NetworkSpec

PACKAGES_VARIABLE = "FBT_NETWORK_PACKAGES"
ALLOWED_MODULES = ("timm.models", "timm.layers", "fbt_core.staged")
LAYER_OPTIONS = (
    "block_layer",
    "block_fn",
    "norm_layer",
    "mlp_layer",
    "attn_layer",
    "embed_layer",
    "act_layer",
    "block",
)
"""Options that take a class: written `module:Class` in a config."""
REFUSED_OPTIONS = (
    "num_classes", "img_size", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
    "cache_dir", "features_only", "in_chans",
)  # fmt: skip
"""Options that the run's spec sets elsewhere, or that would read a file."""


class NetworkError(UserError):
    """A NetworkSpec that cannot be built; the message says what is wrong and how to fix it."""


def build_network(spec: NetworkSpec, classes: int, image_size: int) -> nn.Module:
    """The timm network of a spec for `classes` classes and square images, with random weights.

    Raises NetworkError if `create` or an option is unknown, refused or of the wrong kind.
    """
    where = f"network {spec.architecture!r} (create: {spec.create})"
    # Refused before decoding: what a spec sets elsewhere must not be set twice.
    _refuse_options(spec.options, where)
    options = {key: _option_value(key, value, where) for key, value in spec.options.items()}
    constructor, takes_size = _constructor(spec.create, where)
    if takes_size:
        options["img_size"] = image_size
    try:
        return constructor(num_classes=classes, **options)
    # Constructors of timm raise all of these for wrong options; anything else is a bug.
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError, IndexError) as error:
        raise NetworkError(f"{where}: options {spec.options} do not build: {error}") from error


def _refuse_options(options: Iterable[str], where: str) -> None:
    refused = sorted(set(options) & set(REFUSED_OPTIONS))
    if refused:
        raise NetworkError(
            f"{where}: options {', '.join(refused)} may not be set here; class count and image size "
            "come from the dataset, weights from `weights`"
        )


def _constructor(create: str, where: str) -> tuple[Callable[..., nn.Module], bool]:
    """The callable behind `create`, and whether it takes the image size."""
    if ":" in create:
        network_class = _named_class(create, where)
        return network_class, "img_size" in inspect.signature(network_class).parameters
    # Not create_model's own error, which does not name what is near.
    if create not in timm.list_models():
        matches = did_you_mean(create, timm.list_models(), count=3)
        raise NetworkError("; ".join([f"{where}: timm has no model {create!r}", *matches]))
    fixed_size = bool(getattr(timm.get_pretrained_cfg(create), "fixed_input_size", False))
    # Never pretrained here: weights come from where the spec says.
    return lambda **options: timm.create_model(create, pretrained=False, **options), fixed_size


def _option_value(key: str, value: Any, where: str) -> Any:
    """An option as the constructor wants it: classes from their names, block strings decoded."""
    if key == "block_args":
        return decode_arch_def([list(stage) for stage in value])
    is_name = key in LAYER_OPTIONS and isinstance(value, str)
    if is_name and ":" in value:
        return _named_class(value, f"{where}: option {key}")
    # Not every class takes an activation by its name; names of other layers stay names.
    if is_name and key == "act_layer":
        return get_act_layer(value)
    return value


def _named_class(name: str, where: str) -> Any:
    """The nn.Module class that `module:Class` names, from an allowed module only."""
    module_name, _, class_name = name.partition(":")
    # Importing runs code, so the name is checked before the import.
    if not _allowed(module_name):
        raise NetworkError(
            f"{where}: {name!r} is outside {', '.join(ALLOWED_MODULES)}; to allow a package of your own, "
            f"name it in the environment variable {PACKAGES_VARIABLE} (comma-separated)"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise NetworkError(f"{where}: cannot import {module_name!r}: {error}") from error
    network_class = getattr(module, class_name, None)
    if not (inspect.isclass(network_class) and issubclass(network_class, nn.Module)):
        classes = [
            key for key, item in vars(module).items() if inspect.isclass(item) and issubclass(item, nn.Module)
        ]
        matches = did_you_mean(class_name, classes, count=3)
        raise NetworkError(
            "; ".join([f"{where}: {module_name} has no network class {class_name!r}", *matches])
        )
    return network_class


def _allowed(module_name: str) -> bool:
    packages = [
        package.strip() for package in os.environ.get(PACKAGES_VARIABLE, "").split(",") if package.strip()
    ]
    return any(
        module_name == allowed or module_name.startswith(allowed + ".")
        for allowed in (*ALLOWED_MODULES, *packages)
    )
