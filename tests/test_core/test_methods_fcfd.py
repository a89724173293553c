"""FCFD: mixed paths, their own BatchNorm statistics, bridges between any layouts, the ramp."""

from __future__ import annotations

import pytest
import torch

from fbt_core.distributed import Group
from fbt_core.methods.fcfd import Bridge, Path, late_norms
from fbt_core.normalisation import set_normalisation_batch
from fbt_core.staged.base import FeatureShape
from tests.test_core.engine_runs import make_spec
from tests.test_core.methods_kit import (
    copy_state,
    make_batch,
    make_method,
    observe,
    run_step,
    same_state,
    take_step,
)

CNN_PAIR = ("resnet50", "resnet18")


def statistics_of(method):
    return {name: t for name, t in copy_state(method.extras).items() if name.startswith("statistics")}


def test_a_path_changes_networks_once_after_each_of_the_first_three_stages():
    method = make_method("fcfd")
    candidates = method._candidates()
    assert len(set(candidates)) == 6
    assert {(path.early, path.stage) for path in candidates} == {
        (early, stage) for early in ("student", "teacher") for stage in range(3)
    }
    assert all(path.early != path.late for path in candidates)


@pytest.mark.parametrize(("directions", "count"), [("student_to_teacher", 3), ("teacher_to_student", 3)])
def test_one_direction_leaves_three_paths(directions, count):
    candidates = make_method("fcfd", directions=directions)._candidates()
    assert len(candidates) == count
    assert {f"{path.early}_to_{path.late}" for path in candidates} == {directions}


def test_two_paths_a_step_are_drawn_and_repeat_with_the_random_state():
    method = make_method("fcfd")
    torch.manual_seed(0)
    drawn = [method._draw_paths() for _ in range(40)]
    assert {len(set(paths)) for paths in drawn} == {2}
    assert len({path for paths in drawn for path in paths}) == 6
    torch.manual_seed(0)
    assert [method._draw_paths() for _ in range(40)] == drawn


def fix_paths(method, *paths):
    method._draw_paths = lambda: [Path(*path) for path in paths]
    return method


def test_mixed_passes_move_their_own_statistics_and_no_others():
    method = fix_paths(make_method("fcfd", CNN_PAIR), ("student", "teacher", 1), ("teacher", "student", 0))
    alone = make_method("scratch", CNN_PAIR)
    before, teacher = statistics_of(method), copy_state(method.teacher)
    run_step(method, make_batch())
    run_step(alone, make_batch())
    moved = {
        name.split(".")[0]
        for name, value in statistics_of(method).items()
        if not torch.equal(before[name], value)
    }
    assert moved == {"statistics_student_to_teacher2", "statistics_teacher_to_student1"}
    assert same_state(teacher, method.teacher.state_dict())
    assert same_state(copy_state(alone.student), copy_state(method.student))
    assert not any(module.training for module in method.teacher.modules())


def test_a_mixed_pass_normalises_by_its_own_batch():
    method = make_method("fcfd", CNN_PAIR)
    norms = late_norms(method.teacher, 0)
    path = method.extras["statistics_student_to_teacher1"]
    x = 3 + 2 * torch.randn(8, norms[0].num_features, 2, 2)
    with path.used_by(norms):
        torch.testing.assert_close(norms[0](x).mean(), norms[0].bias.mean(), atol=1e-5, rtol=0)
    assert norms[0](x).mean() > 1  # outside, the teacher's own statistics (0 and 1)


def test_mixed_passes_through_the_teacher_normalise_over_as_many_images_as_the_recipe_says():
    """Four images in groups of two: each group's mixed pass is what it would be alone."""
    recipe = make_spec(recipe__batch_size=4, recipe__normalisation_batch=2).recipe
    method, twin = make_method("fcfd", CNN_PAIR), make_method("fcfd", CNN_PAIR)
    method.adapt_normalisation(
        lambda m: set_normalisation_batch(m, recipe, Group(torch.device("cpu"), 0, 1), 1)
    )
    norms, others = late_norms(method.teacher, 0), late_norms(twin.teacher, 0)
    path = "statistics_student_to_teacher1"
    x = 3 + 2 * torch.randn(4, method.teacher.shapes[0].width, *method.teacher.shapes[0].grid)
    with method.extras[path].used_by(norms), twin.extras[path].used_by(others):
        grouped = method.teacher.run(x, first=1)[-1]
        halves = [twin.teacher.run(half, first=1)[-1] for half in x.chunk(2)]
        assert not torch.allclose(twin.teacher.run(x, first=1)[-1], grouped, atol=1e-3)
    torch.testing.assert_close(grouped, torch.cat(halves))
    assert not any(module.training for module in method.teacher.modules())


