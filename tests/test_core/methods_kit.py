"""What the tests of the methods share: tiny networks of each family, batches, and a method built on them."""

from __future__ import annotations

import copy
import functools
import os
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import yaml

from fbt_core.methods import build_method, method_facts
from fbt_core.methods.base import Batch, Context
from fbt_core.spec import MethodSpec
from fbt_core.staged import build_network, stage
from fbt_core.teacher import Teacher
from fbt_paper.config.load import tiny_network

CLASSES, IMAGES, SIZE = 10, 40, 64
METHODS_FILE = Path(__file__).parents[2] / "config" / "methods.yaml"
PAIRS = {
    ("cnn", "cnn"): ("convnext_t", "resnet18"),
    ("msa", "cnn"): ("deit_t", "mobilenetv2"),
    ("mlp", "cnn"): ("mixer_b16", "resnet18"),
    ("cnn", "msa"): ("resnet50", "deit_t"),
    ("msa", "msa"): ("vit_s", "swin_p"),
    ("mlp", "msa"): ("mixer_b16", "deit_t"),
    ("cnn", "mlp"): ("convnext_t", "resmlp_s12"),
    ("msa", "mlp"): ("swin_t", "resmlp_s12"),
    ("mlp", "mlp"): ("mixer_b16", "resmlp_s12"),
}
"""A pair (teacher, student) per direction (families of teacher and student), all layouts on both sides."""


@cache
def read_methods():
    return yaml.safe_load(METHODS_FILE.read_text())


def default_parameters(name):
    """A method's parameters at scale smoke, as config/methods.yaml states them."""
    entries = read_methods()[name]["parameters"]
    return {key: entry.get("by_scale", {}).get("smoke", entry["value"]) for key, entry in entries.items()}


@cache
def tiny(architecture):
    return tiny_network(architecture)


@cache
def _original(architecture, split):
    torch.manual_seed(0)
    return stage(build_network(tiny(architecture), CLASSES, SIZE), SIZE, split)


def make_network(architecture, split="even"):
    """A tiny network with the same random weights each time."""
    return copy.deepcopy(_original(architecture, split))


def make_method(name, pair=("swin_t", "resnet18"), seed=0, labels=None, families=None, **changes):
    """A method in training mode on a pair (teacher, student) of tiny networks with random weights.

    `families` (teacher's, student's) may claim what the networks are not.
    """
    parameters = {**default_parameters(name), **changes}
    split = parameters.get("split", "even")
    teacher, student = (make_network(architecture, split) for architecture in pair)
    families = families or [tiny(architecture).family for architecture in pair]
    torch.manual_seed(seed)
    context = Context(CLASSES, IMAGES, 3, 0.1, SIZE, families[1], families[0], labels)
    spec = MethodSpec(name=name, parameters=parameters, revision=method_facts(name).revision)
    return build_method(spec, student, teacher, context).train()


def make_batch(count=4, soft=False, seed=1):
    """Random images; soft targets are those of mixup with 0.6 and 0.4."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    target = torch.randint(CLASSES, (count,), generator=generator)
    indices = torch.randperm(IMAGES, generator=generator)[:count]
    if soft:
        one_hot = torch.nn.functional.one_hot(target, CLASSES).float()
        target = 0.6 * one_hot + 0.4 * one_hot.flip(0)
    return Batch(images, target, indices)


def make_head_speak(network, scale=0.5):
    """Gives a zero-initialised classifier weights, so that its logits say something."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.stage_parameters("head"):
        if parameter.ndim == 2:
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)


def observe(method, batch):
    """What the teacher gives for the batch, as the loop asks it; None without a teacher."""
    return None if method.teacher is None else Teacher(method.teacher).observe(batch.images)


def run_step(method, batch):
    """The method's result for a batch: loss, output and terms."""
    return method(batch, observe(method, batch))


def take_step(method, batch, rate=0.05):
    """One step of plain SGD; gives the method's result."""
    result = run_step(method, batch)
    result["loss"].backward()
    with torch.no_grad():
        for parameter in method.trainable_module.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad
                parameter.grad = None
    return result


def copy_state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_state(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def in_process_of_its_own(test: Callable[..., None]) -> Callable[..., None]:
    """A test whose backward passes start autograd's threads; no later test of its process could fork."""

    @functools.wraps(test)
    def forked(*arguments: object, **named: object) -> None:
        child = os.fork()
        if not child:
            code = 1
            try:
                test(*arguments, **named)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "see what the child wrote to stderr"

    return forked
