"""Weights of a network from wherever its spec says: another run, timm, a file; and what prepares such files.

python -m fbt_core.weights fetch swin_tiny_patch4_window7_224.ms_in1k    (once, on a machine with internet)
python -m fbt_core.weights convert model_best.pth.tar teacher.safetensors    (a training script's checkpoint)
python -m fbt_core.weights sha256 teacher.safetensors    (for teacher_files in config/config.yaml)
python -m fbt_core.weights check SHA256=teacher.safetensors    (as the workflow does before it trains)
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import shlex
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
from fbt_core.files import write_bytes
from fbt_core.run_files import WEIGHTS_FILE
from fbt_core.spec import ID_PATTERN, NetworkSpec

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Names under which published checkpoints keep their weights; an EMA is preferred, as in timm."""
SHOWN = 3


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
    # Random weights were drawn already, from the run's seed.
    if kind == "none":
        return
    readers = {"run": _from_run, "timm": _from_timm, "file": _from_file}
    if kind not in readers:
        hint = "use none, timm:<tag>, file:<sha256> or run:<run id>"
        raise UserError(f"'{spec.weights}' names no source of weights", where=spec.architecture, hint=hint)
    state = readers[kind](name, network, sources)
    where = sources.files[name] if kind == "file" else spec.weights
    # A run's classifier always fits its data set: another class count is a mistake there.
    fill(network, state, where, new_head and kind != "run")


def fill(network: nn.Module, state: Mapping[str, Tensor], where: str, new_head: bool) -> None:
    """Load a state after comparing every key and shape; a UserError names the first few that differ.

    Nor may a value be NaN or infinite: the network could not even be cut into stages.
    """
    # Names first: published files may have other names for the same tensors.
    state = dict(_converted(network, state))
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        shown = ", ".join(broken[:SHOWN])
        what = f"{len(broken)} of {len(state)} tensors hold NaN or infinite values: {shown}"
        raise UserError(what, where=where, hint="take the weights of an epoch before the training broke down")
    wanted = network.state_dict()
    if new_head:
        head = classifier_names(network)
        # The random classifier stays: the state takes over what the network has.
        for name in [n for n in state if n in head and n in wanted and state[n].shape != wanted[n].shape]:
            state[name] = wanted[name]
    faults = _compare(state, wanted)
    if faults:
        raise UserError(f"weights do not fit the {type(network).__name__}: {faults}", where=where)
    network.load_state_dict(state)


