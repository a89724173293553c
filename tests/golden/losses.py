"""The golden losses: what each method's terms are on fixed networks, images and weights.

    python -m tests.golden.losses METHOD...     adds the entry of a method's present revision to losses.json

An entry that exists is never overwritten: a loss that changes needs a raised `revision` in methods.yaml
(for a method that uses the fused model FUSION_REVISION counts as well), and then gets an entry of its own.
Variants that the present entry has not yet are added to it. The variant `mixed` has soft labels.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy
import torch
import yaml

from fbt_core.methods import build_method, method_facts, method_names
from fbt_core.methods.base import Batch, Context
from fbt_core.spec import FUSION_REVISION, MethodSpec, NetworkSpec
from fbt_core.staged import build_network, stage
from fbt_core.teacher import Teacher

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
    facts = method_facts(name)
    return f"{facts.revision}.{FUSION_REVISION}" if facts.uses_fusion else str(facts.revision)


def measure(name: str, parameters: dict, mixed: bool = False) -> dict:
    """The terms of two steps of plain SGD for both pairs: the second shows what the gradients did.

    `mixed`: the labels are soft, as mixup makes them.
    """
    # Without oneDNN: torch 2.14 overwrites memory with it on CPUs without AVX-512, in the backward pass of a
    # 1x1 convolution of stride 2 with fewer than six channels in channels_last: only networks this small.
    with torch.backends.mkldnn.flags(enabled=False):
        return {
            f"{teacher}->{student}": _two_steps(name, parameters, teacher, student, mixed)
            for teacher, student in PAIRS
        }


def _two_steps(name: str, parameters: dict, teacher: str, student: str, mixed: bool) -> list:
    method = _make_method(name, parameters, teacher, student)
    torch.manual_seed(0)
    steps = []
    for number in range(2):
        batch = _make_batch(number, mixed)
        observed = Teacher(method.teacher).observe(batch.images) if method.teacher else None
        result = method(batch, observed)
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


def _make_batch(number: int, mixed: bool) -> Batch:
    """Four images; mixed ones keep 0.3 of themselves, so that the partner's class is the heaviest."""
    random = numpy.random.RandomState(number)
    images = torch.from_numpy(random.standard_normal((COUNT, 3, SIZE, SIZE))).float()
    indices = torch.arange(COUNT) + number * COUNT
    target = indices % CLASSES
    if mixed:
        one_hot = torch.nn.functional.one_hot(target, CLASSES).float()
        images, target = 0.3 * images + 0.7 * images.flip(0), 0.3 * one_hot + 0.7 * one_hot.flip(0)
    return Batch(images, target, indices)


def read() -> dict:
    """All entries: method -> revision -> {parameters, terms}, each a mapping of variants."""
    return json.loads(FILE.read_text())


def add(name: str, variants: dict[str, dict]) -> None:
    """Adds what the entry of a method's present revision has not yet; refuses to overwrite anything."""
    entries = read() if FILE.exists() else {}
    key = key_of(name)
    entry = entries.setdefault(name, {}).setdefault(key, {})
    missing = {variant: parameters for variant, parameters in variants.items() if variant not in entry}
    if not missing:
        raise SystemExit(f"{name} has golden losses for revision {key}; raise its revision first")
    for variant, parameters in missing.items():
        terms = measure(name, parameters, mixed=variant == "mixed")
        entry[variant] = {"parameters": parameters, "terms": terms}
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    temporary.replace(FILE)


def present_variants(name: str) -> dict[str, dict]:
    """The variants of the newest entry and those named below, their settings over today's defaults."""
    text = (Path(__file__).parents[2] / "config" / "methods.yaml").read_text()
    stated = yaml.safe_load(text)[name]["parameters"]
    default = {key: entry.get("by_scale", {}).get("smoke", entry["value"]) for key, entry in stated.items()}
    known = read().get(name, {}) if FILE.exists() else {}
    newest = known[max(known, key=_numbers)] if known else {}
    kept = {variant: entry["parameters"] for variant, entry in newest.items()}
    changes = {"default": {}, "mixed": {}, **VARIANTS.get(name, {}), **kept}
    changes = {v: {k: x for k, x in changed.items() if k in default} for v, changed in changes.items()}
    return {variant: {**default, **changed} for variant, changed in changes.items()}


def _numbers(key: str) -> list[int]:
    return [int(number) for number in key.split(".")]


VARIANTS = {
    "fbt": {
        "default": {"gamma": 1.5},
        "mixed": {"gamma": 1.5},
        "without_stage4": {"stage4": "none"},
        "without_msa_and_stage4": {"block": "none", "stage4": "none"},
        "table3": {"logit_loss": "kl", "feature_loss": "none", "block": "vit"},
        "without_teacher_to_fused": {"teacher_to_fused": False},
        "attached": {"detach_fused": False},
        "projected": {"projection": "always"},
        "class_token_detached": {"class_token": "detached"},
        "swinv2": {"block": "swinv2"},
    },
    "fcfd": {
        "student_to_teacher": {"directions": "student_to_teacher", "paths": 3},
        "teacher_to_student": {"directions": "teacher_to_student", "paths": 3},
    },
    "fitnet": {
        "final": {"features": "final"},
        "pooled": {"features": "final_pooled"},
        "infonce": {"features": "final_pooled", "loss": "infonce"},
        "with_kd": {"logit_weight": 1.0},
    },
    "cc": {"kernel": {"correlation": "kernel"}, "classifier_input": {"feature": "classifier_input"}},
    "kd": {"standardised": {"standardise": True}, "entropy": {"image_weight": "entropy"}},
    "dkd": {"standardised": {"standardise": True}, "entropy": {"image_weight": "entropy"}},
    "rkd": {"classifier_input": {"feature": "classifier_input"}},
    "crd": {"classifier_input": {"feature": "classifier_input"}},
    "pat": {"released": {"variant": "released"}},
    "reviewkd": {"before_relu": {"features": "before_relu", "ramp_epochs": 0}},
    "ofa": {"default": {"gamma": 1.5}, "mixed": {"gamma": 1.5}, "paper": {"branch_depth": "paper"}},
}
"""What the entry of a method covers besides its default and soft labels."""


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method_name in sys.argv[1:] or method_names():
        add(method_name, present_variants(method_name))
        print(f"{method_name}: added revision {key_of(method_name)}")
