"""Staged networks are the timm networks, bit for bit, and leave them as they were."""

import copy
import json

import pytest
import timm
import torch
import yaml
from torch import nn

from fbt_core.errors import UserError
from fbt_core.spec import NetworkSpec
from fbt_core.staged import FeatureShape, NetworkError, UnknownStructure, build_network, stage
from fbt_core.staged.dealing import deal
from fbt_core.staged.layout import from_map, prefix_of, to_map, to_tokens
from fbt_paper.config.load import CONFIG_FOLDER, tiny_network

ARCHITECTURES = yaml.safe_load((CONFIG_FOLDER / "architectures.yaml").read_text())
TWINS = yaml.safe_load((CONFIG_FOLDER / "scales/smoke.yaml").read_text())["architectures"]
UNIFORM = {"vit_s", "deit_t", "mixer_b16", "resmlp_s12"}
BLOCKS = {"even": (3, 6, 9, 12), "ofa": (2, 4, 10, 12)}
FULL_SHAPES = {  # width and grid of the four stages at 224 px, for the architectures of the paper
    "resnet18": [(64, 56), (128, 28), (256, 14), (512, 7)],
    "resnet34": [(64, 56), (128, 28), (256, 14), (512, 7)],
    "resnet50": [(256, 56), (512, 28), (1024, 14), (2048, 7)],
    "mobilenetv1": [(128, 56), (256, 28), (512, 14), (1024, 7)],
    "mobilenetv2": [(24, 56), (32, 28), (96, 14), (1280, 7)],
    "convnext_t": [(96, 56), (192, 28), (384, 14), (768, 7)],
    "vit_s": [(384, 14)] * 4,
    "deit_t": [(192, 14)] * 4,
    "swin_t": [(96, 56), (192, 28), (384, 14), (768, 7)],
    "swin_n": [(64, 56), (128, 28), (256, 14), (512, 7)],
    "swin_p": [(48, 56), (96, 28), (192, 14), (384, 7)],
    "mixer_b16": [(768, 14)] * 4,
    "resmlp_s12": [(384, 14)] * 4,
}


def spec_of(architecture, create, options):
    fields = {"architecture": architecture, "family": "cnn", "create": create, "options": options}
    fields |= {"weights": "none", "mean": [0.5] * 3, "std": [0.5] * 3}
    return NetworkSpec.model_validate_json(json.dumps(fields))


def full_network(architecture, **more_options):
    entry = ARCHITECTURES[architecture]
    spec = spec_of(architecture, entry["create"], {**entry["options"], **more_options})
    return scattered(build_network(spec, 100, 224))


def tiny(architecture, classes=10):
    return scattered(build_network(tiny_network(architecture), classes, 64))