def classifier_names(network: nn.Module) -> set[str]:
    """Parameters of the network's last layer (timm's `classifier` entry, or the usual names)."""
    # timm states it; other networks use one of three names.
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
    translate = getattr(sys.modules.get(type(network).__module__), "checkpoint_filter_fn", None)
    # Names that fit already need no translation.
    if translate is None or state.keys() == network.state_dict().keys():
        return state
    try:
        return translate(dict(state), network)
    # A translation made for other files: the comparison below names what does not fit.
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
    # Hashed when it is read: a file may have changed since the plan was made.
    actual = file_sha256(path)
    if actual != sha256:
        raise UserError(
            f"sha256 is {actual}, expected {sha256}", where=str(path), hint="the file was changed or cut"
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
    reason = (str(error) or type(error).__name__).splitlines()[0][:150]
    hint = f"on a machine with internet and the same home run: python -m fbt_core.weights fetch {tag}"
    return UserError(
        f"pretrained weights are not here and cannot be downloaded ({reason})", where=f"timm:{tag}", hint=hint
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file or a torch checkpoint; nothing inside it is ever run."""
    try:
        content = _read(path)
    except pickle.UnpicklingError:
        target = path.name.partition(".")[0] + ".safetensors"
        command = f"python -m fbt_core.weights convert {shlex.quote(str(path))} {shlex.quote(target)}"
        what = "refused: it holds more than tensors and could run code when loaded"
        raise UserError(what, where=str(path), hint=f"take its tensors out of it: {command}") from None
    return _state_of(content, path)[1]


def _read(path: Path) -> Any:
    """A file's content, tensors and plain containers only: anything else is an UnpicklingError."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(path.read_bytes())
        # weights_only: a pickle could run whatever it names.
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError("weights file is missing", where=str(path)) from None
    except (safetensors.SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"truncated or damaged weights ({reason})", where=str(path)) from None


def _state_of(content: Any, path: Path) -> tuple[str, dict[str, Tensor]]:
    """The named tensors inside the usual wrappers, without DDP's prefix, and the wrapper's name."""
    wrapper = "the file itself"
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content, wrapper = content[name], name
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError("holds no dict of tensors under any usual name", where=str(path))
    # DDP adds this prefix to every name.
    return wrapper, {name.removeprefix("module."): value for name, value in content.items()}


class _Ignored:
    """Stands for the argparse.Namespace of a training script's options; what it held is dropped."""

    def __setstate__(self, state: object) -> None:
        pass


def convert(source: Path, target: Path) -> str:
    """Write the weights of a training script's checkpoint as .safetensors; says what was taken.

    Beside tensors and plain containers the checkpoint may hold an argparse.Namespace (timm's and OFAKD's do).
    Any other class or function that it asks for is refused by name, and never imported.
    """
    if target.suffix != ".safetensors":
        raise UserError("the new file's name must end with .safetensors", where=str(target))
    try:
        # The one class that training scripts put beside their weights; an empty stand-in takes its state.
        with torch.serialization.safe_globals([(_Ignored, "argparse.Namespace")]):
            content = _read(source)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        name = asked.group(1) if asked else "something that is no tensor"
        what = f"refused: it asks for {name}; only tensors, plain containers and argparse.Namespace are read"
        hint = "save its state_dict alone, with the program that wrote it"
        raise UserError(what, where=str(source), hint=hint) from None
    wrapper, state = _state_of(content, source)
    # A copy each: safetensors refuses tensors that share memory.
    write_bytes(target, serialise({name: tensor.clone() for name, tensor in state.items()}))
    return f"{wrapper}: {len(state)} tensors\n{file_sha256(target)}  {target}"


def check_file(sha256: str, path: str) -> None:
    """Refuse a weights file that is missing, has another sha256 or holds more than tensors: UserError."""
    _from_file(sha256, nn.Identity(), WeightSources(Path(), {sha256: path}))


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
        # Contiguous and on the CPU: the same weights give the same bytes, from whatever device.
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    )


def state_sha256(network: nn.Module) -> str:
    """The sha256 (hex) of a network's weights: that of the file they would make."""
    return hashlib.sha256(serialise(network.state_dict())).hexdigest()


def fetch(tag: str) -> None:
    """Download a pretrained network of timm into the local cache."""
    _from_timm(tag.removeprefix("timm:"), nn.Identity(), WeightSources(Path(), {}))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fbt_core.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    fetching = actions.add_parser("fetch", help="download pretrained networks of timm into the local cache")
    fetching.add_argument("names", nargs="+", metavar="TAG", help="e.g. swin_tiny_patch4_window7_224.ms_in1k")
    hashing = actions.add_parser("sha256", help="print files' sha256, for teacher_files in config.yaml")
    hashing.add_argument("names", nargs="+", metavar="FILE")
    converting = actions.add_parser("convert", help="write a checkpoint's weights alone, as .safetensors")
    converting.add_argument("source", type=Path, metavar="IN", help="e.g. timm's model_best.pth.tar")
    converting.add_argument("target", type=Path, metavar="OUT", help="a name that ends with .safetensors")
    checking = actions.add_parser("check", help="whether files have this sha256 and hold tensors alone")
    checking.add_argument("files", nargs="+", metavar="SHA256=FILE")
    chosen = parser.parse_args(arguments)
    if chosen.action == "check":
        return _check(chosen.files)
    try:
        if chosen.action == "convert":
            print(convert(chosen.source, chosen.target))
            return 0
        for name in chosen.names:
            if chosen.action == "sha256":
                print(f"{file_sha256(Path(name))}  {name}")
            else:
                fetch(name)
                print(f"{name}: in the local cache")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _check(files: list[str]) -> int:
    """An error line for each file that no run could read."""
    faults = 0
    for file in files:
        sha256, _, path = file.partition("=")
        try:
            check_file(sha256, path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            faults = error.exit_code
    return faults


if __name__ == "__main__":
    sys.exit(main())
