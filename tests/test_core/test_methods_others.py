"""SimKD, FitNet, OFA, ReviewKD, CC and low-pass: what each promises beyond the conformance suite."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as functional

from fbt_core.losses.logits import ofa_loss
from fbt_core.methods.modules import Aligned, evaluating, feature_width, rectified_features, shrink
from fbt_core.methods.parameters import ParameterError
from fbt_core.methods.reviewkd import AttentionFusion
from fbt_core.staged.base import FeatureShape
from tests.test_core.methods_kit import (
    PAIRS,
    copy_state,
    make_batch,
    make_method,
    make_network,
    observe,
    run_step,
    same_state,
    take_step,
)
from tests.test_core.test_methods_fcfd import SHAPES, make_feature

# --- SimKD


@pytest.mark.parametrize("pair", PAIRS.values(), ids="_to_".join)
def test_simkd_is_scored_with_the_teachers_classifier(pair):
    method, images = make_method("simkd", pair), make_batch().images
    network = method.get_eval_model().eval()
    with torch.no_grad():
        output = method.student.features(images)
        projected = method.extras["projector"](output.stages[3], output.pooled)
        expected = method.teacher.head(method.teacher.norm(projected))
        assert torch.equal(network(images), expected)
    assert network(images).shape == (4, 10)


def test_a_perfect_projection_gives_the_teachers_logits_and_no_loss():
    method, batch = make_method("simkd", ("swin_t", "resnet18")), make_batch()
    teacher = observe(method, batch)
    method.extras["projector"].forward = lambda feature, pooled: teacher.stages[3]
    result = run_step(method, batch)
    assert result["loss"] == 0
    torch.testing.assert_close(result["output"], teacher.logits)


def test_simkd_leaves_the_students_own_classifier_untrained():
    method = make_method("simkd")
    head = [p.clone() for p in method.student.stage_parameters("head")]
    take_step(method, make_batch())
    assert all(map(torch.equal, head, method.student.stage_parameters("head")))


def test_evaluating_simkd_leaves_the_teacher_in_eval_mode():
    method = make_method("simkd")
    method.get_eval_model().train()
    assert not any(module.training for module in method.teacher.modules())


def test_simkds_last_relu_stays_where_the_teacher_is_rectified():
    kinds = {
        teacher: type(
            make_method("simkd", (teacher, "resnet18")).extras["projector"].convolutions[-1]
        ).__name__
        for teacher in ("resnet50", "convnext_t", "swin_t")
    }
    assert kinds == {"resnet50": "ReLU", "convnext_t": "Identity", "swin_t": "Identity"}


def test_class_tokens_of_the_teacher_come_from_the_students_pooled_feature():
    terms = run_step(make_method("simkd", ("deit_t", "resnet18")), make_batch())["terms"]
    assert terms.keys() == {"features", "class_token"}
    assert run_step(make_method("simkd", ("mixer_b16", "resnet18")), make_batch())["terms"].keys() == {
        "features"
    }


# --- FitNet

VARIANTS = [("all_stages", "mse"), ("final", "mse"), ("final_pooled", "mse"), ("final_pooled", "infonce")]


@pytest.mark.parametrize("pair", [("convnext_t", "swin_p"), ("deit_t", "resnet18"), ("mixer_b16", "deit_t")])
@pytest.mark.parametrize(("features", "loss"), VARIANTS)
def test_the_four_variants_of_table_4(features, loss, pair):
    method = make_method("fitnet", pair, features=features, loss=loss)
    terms = take_step(method, make_batch())["terms"].keys()
    expected = {
        "all_stages": {"stage1", "stage2", "stage3", "stage4"},
        "final": {"stage4"},
        "final_pooled": {"pooled"},
    }[features]
    assert terms == {"labels"} | expected


@pytest.mark.parametrize("features", ["all_stages", "final"])
def test_infonce_needs_pooled_features(features):
    with pytest.raises(ParameterError, match="needs features final_pooled"):
        make_method("fitnet", features=features, loss="infonce")


@pytest.mark.parametrize(("learner", "source"), itertools.product(SHAPES, SHAPES), ids=str)
def test_features_of_any_two_layouts_are_aligned(learner, source):
    maps = Aligned(learner, source)(make_feature(learner), make_feature(source))
    grid = tuple(map(min, learner.grid, source.grid))
    assert {tuple(x.shape) for x in maps} == {(2, source.width, *grid)}


def test_a_sources_map_is_only_reshaped():
    tokens, wide = FeatureShape("tokens", 3, (2, 2), 1), FeatureShape("nchw", 5, (4, 4))
    feature = make_feature(tokens)
    _, source = Aligned(wide, tokens)(make_feature(wide), feature)
    assert torch.equal(source[:, :, 0, 1], feature[:, 2])  # the class token is dropped, rows come first


# --- OFA


@pytest.mark.parametrize("depth", ["released", "paper"])
def test_ofa_compares_logits_and_four_branches(depth):
    method, batch = make_method("ofa", ("deit_t", "resnet18"), branch_depth=depth, gamma=1.5), make_batch()
    student, teacher = method.student.features(batch.images), observe(method, batch)
    terms = method.terms(student, teacher, batch)
    assert terms.keys() == {"labels", "logits", "branch1", "branch2", "branch3", "branch4"}
    expected = ofa_loss(student.logits, teacher.logits, batch.target, 1.5, 1.0)
    torch.testing.assert_close(terms["logits"], expected)


def test_the_papers_branches_are_deeper_than_the_released_ones():
    sizes = [
        sum(p.numel() for p in make_method("ofa", branch_depth=depth).extras.parameters())
        for depth in ("paper", "released")
    ]
    assert sizes[0] > sizes[1]


# --- ReviewKD


def test_reviewkd_passes_later_levels_down():
    """The first level's loss depends on the last stage, the last level's not on the first stage's map."""
    method = make_method("reviewkd")
    maps = [torch.randn(2, shape.width, *shape.grid, requires_grad=True) for shape in method.student.shapes]
    pooled = torch.randn(2, method.student.width, 1, 1, requires_grad=True)
    levels = dict(zip(("stage1", "stage2", "stage3", "stage4", "pooled"), [*maps, pooled], strict=True))
    reviewed = method._review(levels)
    first = torch.autograd.grad(reviewed["stage1"].square().sum(), [*levels.values()], retain_graph=True)
    assert all(gradient.any() for gradient in first)
    last = torch.autograd.grad(reviewed["pooled"].square().sum(), [*levels.values()], allow_unused=True)
    assert [gradient is None for gradient in last] == [True, True, True, True, False]


