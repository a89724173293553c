"""Costs: Table 6 to the unit by the paper's rule, the true count beside it, the committed network costs."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from timm.layers import LayerNorm2d
from torch import nn

from fbt_core.measure import cost
from fbt_core.measure.cost import Cost, both_costs, paper_cost, true_cost
from fbt_core.staged import build_network

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"


@pytest.fixture(scope="module")
def architectures():
    return yaml.safe_load((CONFIG / "architectures.yaml").read_text())


@pytest.fixture(scope="module")
def table6(architectures):
    return cost.measure_table(yaml.safe_load((CONFIG / "tables" / "table6.yaml").read_text()), architectures)


def numbers(report, *path):
    for key in path:
        report = report[key]
    return report["parameters"], report["macs"]


@pytest.mark.parametrize(
    ("pair", "by_rule", "true_parameters"),
    [
        ("deit_t__resnet18", (11_689_512, 1_824_033_792), 11_689_512),
        ("resnet50__deit_t", (5_679_400, 1_078_633_728), 5_717_416),
        ("convnext_t__resmlp_s12", (15_322_456, 3_009_739_776), 15_350_872),
    ],
)
def test_students_to_the_unit(table6, pair, by_rule, true_parameters):
    assert numbers(table6, "rows", pair, "student", "paper_rule") == by_rule
    assert numbers(table6, "rows", pair, "student", "true")[0] == true_parameters


@pytest.mark.parametrize(
    ("pair", "by_rule"),
    [
        ("deit_t__resnet18", (4_920_736, 98_431_488)),
        ("resnet50__deit_t", (5_810_848, 252_223_488)),
        ("convnext_t__resmlp_s12", (21_644_704, 986_892_288)),
    ],
)
def test_ofa_branches_to_the_unit(table6, pair, by_rule):
    assert numbers(table6, "rows", pair, "ofa_branch", "paper_rule") == by_rule


@pytest.mark.parametrize(
    ("pair", "millions"),
    [("deit_t__resnet18", 3.04), ("resnet50__deit_t", 4.48), ("convnext_t__resmlp_s12", 16.32)],
)
def test_released_ofa_branches_are_smaller(table6, pair, millions):
    parameters, _ = numbers(table6, "rows", pair, "ofa_branch_released", "true")
    assert round(parameters / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("pair", "by_rule", "true_parameters"),
    [
        ("deit_t__resnet18", (387_648, 75_826_864), 498_630),
        ("resnet50__deit_t", (535_104, 104_728_240), 646_086),
        ("convnext_t__resmlp_s12", (1_483_392, 290_479_792), 1_926_534),
    ],
)
def test_fbt_branch_with_a_swin_v2_block_to_the_unit(table6, pair, by_rule, true_parameters):
    assert numbers(table6, "rows", pair, "fbt_branch", "swinv2", "paper_rule") == by_rule
    assert numbers(table6, "rows", pair, "fbt_branch", "swinv2", "true")[0] == true_parameters


@pytest.mark.parametrize("block", ["swin", "vit"])
@pytest.mark.parametrize(
    ("pair", "millions"),
    [("deit_t__resnet18", 0.49), ("resnet50__deit_t", 0.64), ("convnext_t__resmlp_s12", 1.92)],
)
def test_fbt_branch_with_the_other_blocks_is_larger_than_printed(table6, pair, millions, block):
    parameters, _ = numbers(table6, "rows", pair, "fbt_branch", block, "paper_rule")
    assert round(parameters / 1e6, 2) == millions


def test_every_printed_digit_comes_out_but_one(table6):
    """The one that does not is named in the table's footnote."""
    lines = (CONFIG / "tables" / "table6.reference.csv").read_text().splitlines()[1:]
    differing = []
    for pair, column, printed in (line.split(",")[:3] for line in lines):
        part, what = column.rsplit("_", 1)
        costs = table6["rows"][pair][part]
        costs = (costs["swinv2"] if part == "fbt_branch" else costs)["paper_rule"]
        ours = costs["parameters"] / 1e6 if what == "params" else costs["macs"] / 1e9
        if round(ours, 2) != float(printed):
            differing.append((pair, column))
    assert len(lines) == 18
    assert differing == [("deit_t__resnet18", "fbt_branch_flops")]


def test_the_block_that_is_counted_is_the_one_that_is_trained():
    parameters = yaml.safe_load((CONFIG / "methods.yaml").read_text())["fbt"]["parameters"]
    trained = {name: parameters[f"block_{name}"]["value"] for name in cost.TABLE_6_BLOCK}
    assert trained == cost.TABLE_6_BLOCK


