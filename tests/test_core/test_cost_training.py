"""Training costs: the committed counts cover the tables' pairs and methods, and can be counted again."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from fbt_core.measure import training_cost

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
DATA = ROOT / "fbt_paper" / "plan" / "data"


@pytest.fixture(scope="module")
def committed():
    content = json.loads((DATA / "training_costs.json").read_text())
    return {name: value for name, value in content.items() if not name.startswith("_")}


@pytest.fixture(scope="module")
def formula():
    """Three forward passes of the student and one of the teacher, by pair."""
    networks = json.loads((DATA / "network_costs.json").read_text())
    return lambda pair: 3 * networks[pair.split("__")[1]]["macs"] + networks[pair.split("__")[0]]["macs"]


def test_the_pairs_of_the_paper_are_counted_for_all_methods(committed):
    assert set(committed) == {*training_cost.MEASURED, "fcfd"}
    pairs = set(committed["kd"])
    assert all(set(counts) == pairs for counts in committed.values())
    assert len(pairs) >= 21
    assert pairs <= {"__".join(pair) for pair in training_cost.table_pairs(CONFIG / "tables")}


def test_kd_costs_three_passes_of_the_student_and_one_of_the_teacher(committed, formula):
    """Less what nobody needs: the gradient with respect to the images."""
    for pair, macs in committed["kd"].items():
        assert 0.95 * formula(pair) < macs <= formula(pair), pair


@pytest.mark.parametrize("method", ["ofa", "fbt", "fcfd", "reviewkd", "simkd", "fitnet", "pat"])
def test_methods_with_extra_modules_cost_more_than_kd(committed, method):
    assert all(macs > committed["kd"][pair] for pair, macs in committed[method].items())


def test_fbt_costs_less_than_fcfd(committed):
    assert all(macs < committed["fcfd"][pair] for pair, macs in committed["fbt"].items())


@pytest.mark.slow
def test_the_committed_counts_come_out_again(committed):
    methods = training_cost.read_yaml(CONFIG / "methods.yaml")
    entries = yaml.safe_load((CONFIG / "architectures.yaml").read_text())
    networks = [training_cost.build_staged(entries, name) for name in ("resnet18", "deit_t")]
    counts = training_cost.measure_pair(*networks, ("cnn", "msa"), methods)
    assert counts == {method: of_pairs["deit_t__resnet18"] for method, of_pairs in committed.items()}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),
    ],
    ids=str,
)
def test_a_convolutions_backward_costs_its_forward_once_per_gradient(layer):
    images = torch.randn(2, 8, 6, 6)
    with training_cost.MacCounter() as forward:
        result = layer(images.requires_grad_())
    with training_cost.MacCounter() as both:
        result.sum().backward()
    with training_cost.MacCounter() as whole:
        layer(images.detach()).sum().backward()
    positions = 72 if isinstance(layer, nn.ConvTranspose2d) else result.numel() // result.shape[1]
    per_position = layer.weight.numel()
    assert forward.macs == positions * per_position
    assert both.macs == 2 * forward.macs
    assert whole.macs == 2 * forward.macs  # its forward, and the gradient of the weights alone