def test_reviewkd_weighs_a_level_and_what_was_passed_down():
    """With attention weights 1/4 and 3/4 the fused map is x / 4 + 3 y / 4, y enlarged to x's grid."""
    fusion = AttentionFusion(3, 3, 3, is_last=False)
    fusion.reduce = fusion.expand = torch.nn.Identity()
    torch.nn.init.zeros_(fusion.attention[0].weight)
    fusion.attention[0].bias.data = torch.logit(torch.tensor([0.25, 0.75]))
    x, passed = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)
    enlarged = passed.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(fusion(x, passed)[1], 0.25 * x + 0.75 * enlarged)


def test_reviewkds_weight_rises_with_the_ramp():
    def terms(epoch, **changes):
        method = make_method("reviewkd", **changes)
        method.start_epoch(epoch)
        return run_step(method, make_batch())["terms"]

    full = terms(0, ramp_epochs=0)
    for start, weights in ((0, (0, 0.5, 1, 1)), (1, (0.5, 1, 1, 1))):
        for epoch, weight in enumerate(weights):
            ramped = terms(epoch, ramp_epochs=2, ramp_start=start)
            assert ramped["stage2"].item() == pytest.approx(weight * full["stage2"].item(), rel=1e-5)
            assert ramped["labels"] == full["labels"]


