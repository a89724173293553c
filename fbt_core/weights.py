"""Weights of a network from wherever its spec says: another run, timm, a file; and the download of timm's.

python -m fbt_core.weights fetch swin_tiny_patch4_window7_224.ms_in1k    (once, on a machine with internet)
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from fbt_core.errors import UserError
from fbt_core.spec import ID_PATTERN, NetworkSpec

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Names under which published checkpoints keep their weights."""
SHOWN = 3
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class WeightSources:
    """Where weights may come from: the folder of runs, and the path of each file by its sha256."""

    runs: Path
    files: Mapping[str, str]


def load_weights(network: nn.Module, spec: NetworkSpec, sources: WeightSources, new_head: bool) -> None:
    """Fill a network with the weights its spec names; `none` leaves it as it was made.

    `new_head`: a classifier of another class count may stay random (fine-tuning); else it is an error.
    """
    kind, _, name = spec.weights.partition(":")
    if kind == "none":
        return
    readers = {"run": _from_run, "timm": _from_timm, "file": _from_file}
    if kind not in readers:
        hint = "use none, timm:<tag>, file:<sha256> or run:<run id>"
        raise UserError(f"'{spec.weights}' names no source of weights", where=spec.architecture, hint=hint)
    state = readers[kind](name, network, sources)
    fill(network, state, spec.weights, new_head and kind != "run")


def fill(network: nn.Module, state: Mapping[str, Tensor], where: str, new_head: bool) -> None:
    """Load a state after comparing every key and shape; a UserError names the first few that differ."""
    state = dict(_converted(network, state))
    wanted = network.state_dict()
    if new_head:
        head = classifier_names(network)
        for name in [n for n in state if n in head and n in wanted and state[n].shape != wanted[n].shape]:
            state[name] = wanted[name]
    faults = _compare(state, wanted)
    if faults:
        raise UserError(f"weights do not fit the {type(network).__name__}: {faults}", where=where)
    network.load_state_dict(state)


def classifier_names(network: nn.Module) -> set[str]:
    """Parameters of the network's last layer (timm's `classifier` entry, or the usual names)."""
    listed = getattr(network, "pretrained_cfg", {}).get("classifier") or ("head", "fc", "classifier")
    prefixes = (listed,) if isinstance(listed, str) else tuple(listed)
    return {name for name in network.state_dict() if name.startswith(tuple(f"{p}." for p in prefixes))}


def _compare(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What is missing, unknown or of another shape, the first few of each."""
    shapes = [f"{n} {tuple(state[n].shape)} instead of {tuple(wanted[n].shape)}"
              for n in wanted if n in state and state[n].shape != wanted[n].shape]  # fmt: skip
    groups = {
        "missing": [
            name for name in wanted if name not in state and not name.endswith("num_batches_tracked")
        ],
        "unknown": [name for name in state if name not in wanted],
        "wrong shape": shapes,
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}" for kind, names in groups.items() if names
    )


def _converted(network: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state under timm's names, where the network's module can translate published ones."""
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if translate is None or state.keys() == network.state_dict().keys():
        return state
    try:
        return translate(dict(state), network)
    except (KeyError, RuntimeError, AttributeError, ValueError, TypeError):
        return state


def _from_run(name: str, network: nn.Module, sources: WeightSources) -> Mapping[str, Tensor]:
    if not ID_PATTERN.fullmatch(name):
        raise UserError("this is not a run id", where=f"run:{name}")
    path = sources.runs / name / WEIGHTS_FILE
    if not path.exists():
        raise UserError("weights of this run are missing", where=str(path), hint=f"train run {name} first")
    return read_weights(path)


def _from_file(sha256: str, network: nn.Module, sources: WeightSources) -> Mapping[str, Tensor]:
    if sha256 not in sources.files:
        raise UserError(
            "no path is given for this file", where=f"file:{sha256}", hint="add it to weight_files"
        )
    path = Path(sources.files[sha256]).expanduser()
    found = file_sha256(path)
    if found != sha256:
        raise UserError(
            f"sha256 is {found}, expected {sha256}", where=str(path), hint="the file was changed or cut"
        )
    return read_weights(path)


def _from_timm(tag: str, network: nn.Module, sources: WeightSources) -> Mapping[str, Tensor]:
    """With the classes it was trained on: asked for others, timm would make up a random classifier."""
    try:
        return timm.create_model(tag, pretrained=True).state_dict()
    except Exception as error:  # each way of being offline raises something else
        raise _explain_download(tag, error) from None


def _explain_download(tag: str, error: Exception) -> UserError:
    if tag.split(".")[0] not in timm.list_models():
        return UserError("timm knows no such network", where=f"timm:{tag}", given=tag.split(".")[0],
                         choices=timm.list_models(f"{tag[:4]}*"))  # fmt: skip
    reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
    hint = f"on a machine with internet and the same home run: python -m fbt_core.weights fetch {tag}"
    return UserError(
        f"pretrained weights are not here and cannot be downloaded ({reason})", where=f"timm:{tag}", hint=hint
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file or a torch checkpoint; nothing inside it is ever run."""
    try:
        content = _read(path)
    except FileNotFoundError:
        raise UserError("weights file is missing", where=str(path)) from None
    except pickle.UnpicklingError:
        what = "refused: it holds more than tensors and could run code when loaded"
        raise UserError(
            what, where=str(path), hint="save its state_dict alone, best as .safetensors"
        ) from None
    except (safetensors.SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        what = f"truncated or damaged weights ({str(error).splitlines()[0][:120]})"
        raise UserError(what, where=str(path)) from None
    return _unwrapped(content, path)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load(path.read_bytes())
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The named tensors inside the usual wrappers, without DDP's prefix."""
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError("holds no dict of tensors under any usual name", where=str(path))
    return {name.removeprefix("module."): value for name, value in content.items()}


def file_sha256(path: Path) -> str:
    """The sha256 (hex) of a file, read in pieces."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError("weights file is missing", where=str(path)) from None


def serialise(state: Mapping[str, Tensor]) -> bytes:
    """A state as the bytes of a .safetensors file: same tensors, same bytes."""
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    )


def state_sha256(network: nn.Module) -> str:
    """The sha256 (hex) of a network's weights: that of the file they would make."""
    return hashlib.sha256(serialise(network.state_dict())).hexdigest()


def fetch(tag: str) -> None:
    """Download a pretrained network of timm into the local cache."""
    _from_timm(tag.removeprefix("timm:"), nn.Identity(), WeightSources(Path(), {}))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fbt_core.weights", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["fetch", "sha256"])
    parser.add_argument("names", nargs="+", help="timm tags to download, or files whose sha256 is printed")
    chosen = parser.parse_args(arguments)
    try:
        for name in chosen.names:
            print(f"{file_sha256(Path(name))}  {name}" if chosen.action == "sha256" else _fetched(name))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _fetched(tag: str) -> str:
    fetch(tag)
    return f"{tag}: in the local cache"


if __name__ == "__main__":
    sys.exit(main())