def test_own_statistics_are_put_back_after_an_error():
    method = make_method("fcfd", CNN_PAIR)
    norms, before = late_norms(method.teacher, 0), copy_state(method.teacher)
    with pytest.raises(RuntimeError), method.extras["statistics_student_to_teacher1"].used_by(norms):
        raise RuntimeError
    assert same_state(before, method.teacher.state_dict())
    assert not any(norm.training for norm in norms)


def test_path_statistics_are_in_the_checkpoint_and_resume():
    method = make_method("fcfd", CNN_PAIR)
    torch.manual_seed(3)
    for seed in (1, 2):
        take_step(method, make_batch(seed=seed))
    twin = make_method("fcfd", CNN_PAIR, seed=8)
    twin.trainable_module.load_state_dict(method.trainable_module.state_dict())
    assert same_state(statistics_of(method), statistics_of(twin))
    for resumed in (method, twin):
        torch.manual_seed(4)
        take_step(resumed, make_batch(seed=3))
    assert same_state(copy_state(method.trainable_module), copy_state(twin.trainable_module))
    assert any(value.any() for name, value in statistics_of(twin).items() if ".count" in name)


def test_the_feature_terms_rise_with_the_ramp():
    values = []
    for epoch in (0, 3):
        method = fix_paths(make_method("fcfd", ramp_epochs=4), ("student", "teacher", 0))
        method.start_epoch(epoch)
        values.append(run_step(method, make_batch())["terms"])
    for name in ("stage1", "stage4", "pooled"):
        assert values[1][name].item() == pytest.approx(4 * values[0][name].item(), rel=1e-5)
    assert values[1]["mixed"] == values[0]["mixed"]


def test_without_paths_only_the_bridged_features_and_logits_are_left():
    terms = run_step(make_method("fcfd", paths=0), make_batch())["terms"]
    assert terms["mixed"] == 0
    assert terms["stage1"] > 0


@pytest.mark.parametrize(("teacher", "rectified"), [("resnet50", True), ("vit_s", False)])
def test_what_is_below_zero_is_cut_off_before_pooling_where_the_teachers_feature_is_rectified(
    teacher, rectified
):
    method, batch = make_method("fcfd", (teacher, "resnet18")), make_batch()
    output, shape = observe(method, batch), method.teacher.shapes[3]
    bridged = torch.randn(4, shape.width, *shape.grid)
    whole, cut = (method._pooled_loss(x, [], output) for x in (bridged, bridged.relu()))
    assert torch.equal(whole, cut) == rectified


def test_a_path_into_the_teacher_adds_its_stages_to_the_feature_terms():
    def stages(*paths):
        return run_step(fix_paths(make_method("fcfd"), *paths), make_batch())["terms"]

    plain, mixed = stages(), stages(("student", "teacher", 1))
    assert [mixed[f"stage{i}"] > plain[f"stage{i}"] for i in (1, 2, 3, 4)] == [False, False, True, True]
    other_way = stages(("teacher", "student", 1))
    assert all(other_way[f"stage{i}"] == plain[f"stage{i}"] for i in (1, 2, 3, 4))


SHAPES = [
    FeatureShape("nchw", 6, (8, 8)),
    FeatureShape("nhwc", 5, (4, 4)),
    FeatureShape("tokens", 7, (4, 4), 1),
    FeatureShape("tokens", 3, (3, 3)),
    FeatureShape("nchw", 4, (2, 2)),
]


def make_feature(shape):
    height, width = shape.grid
    sizes = {
        "nchw": (2, shape.width, height, width),
        "nhwc": (2, height, width, shape.width),
        "tokens": (2, shape.prefix_tokens + height * width, shape.width),
    }
    return torch.randn(sizes[shape.layout])


@pytest.mark.parametrize("target", SHAPES, ids=str)
@pytest.mark.parametrize("source", SHAPES, ids=str)
def test_a_bridge_connects_any_two_layouts(source, target):
    bridged = Bridge(source, target, rectified=False)(make_feature(source))
    assert bridged.shape == (2, target.width, *target.grid)


def test_a_bridge_into_rectified_features_ends_in_a_leaky_relu():
    method = make_method("fcfd", ("resnet50", "mobilenetv2"))
    last = {name: type(m.layers[-1]).__name__ for name, m in method.extras.items() if "_to_" in name and
            not name.startswith("statistics")}  # fmt: skip
    assert last["student_to_teacher2"] == "LeakyReLU"  # ResNet's stages end in a ReLU
    assert last["teacher_to_student2"] == "Identity"  # MobileNetV2's in a linear bottleneck