def test_reviewkd_compares_features_before_the_last_relu():
    """ResNet's stages end in a ReLU, a transformer's do not."""
    for pair, differ in ((("resnet34", "resnet18"), True), (("swin_t", "deit_t"), False)):
        before, after = (
            run_step(make_method("reviewkd", pair, ramp_epochs=0, features=features), make_batch())["terms"]
            for features in ("before_relu", "after_relu")
        )
        assert (before["stage2"] != after["stage2"]) == differ
        assert before["labels"] == after["labels"]


# --- the feature that stands for an image


@pytest.mark.parametrize("name", ["cc", "rkd", "crd"])
def test_what_enters_the_classifier_is_compared(name):
    """A class token and ConvNeXt's normalised average are other features than the plain average."""
    pair = ("convnext_t", "deit_t")
    entering, pooled = (
        run_step(make_method(name, pair, feature=feature), make_batch())["terms"]
        for feature in ("classifier_input", "pooled")
    )
    assert entering["labels"] == pooled["labels"]
    assert all(entering[term] != pooled[term] for term in entering if term != "labels")


def test_a_network_that_hides_what_enters_its_classifier_is_refused_before_the_first_step():
    network = make_network("resnet18")
    network.classifier_width = None
    with pytest.raises(ParameterError, match="ResNet does not show what enters.*set feature: pooled"):
        feature_width(network, "classifier_input")
    assert feature_width(network, "pooled") == network.width


# --- CC


def test_cc_has_both_forms():
    released, paper = (
        run_step(make_method("cc", correlation=form), make_batch()) for form in ("neighbours", "kernel")
    )
    assert released["terms"]["relations"] != paper["terms"]["relations"]


# --- low-pass


def test_the_low_pass_filter_drops_what_alternates():
    """A chequered pattern has no low frequency: adding it to a feature changes nothing."""
    method = make_method("lowpass", scales=2)
    low_pass = method.extras["student1"]
    feature = torch.randn(2, low_pass.shape.width, *low_pass.shape.grid)
    rows, columns = (torch.arange(size) for size in low_pass.shape.grid)
    chequered = ((rows[:, None] + columns) % 2 * 2 - 1).float()
    torch.testing.assert_close(low_pass(feature + chequered), low_pass(feature), atol=1e-5, rtol=0)
    assert not torch.allclose(low_pass(feature + 1), low_pass(feature))


def test_low_frequencies_of_both_networks_have_one_size():
    method, batch = make_method("lowpass", ("vit_s", "resnet18")), make_batch()
    student, teacher = method.student.features(batch.images), observe(method, batch)
    for i in range(4):
        vectors = (
            method.extras[f"student{i + 1}"](student.stages[i]),
            method.extras[f"teacher{i + 1}"](teacher.stages[i]),
        )
        assert vectors[0].shape == vectors[1].shape


# --- shared modules


def test_shrinking_is_averaging():
    feature_map = torch.randn(2, 3, 7, 7)
    assert shrink(feature_map, (7, 7)) is feature_map
    torch.testing.assert_close(shrink(feature_map, (1, 1))[:, :, 0, 0], feature_map.mean((2, 3)))
    torch.testing.assert_close(shrink(feature_map, (4, 4)), functional.adaptive_avg_pool2d(feature_map, 4))


def test_rectified_features_are_found_and_nothing_is_disturbed():
    network = make_network("resnet18").train()
    before, random_state = copy_state(network), torch.get_rng_state()
    assert rectified_features(network) == (True,) * 5
    assert rectified_features(make_network("swin_t")) == (False,) * 5
    assert same_state(before, network.state_dict())
    assert torch.equal(random_state, torch.get_rng_state())
    assert network.training


def test_evaluating_puts_every_mode_back():
    network = make_network("resnet18").train()
    frozen = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert network.training
    assert not frozen.training
