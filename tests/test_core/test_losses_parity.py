"""RSD, LDRLD, SRD, options of KD and DKD: the numbers that their authors' code gives on the same inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from fbt_core.losses.logits import entropy_weight, kl_divergence, standardise
from fbt_core.methods.dkd import other_divergence, target_divergence
from fbt_core.methods.ldrld import local_divergence, rest_divergence
from fbt_core.methods.rsd import build_projector, redundancy_loss
from fbt_core.methods.srd import log_sum_loss
from tests.test_core.methods_kit import default_parameters, make_batch, make_method, run_step

CASES = json.loads((Path(__file__).parents[1] / "golden" / "parity.json").read_text())["cases"]


def draw(seed: int, shape: list[int] | int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return torch.from_numpy(numpy.random.RandomState(seed).standard_normal(shape) * scale + shift)


def make_inputs(entries: dict) -> dict[str, Tensor]:
    """The tensors of a case in float64, and its labels."""
    tensors = {}
    for name, entry in entries.items():
        if "draw" in entry:
            tensors[name] = draw(**entry["draw"]).requires_grad_()
        else:
            labels = entry["labels"]
            random = numpy.random.RandomState(labels["seed"])
            tensors[name] = torch.from_numpy(random.randint(0, labels["classes"], labels["count"]))
    return tensors


def measure_rsd(inputs: dict[str, Tensor], options: dict) -> dict[str, Tensor]:
    return {"loss": redundancy_loss(inputs["student"], inputs["teacher"].detach(), options["kappa"])}


def measure_rsd_method(inputs: dict[str, Tensor], options: dict) -> dict[str, Tensor]:
    """The projector with the case's weights; `transfer` is the weighted loss."""
    learner, source = inputs["student_pooled"], inputs["teacher_pooled"].detach()
    width = learner.shape[1]
    projector = build_projector(width, options["gamma"] * width, source.shape[1]).double().train()
    names = ("linear1.weight", "bn.weight", "bn.bias", "linear2.weight")
    for parameter, role in zip(projector.parameters(), names, strict=True):
        parameter.data.copy_(inputs[f"projector.{role}"])
        inputs[role] = parameter
    loss = redundancy_loss(projector(learner), source, options["kappa"])
    return {"transfer": options["loss_weight"] * loss}


def weigh(inputs: dict[str, Tensor], options: dict) -> Tensor | None:
    """EA's weights; `bound` is ln C, or 100 for a hundred classes."""
    if "bound" not in options:
        return None
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    bound = "classes" if options["bound"] == 100.0 else "log_classes"
    return entropy_weight(student, teacher, options["entropy_temperature"], bound)


def measure_kd(inputs: dict[str, Tensor], options: dict, change=lambda logits: logits) -> dict[str, Tensor]:
    student, teacher = change(inputs["student_logits"]), change(inputs["teacher_logits"].detach())
    return {"loss": kl_divergence(student, teacher, options["temperature"], weigh(inputs, options))}


def measure_dkd(inputs: dict[str, Tensor], options: dict, change=lambda logits: logits) -> dict[str, Tensor]:
    student, teacher = change(inputs["student_logits"]), change(inputs["teacher_logits"].detach())
    shared = (student, teacher, inputs["labels"], options["temperature"], weigh(inputs, options))
    target, others = target_divergence(*shared), other_divergence(*shared)
    return {"loss": options["alpha"] * target + options["beta"] * others}


def measure_ldrld(inputs: dict[str, Tensor], options: dict) -> dict[str, Tensor]:
    """The pair weights' constants are those that config/methods.yaml states."""
    logits = inputs["student_logits"], inputs["teacher_logits"].detach()
    stated = default_parameters("ldrld")
    shared = (options["k"], options["temperature"])
    local = local_divergence(*logits, *shared, stated["rank_offset"], stated["rank_decay"])
    rest = rest_divergence(*logits, *shared)
    return {"loss": options["alpha"] * local + options["beta"] * rest, "local": local, "rest": rest}


def measure_srd(inputs: dict[str, Tensor], options: dict) -> dict[str, Tensor]:
    learner = linear(
        inputs["student_pooled"], inputs["projector.linear.weight"], inputs["projector.linear.bias"]
    )
    features = log_sum_loss(learner, inputs["teacher_pooled"].detach(), options["power"])
    logits = inputs["student_logits"], inputs["teacher_logits"].detach()
    soft = kl_divergence(*logits, options["temperature"])
    return {"transfer": options["feature_weight"] * features + options["logit_weight"] * soft}


MEASURES = {
    "ldrld": measure_ldrld,
    "srd": measure_srd,
    "rsd.loss": measure_rsd,
    "rsd.method": measure_rsd_method,
    "lskd.kd": lambda inputs, options: measure_kd(inputs, options, standardise),
    "lskd.dkd": lambda inputs, options: measure_dkd(inputs, options, standardise),
    "ea.kd": measure_kd,
    "ea.dkd": measure_dkd,
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"].replace(" ", "_"))
def test_the_released_code_gives_the_same_numbers(case):
    inputs = make_inputs({**case["inputs"], **case["weights"]})
    measured = MEASURES[case["kind"]](inputs, case["options"])
    next(iter(measured.values())).backward()
    compared = 0
    for name, expected in case["expected"].items():
        if name in measured:
            assert measured[name].item() == pytest.approx(expected, rel=1e-6)
        elif name.startswith("grad."):
            role, _, quantity = name.removeprefix("grad.").rpartition(".")
            gradient = inputs[role].grad.flatten()
            size = gradient.norm().item()
            if quantity == "norm":
                assert size == pytest.approx(expected, rel=1e-6, abs=1e-12)
            else:
                projection = torch.dot(gradient, draw(77, len(gradient))).item()
                assert projection == pytest.approx(expected, rel=1e-6, abs=max(1e-6 * size, 1e-12))
        else:
            continue
        compared += 1
    assert compared >= 3


def test_logits_that_do_not_vary_get_no_gradient_from_standardised_kd():
    """An untrained classifier gives equal logits; as released, the gradient would be 1e7."""
    student = torch.zeros(2, 5, requires_grad=True)
    kl_divergence(standardise(student), standardise(torch.randn(2, 5)), 2.0).backward()
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("name", ["kd", "dkd"])
@pytest.mark.parametrize("change", [{"standardise": True}, {"image_weight": "entropy"}], ids=str)
def test_the_options_change_the_teachers_part_alone(name, change):
    pair = ("swin_t", "resnet18")
    plain, changed = (run_step(make_method(name, pair, **c), make_batch())["terms"] for c in ({}, change))
    assert plain.keys() == changed.keys()
    assert plain["labels"] == changed["labels"]
    assert all(plain[term] != changed[term] for term in plain if term != "labels")


def test_pats_fitnet_adds_kl():
    plain, changed = (
        run_step(make_method("fitnet", logit_weight=weight), make_batch())["terms"] for weight in (0.0, 1.0)
    )
    assert changed.keys() - plain.keys() == {"logits"}
    assert all(plain[term] == changed[term] for term in plain)