def test_paper_rule_counts_what_modules_run_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, groups=1),  # 6*6*8 outputs of 27 products
        nn.BatchNorm2d(8),  # 4 per element
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),  # 8*4 outputs of 9 + 1
        nn.Flatten(),
        nn.LayerNorm(32, elementwise_affine=False),  # 2 per element
        nn.Linear(32, 5),
        nn.Softmax(dim=-1),  # 3n - 1
    )
    expected = 6 * 6 * 8 * 27 + 4 * 6 * 6 * 8 + 8 * 4 * 10 + 2 * 32 + 32 * 5 + 14
    assert paper_cost(network, torch.zeros(1, 3, 6, 6)) == Cost(3 * 9 * 8 + 8 + 16 + 32 * 5 + 5, expected)
    assert true_cost(network, torch.zeros(1, 3, 6, 6)).macs == 6 * 6 * 8 * 27 + 32 * 5


class UsedFunctionally(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.silent, self.heard = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = nn.functional.linear(x * self.scale, self.silent.weight, self.silent.bias)
        return self.heard(self.heard(x))


def test_paper_rule_misses_functional_layers_and_bare_parameters_and_counts_a_layer_once():
    module = UsedFunctionally()
    assert paper_cost(module, torch.zeros(1, 4)) == Cost(20, 2 * 16)
    assert true_cost(module, torch.zeros(1, 4)) == Cost(4 + 20 + 20, 3 * 16)


def test_paper_rule_counts_subclasses_of_the_norms():
    assert paper_cost(LayerNorm2d(6), torch.zeros(1, 6, 2, 2)) == Cost(12, 4 * 24)


def test_the_true_count_sees_attention_products_and_the_rule_does_not():
    from timm.models.vision_transformer import Block

    costs = both_costs(Block(12, num_heads=3), torch.zeros(1, 5, 12))
    linear = 5 * 12 * (36 + 12 + 48 + 48)
    assert costs["true"].macs == linear + 2 * 5 * 5 * 12
    assert costs["paper_rule"].macs == linear + 2 * 4 * 5 * 12


def test_measuring_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    module[1].eval()
    paper_cost(module, torch.ones(1, 2))
    assert [module.training, module[0].training, module[1].training] == [True, True, False]
    assert not any(part._forward_hooks for part in module.modules())
    assert module[1].num_batches_tracked == 0


def test_committed_network_costs_are_those_of_the_configuration(architectures):
    committed = json.loads((ROOT / "fbt_paper" / "plan" / "data" / "network_costs.json").read_text())
    costs = {name: value for name, value in committed.items() if not name.startswith("_")}
    assert len(costs) >= 13
    assert set(costs) <= set(architectures)  # one that is not counted yet is named by `fbt plan`
    assert costs == cost.measure_networks(architectures, list(costs), 1000, 224), committed["_made_by"]


def test_the_true_count_agrees_with_the_rule_where_only_norms_and_pools_differ(architectures):
    """ResNet18 has nothing but convolutions, norms, one pool and one Linear: two independent counters."""
    with torch.device("meta"):
        network = build_network(cost.network_spec(architectures, "resnet18"), 1000, 224)
    elements = 0

    def count(module, taken, result):
        nonlocal elements
        elements += result.numel()

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(count)
    by_rule, true = paper_cost(network, cost.image(224)), true_cost(network, cost.image(224))
    pool = 512 * (49 + 1)
    assert by_rule.macs - true.macs == 4 * elements // 2 + pool  # `count` ran in both measurements
    assert by_rule.parameters == true.parameters


def test_command_writes_a_whole_file_with_its_provenance(tmp_path):
    target = tmp_path / "deep" / "networks.json"
    assert cost.main(["networks", "--config", str(CONFIG), "--out", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["_versions"]["torch"] == torch.__version__
    assert report["resnet18"] == {"parameters": 11_689_512, "macs": 1_814_073_344}
    assert [path.name for path in target.parent.iterdir()] == ["networks.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table7", "--config", str(CONFIG)], "tables/table7.yaml: there is no such file"),
        (["table4", "--config", str(CONFIG)], "'table4' is no cost table"),
        (["networks", "--config", "nowhere"], "nowhere/architectures.yaml: there is no such file"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(tmp_path, capsys, arguments, message):
    assert cost.main([*arguments, "--out", str(tmp_path / "x.json")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_bug_shows_its_traceback(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(cost, "measure_networks", fail)
    with pytest.raises(ValueError, match="a bug"):
        cost.main(["networks", "--config", str(CONFIG), "--out", str(tmp_path / "x.json")])


def test_a_broken_file_and_a_wrong_entry_are_one_line(tmp_path, capsys):
    path = tmp_path / "architectures.yaml"
    for content, message in (
        ("a: [", f"{path}: is not YAML: "),
        ("a: {family: cnn}", "config/architectures.yaml: a.create: Input should be a valid string"),
    ):
        path.write_text(content)
        assert cost.main(["networks", "--config", str(tmp_path), "--out", str(tmp_path / "x.json")]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_an_unknown_architecture_names_the_nearest(architectures):
    with pytest.raises(cost.UserError, match="did you mean 'resnet18'"):
        cost.network_spec(architectures, "resnet81")
