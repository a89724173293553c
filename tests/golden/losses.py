"""The golden losses: what each method's terms are on fixed networks, images and weights.

    python -m tests.golden.losses METHOD...     adds the entry of a method's present revision to losses.json

An entry that exists is never overwritten: a loss that changes needs a raised REVISION in the method's file
(for a method that uses the fused model FUSION_REVISION counts as well), and then gets an entry of its own.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy
import torch
import yaml

from fbt_core.methods import build_method, method_names, method_traits
from fbt_core.methods.base import Batch, Context
from fbt_core.spec import FUSION_REVISION, MethodSpec, NetworkSpec
from fbt_core.staged import build_network, stage

FILE = Path(__file__).with_name("losses.json")
CLASSES, IMAGES, SIZE, COUNT = 5, 12, 32, 4
FIXED = {"weights": "none", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
NETWORKS = {
    "cnn": NetworkSpec(
        **FIXED,
        architecture="resnet18",
        family="cnn",
        create="resnet18",
        options={"layers": (1, 1, 1, 1), "channels": (4, 6, 8, 10), "stem_width": 4},
    ),
    "msa": NetworkSpec(
        **FIXED,
        architecture="deit_t",
        family="msa",
        create="deit_tiny_patch16_224",
        options={"embed_dim": 12, "depth": 4, "num_heads": 2, "patch_size": 8},
    ),
}
PAIRS = (("msa", "cnn"), ("cnn", "msa"))


def key_of(name: str) -> str:
    """The revision under which a method's golden losses stand."""
    traits = method_traits(name)
    return f"{traits['revision']}.{FUSION_REVISION}" if traits["uses_fusion"] else str(traits["revision"])


def measure(name: str, parameters: dict) -> dict:
    """The terms of two steps of plain SGD for both pairs: the second shows what the gradients did."""
    return {
        f"{teacher}->{student}": _two_steps(name, parameters, teacher, student) for teacher, student in PAIRS
    }


def _two_steps(name: str, parameters: dict, teacher: str, student: str) -> list:
    method = _make_method(name, parameters, teacher, student)
    torch.manual_seed(0)
    steps = []
    for number in range(2):
        result = method(_make_batch(number))
        result["loss"].backward()
        steps.append({term: value.item() for term, value in result["terms"].items()})
        with torch.no_grad():
            for parameter in method.trainable_module.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
                    parameter.grad = None
    return steps


def _make_method(name, parameters, teacher, student):
    split = parameters.get("split", "even")
    networks = [stage(build_network(NETWORKS[key], CLASSES, SIZE), SIZE, split) for key in (student, teacher)]
    labels = torch.arange(IMAGES) % CLASSES
    context = Context(CLASSES, IMAGES, 4, 0.1, SIZE, student, teacher, labels)
    spec = MethodSpec(name=name, parameters=parameters, revision=1)
    method = build_method(spec, *networks, context).train()
    _fill(method)
    return method


def _fill(method: torch.nn.Module) -> None:
    """Weights that depend on their names alone, not on torch's random numbers or initialisation."""
    for name, tensor in [*method.named_parameters(), *method.named_buffers()]:
        if tensor.ndim == 0 or not tensor.is_floating_point() or "running" in name:
            continue
        random = numpy.random.RandomState(zlib.crc32(name.encode()))
        noise = torch.from_numpy(random.standard_normal(tuple(tensor.shape))).float()
        scale = noise[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        is_norm = tensor.ndim == 1 and name.endswith("weight")
        tensor.data.copy_(noise * scale + (1.0 if is_norm else 0.0))


def _make_batch(number: int) -> Batch:
    random = numpy.random.RandomState(number)
    images = torch.from_numpy(random.standard_normal((COUNT, 3, SIZE, SIZE))).float()
    indices = torch.arange(COUNT) + number * COUNT
    return Batch(images, indices % CLASSES, indices)


def read() -> dict:
    """All entries: method -> revision -> {parameters, terms}, each a mapping of variants."""
    return json.loads(FILE.read_text())


def add(name: str, variants: dict[str, dict]) -> None:
    """Adds the entry of a method's present revision; refuses to overwrite one."""
    entries = read() if FILE.exists() else {}
    revisions = entries.setdefault(name, {})
    key = key_of(name)
    if key in revisions:
        raise SystemExit(f"{name} has golden losses for revision {key}; raise its REVISION first")
    revisions[key] = {
        variant: {"parameters": parameters, "terms": measure(name, parameters)}
        for variant, parameters in variants.items()
    }
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    temporary.replace(FILE)


def present_variants(name: str) -> dict[str, dict]:
    """The variants to add: those of the newest entry over today's defaults, or the first ones."""
    text = (Path(__file__).parents[2] / "config" / "methods.yaml").read_text()
    stated = yaml.safe_load(text)[name]["parameters"]
    default = {key: entry.get("by_scale", {}).get("smoke", entry["value"]) for key, entry in stated.items()}
    known = read().get(name, {}) if FILE.exists() else {}
    newest = known[max(known, key=_numbers)] if known else VARIANTS.get(name, {"default": {}})
    changes = {variant: entry.get("parameters", entry) for variant, entry in newest.items()}
    changes = {v: {k: x for k, x in changed.items() if k in default} for v, changed in changes.items()}
    return {variant: {**default, **changed} for variant, changed in changes.items()}


def _numbers(key: str) -> list[int]:
    return [int(number) for number in key.split(".")]


VARIANTS = {
    "fbt": {
        "default": {"gamma": 1.5},
        "without_stage4": {"stage4": "none"},
        "without_msa_and_stage4": {"block": "none", "stage4": "none"},
        "table3": {"logit_loss": "kl", "feature_loss": "none", "block": "vit"},
    },
    "fitnet": {
        "default": {},
        "final": {"features": "final"},
        "pooled": {"features": "final_pooled"},
        "infonce": {"features": "final_pooled", "loss": "infonce"},
    },
    "cc": {"default": {}, "kernel": {"correlation": "kernel"}},
    "ofa": {"default": {"gamma": 1.5}, "paper": {"branch_depth": "paper"}},
}
"""What the first entry of a method covers besides its default."""


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method_name in sys.argv[1:] or method_names():
        add(method_name, present_variants(method_name))
        print(f"{method_name}: added revision {key_of(method_name)}")