def scattered(network):
    """The network with noise on every parameter: zero-initialised parts would hide a wrong cut."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return network


def images(batch, size):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(2))


def output(model, x):
    torch.manual_seed(3)
    return model(x)


def state(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_same_state(before, after):
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_size_equals_timm_in_eval_and_train_mode_for_both_splits(architecture):
    network, x = full_network(architecture), images(2, 224)
    twin = copy.deepcopy(network)
    for split in BLOCKS:
        staged = stage(network, 224, split)
        shapes = [(s.width, s.grid[0]) for s in staged.shapes]
        assert shapes == FULL_SHAPES.get(architecture, shapes)
        if architecture in UNIFORM:
            assert staged._ends == (0, *BLOCKS[split])
        with torch.no_grad():
            assert torch.equal(staged.eval()(x), twin.eval()(x))
            assert torch.equal(output(staged.train(), x), output(twin.train(), x))
        assert_same_state(state(network), state(twin))  # BatchNorm counted the batch once


@pytest.mark.parametrize("architecture", ["swin_n", "deit_t", "resnet18", "resmlp_s12", "convnext_t"])
def test_stochastic_layers_draw_the_same_numbers(architecture):
    options = {"drop_path_rate": 0.3, "drop_rate": 0.2}
    network, x = full_network(architecture, **options).train(), images(2, 224)
    with torch.no_grad():
        expected = output(network, x)
        assert torch.equal(output(stage(network, 224), x), expected)
        torch.manual_seed(4)
        assert not torch.equal(network(x), expected)  # the layers were on


@pytest.mark.parametrize("architecture", TWINS)
def test_staging_changes_nothing_in_the_network_or_the_random_state(architecture):
    network = tiny(architecture).train()
    first_child = next(network.children()).eval()
    before, random_state = state(network), torch.get_rng_state()
    stage(network, 64)
    assert_same_state(before, state(network))
    assert torch.equal(random_state, torch.get_rng_state())
    assert network.training and not first_child.training


@pytest.mark.parametrize("architecture", TWINS)
def test_features_are_one_pass_with_true_shapes_and_pooled_is_the_average(architecture):
    staged, x = stage(tiny(architecture), 64).eval(), images(3, 64)
    assert set(staged.state_dict()) == {f"network.{key}" for key in staged.network.state_dict()}
    with torch.no_grad():
        output = staged.features(x)
        assert torch.equal(output.logits, staged.network(x))
        for feature, shape in zip(output.stages, staged.shapes, strict=True):
            feature_map = to_map(feature, shape)
            assert feature_map.shape == (3, shape.width, *shape.grid)
            assert torch.equal(to_tokens(feature, shape), feature_map.flatten(2).transpose(1, 2))
            assert torch.equal(from_map(feature_map, shape, prefix_of(feature, shape)), feature)
        normed = staged.norm(output.stages[-1])
        assert torch.allclose(output.pooled, to_map(normed, staged.shapes[-1]).mean((2, 3)), atol=1e-5)
        assert torch.equal(staged.run(output.stages[0], first=1)[-1], output.stages[-1])
    assert output.pooled.shape == (3, staged.width) and output.logits.shape == (3, staged.classes)


@pytest.mark.parametrize("architecture", TWINS)
def test_every_parameter_belongs_to_exactly_one_part(architecture):
    staged = stage(tiny(architecture), 64)
    parts = ["stem", 0, 1, 2, 3, "head"]
    owned = [id(parameter) for part in parts for parameter in staged.stage_parameters(part)]
    assert sorted(owned) == sorted(map(id, staged.parameters()))
    assert all(list(staged.stage_parameters(part)) for part in parts)


def test_a_copy_runs_on_its_own_weights():
    staged, x = stage(tiny("deit_t"), 64).eval(), images(2, 64)
    twin = copy.deepcopy(staged)
    with torch.no_grad():
        for parameter in staged.parameters():
            parameter.zero_()
        assert torch.equal(twin(x), twin.network(x))
        assert not torch.equal(twin(x), staged(x))


def test_a_frozen_network_stays_in_eval_mode():
    staged = stage(tiny("resnet18"), 64).freeze()
    nn.ModuleList([staged]).train()
    assert not any(module.training for module in staged.modules())
    assert not any(parameter.requires_grad for parameter in staged.parameters())


def test_distillation_token_and_dynamic_image_size():
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7, img_size=64, depth=4)
    staged, x = stage(distilled, 64).eval(), images(2, 64)
    assert staged.shapes[2] == FeatureShape("tokens", 192, (4, 4), prefix_tokens=2)
    assert torch.equal(staged(x), distilled(x))
    dynamic = timm.create_model("vit_tiny_patch16_224", num_classes=7, dynamic_img_size=True, depth=4).eval()
    staged = stage(dynamic, 96)
    assert staged.shapes[0].grid == (6, 6)
    assert torch.equal(staged(images(2, 96)), dynamic(images(2, 96)))


def test_stages_are_dealt_by_split_or_by_resolution():
    assert deal([(14, 14)] * 12, "even") == (0, 3, 6, 9, 12)
    assert deal([(14, 14)] * 12, "ofa") == (0, 2, 4, 10, 12)
    assert deal([(14, 14)] * 24, "ofa") == (0, 4, 8, 20, 24)
    assert deal([(4, 4)] * 6, "even") == (0, 2, 3, 5, 6)
    assert deal([(4, 4)] * 5, "ofa") == (0, 1, 2, 4, 5)
    assert deal([(56, 56), (56, 56), (28, 28), (14, 14)], "ofa") == (0, 1, 2, 3, 4)
    assert deal([(112, 112), (56, 56), (28, 28), (14, 14), (14, 14), (7, 7)], "even") == (1, 2, 3, 5, 6)
    assert deal([(28, 28)] * 4 + [(14, 14)] * 6 + [(7, 7)] * 4, "even") == (0, 4, 7, 10, 14)
    with pytest.raises(UserError, match="valid: even, ofa"):
        deal([(4, 4)] * 12, "odd")
    with pytest.raises(UnknownStructure, match="3 pieces"):
        deal([(4, 4)] * 3, "even")


def test_tiny_twins_keep_the_steps_of_resolution_and_differ_from_each_other():
    staged = {name: stage(tiny(name), 64) for name in FULL_SHAPES}
    for name, twin in staged.items():
        grids = [shape.grid[0] for shape in twin.shapes]
        assert grids == ([4] * 4 if name in UNIFORM else [16, 8, 4, 2]), name
        assert twin.shapes[0].layout == stage_layout(name)
    sizes = {name: sum(p.numel() for p in twin.parameters()) for name, twin in staged.items()}
    assert len(set(sizes.values())) == len(sizes)
    assert sizes["resnet34"] > sizes["resnet18"]
    assert sizes["swin_t"] > sizes["swin_n"] > sizes["swin_p"]
    assert sizes["vit_s"] > sizes["deit_t"]


def stage_layout(architecture):
    return "tokens" if architecture in UNIFORM else "nhwc" if architecture.startswith("swin") else "nchw"


def test_an_unknown_structure_names_its_children_and_what_an_adapter_must_provide():
    network = nn.Sequential()
    network.add_module("left", nn.Conv2d(3, 4, 3))
    network.add_module("right", nn.Linear(4, 2))
    with pytest.raises(UnknownStructure) as error:
        stage(network, 32)
    for words in (
        "left (Conv2d)",
        "right (Linear)",
        "fbt_core/staged/adapters",
        "recognise(network)",
        "four pieces",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("create", "options", "words"),
    [
        ("resnet81", {}, "did you mean 'resnet18'"),
        ("os:system", {}, "FBT_NETWORK_PACKAGES"),
        ("timm.models.mlp_mixer:MlpMixr", {}, "did you mean 'MlpMixer'"),
        ("timm.models.mlp_mixer:partial", {}, "no network class 'partial'"),
        ("timm.models.mlp_maxer:MlpMixer", {}, "cannot import"),
        ("resnet18", {"num_classes": 3}, "num_classes may not be set here"),
        ("resnet18", {"checkpoint_path": "x.pt"}, "checkpoint_path may not be set here"),
        ("resnet18", {"layer": [1, 1, 1, 1]}, "do not build"),
        ("hf-hub:timm/resnet18", {}, "outside timm.models"),
        ("timm.models.mlp_mixer:MlpMixer", {"block_layer": "subprocess:Popen"}, "option block_layer"),
    ],
)
def test_a_network_that_may_not_or_cannot_be_built_says_why(create, options, words):
    with pytest.raises(NetworkError, match="network 'wrong'") as error:
        build_network(spec_of("wrong", create, options), 10, 64)
    assert words in str(error.value)


def test_a_package_of_the_users_own_is_allowed_by_name(monkeypatch):
    spec = spec_of("mine", "torchvision.models.vgg:VGG", {})
    with pytest.raises(NetworkError, match="outside"):
        build_network(spec, 10, 64)
    monkeypatch.setenv("FBT_NETWORK_PACKAGES", "torchvision, other")
    with pytest.raises(NetworkError, match="missing 1 required positional argument: 'features'"):
        build_network(spec, 10, 64)


def test_a_map_that_does_not_fit_a_shape_is_refused():
    shape = FeatureShape("tokens", 8, (2, 2), prefix_tokens=1)
    with pytest.raises(ValueError, match="width 4"):
        from_map(torch.zeros(1, 4, 2, 2), shape, torch.zeros(1, 1, 8))
    with pytest.raises(ValueError, match="takes 1 prefix tokens, 0 given"):
        from_map(torch.zeros(1, 8, 2, 2), shape)


def test_pooling_follows_an_image_of_another_size():
    dynamic = timm.create_model("vit_tiny_patch16_224", num_classes=7, dynamic_img_size=True, depth=4).eval()
    output = stage(dynamic, 64).features(images(2, 96))
    assert output.stages[-1].shape[1] == 1 + 36
    expected = dynamic.norm(output.stages[-1])[:, 1:].mean(1)
    assert torch.equal(output.pooled, expected)


@pytest.mark.parametrize("architecture", sorted(TWINS))
def test_the_classifiers_input_gives_the_logits(architecture):
    staged = stage(tiny(architecture), 64).eval()
    with torch.no_grad():
        output = staged.features(images(2, 64))
        entering = staged.classifier_input(output)
    assert entering.shape == (2, staged.classifier_width)
    assert torch.equal(staged.network.get_classifier()(entering), output.logits)


def test_the_classifiers_input_is_a_class_token_or_normalised_after_the_average():
    for architecture, pick in (
        ("deit_t", lambda network, normed: normed[:, 0]),
        (
            "convnext_t",
            lambda network, normed: network.head.norm(normed.mean((2, 3), keepdim=True)).flatten(1),
        ),
        ("resnet18", lambda network, normed: normed.mean((2, 3))),
    ):
        staged = stage(tiny(architecture), 64).eval()
        with torch.no_grad():
            output = staged.features(images(2, 64))
            expected = pick(staged.network, staged.norm(output.stages[3]))
            torch.testing.assert_close(staged.classifier_input(output), expected)


@pytest.mark.parametrize(("architecture", "rectified"), [
    ("resnet18", (True,) * 4), ("resnet50", (True,) * 4), ("mobilenetv1", (True,) * 4),
    ("mobilenetv2", (False, False, False, True)), ("convnext_t", (False,) * 4), ("swin_t", (False,) * 4),
])  # fmt: skip
def test_features_before_the_last_relu(architecture, rectified):
    staged = stage(tiny(architecture), 64).train()
    plain = copy.deepcopy(staged)
    staged.keep_preactivations()
    for network in (staged, copy.deepcopy(staged)):
        output, expected = network.features(images(2, 64)), plain.features(images(2, 64))
        assert expected.preactivations is None
        assert torch.equal(output.logits, expected.logits)
        pairs = zip(output.preactivations, output.stages, rectified, strict=True)
        for before, after, ends_in_relu in pairs:
            assert (before is not after) == ends_in_relu
            assert not ends_in_relu or bool((before < 0).any())
            if ends_in_relu:
                assert torch.equal(before.clamp(min=0, max=after.max().item()), after)
        output.preactivations[3].sum().backward()  # the copy that was kept belongs to the graph


def test_one_pass_serves_every_way_to_deal_the_blocks():
    network = timm.create_model("test_vit", num_classes=4, img_size=32, depth=12).eval()
    staged, images = stage(network, 32, "even"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = staged.features_by_split(images, {"even", "ofa"})
        expected = {split: staged.view(split).features(images) for split in outputs}
    for split, output in outputs.items():
        assert len(output.stages) == len(expected[split].stages) == 4
        assert all(map(torch.equal, output.stages, expected[split].stages))
        assert torch.equal(output.logits, expected[split].logits)
    assert not torch.equal(outputs["even"].stages[0], outputs["ofa"].stages[0])


def test_what_is_done_to_a_view_shows_nowhere_else():
    """A method may replace its BatchNorms, move their statistics and hook its ReLUs."""
    staged, images = (
        stage(timm.create_model("test_resnet", num_classes=4), 32).freeze(),
        torch.randn(2, 3, 32, 32),
    )
    with torch.no_grad():
        before = staged.features(images)
        view = staged.view("even")
        assert all(
            ours is theirs for ours, theirs in zip(view.parameters(), staged.parameters(), strict=True)
        )
        assert not {*map(id, view.modules())} & {*map(id, staged.modules())}
        view.keep_preactivations()
        for norm in (module for module in view.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.train()
            norm.forward = nn.Identity().forward
            norm.running_mean += 1
        view.network.layer4 = nn.Identity()
        after = staged.features(images)
    assert all(map(torch.equal, before.stages, after.stages)) and after.preactivations is None
    assert not any(module._forward_pre_hooks or module.training for module in staged.modules())
