"""The fused model: the right parts in the right layout, gradients where they belong, nothing frozen moves."""

import copy
import os

import pytest
import torch
from torch import nn

from fbt_core.distributed import Group
from fbt_core.errors import UserError
from fbt_core.fusion import L2G, FusedModel, choose_direction
from fbt_core.fusion.fused import kept_statistics
from fbt_core.fusion.l2g import dividing_heads
from fbt_core.normalisation import set_normalisation_batch
from fbt_core.staged import FeatureShape, build_network, stage
from fbt_paper.config.load import tiny_network
from tests.test_core.engine_runs import make_spec
from tests.test_core.test_distributed_runs import run_together

CLASSES = 5
TEACHER_HEAD = [  # teacher, student
    ("swin_t", "resnet18"), ("vit_s", "mobilenetv2"), ("mixer_b16", "resnet18"), ("deit_t", "resnet18"),
    ("resnet34", "resnet18"), ("resnet50", "mobilenetv1"), ("vit_s", "swin_p"),
    ("mixer_b16", "deit_t"), ("mixer_b16", "swin_n"), ("swin_t", "resmlp_s12"),
]  # fmt: skip
STUDENT_HEAD = [
    ("convnext_t", "swin_p"),
    ("resnet50", "deit_t"),
    ("convnext_t", "resmlp_s12"),
    ("resnet50", "swin_n"),
]
PARTS = ("stem", 0, 1, 2, 3, "head")
EARLY = {"stem", 0, 1, 2}


def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def staged_pair(teacher, student):
    torch.manual_seed(5)
    pair = [stage(build_network(tiny_network(name), CLASSES, 64), 64) for name in (student, teacher)]
    with torch.no_grad():
        for staged in pair:
            for parameter in staged.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return pair


def fuse(student, teacher, direction, **changes):
    settings = {
        "block": "swin",
        "stage4": "fused",
        "block_heads": 6,
        "block_window": 7,
        "block_mlp_ratio": 4.0,
        "class_token": "gradient",
    }
    return FusedModel(student, teacher, direction, **{**settings, **changes})


def one_pass(student, teacher, fused):
    """Logits of the fused model on one batch, the networks run once each."""
    student_output = student.train().features(images())
    with torch.no_grad():
        teacher_output = teacher.features(images())
    return fused.train()(student_output, teacher_output)


def touched(staged):
    """The parts of a network that have a gradient other than zero."""

    def has_gradient(part):
        return any(p.grad is not None and p.grad.abs().sum() > 0 for p in staged.stage_parameters(part))

    return {part for part in PARTS if has_gradient(part)}


def all_touched(module):
    return all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_direction_follows_the_families():
    assert choose_direction("msa", "cnn") == choose_direction("mlp", "cnn") == "student_head"
    others = [("cnn", "msa"), ("cnn", "mlp"), ("cnn", "cnn"), ("msa", "msa"), ("mlp", "msa"), ("msa", "mlp")]
    assert {choose_direction(student, teacher) for student, teacher in others} == {"teacher_head"}


@pytest.mark.parametrize(("teacher", "student"), TEACHER_HEAD)
def test_teacher_head_trains_l2g_and_the_students_early_stages_only(teacher, student):
    student, teacher = staged_pair(teacher, student)
    fused, before = fuse(student, teacher, "teacher_head"), state(teacher)
    pooled, logits = one_pass(student, teacher, fused)
    (logits.square().mean() + pooled.square().mean()).backward()
    assert logits.shape == (4, CLASSES) and pooled.shape == (4, teacher.width) == (4, fused.width)
    assert touched(student) == EARLY
    assert touched(teacher) == set() and same(before, state(teacher))
    assert all_touched(fused) and not fused.head_is_trainable


@pytest.mark.parametrize(("teacher", "student"), STUDENT_HEAD)
def test_student_head_trains_l2g_and_the_students_last_stage_only(teacher, student):
    student, teacher = staged_pair(teacher, student)
    fused, before = fuse(student, teacher, "student_head", class_token="detached"), state(teacher)
    pooled, logits = one_pass(student, teacher, fused)
    (logits.square().mean() + pooled.square().mean()).backward()
    assert logits.shape == (4, CLASSES) and pooled.shape == (4, student.width)
    assert touched(student) == {3, "head"}
    assert touched(teacher) == set() and same(before, state(teacher))
    assert all_touched(fused) and fused.head_is_trainable


@pytest.mark.parametrize("class_token", ["gradient", "detached"])
def test_the_students_class_token_alone_may_carry_the_gradient_back(class_token):
    student, teacher = staged_pair("resnet50", "deit_t")
    output = student.features(images())
    output.stages[2].retain_grad()
    with torch.no_grad():
        teacher_output = teacher.features(images())
    fused = fuse(student, teacher, "student_head", class_token=class_token)
    fused(output, teacher_output)[1].square().mean().backward()
    gradient = output.stages[2].grad
    if class_token == "detached":
        assert gradient is None
    else:
        assert gradient[:, 0].abs().sum() > 0 and gradient[:, 1:].abs().sum() == 0


def test_the_teachers_class_token_is_the_one_of_this_batch():
    student, teacher = staged_pair("vit_s", "resnet18")
    fused = fuse(student, teacher, "teacher_head")
    with torch.no_grad():
        output, teacher_output = student.eval().features(images()), teacher.features(images())
        expected = fused(output, teacher_output)[1]
        entering = fused.l2g(output.stages[2], teacher_output.stages[2][:, :1])
        assert torch.equal(teacher.finish(teacher.stages[3](entering))[1], expected)
        teacher_output.stages[2] = teacher_output.stages[2].flip(0)
        assert not torch.equal(fused(output, teacher_output)[1], expected)
        teacher_output.stages[2][:, 1:] = 0  # patches of the teacher play no part
        flipped = fused(output, teacher_output)[1]
        teacher_output.stages[2][:, 1:] = 1
        assert torch.equal(fused(output, teacher_output)[1], flipped)


@pytest.mark.parametrize("teacher", ["resnet34", "mobilenetv2"])
def test_a_batchnorm_teacher_stays_as_it_is_through_training_steps(teacher):
    student, teacher = staged_pair(teacher, "resnet18")
    fused, before = fuse(student, teacher, "teacher_head"), state(teacher)
    teacher.train()
    optimizer = torch.optim.SGD([*student.parameters(), *fused.parameters()], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        one_pass(student, teacher, fused)[1].square().mean().backward()
        optimizer.step()
    assert same(before, state(teacher)) and not any(module.training for module in teacher.modules())


def test_only_the_students_own_pass_updates_its_last_stages_statistics():
    student, teacher = staged_pair("convnext_t", "mobilenetv2")
    fused, lone_student = fuse(student, teacher, "student_head"), copy.deepcopy(student)
    lone_student.train().features(images())
    logits = one_pass(student, teacher, fused)[1]
    assert same(state(lone_student), state(student))
    assert any(
        module.track_running_stats for module in student.modules() if isinstance(module, nn.BatchNorm2d)
    )
    logits.square().mean().backward()
    assert touched(student) == {3, "head"}


def test_kept_statistics_normalises_by_the_batch_and_is_undone():
    norm, x = nn.BatchNorm1d(3), torch.randn(8, 3)
    expected, before = copy.deepcopy(norm)(x), state(norm)
    with kept_statistics(norm):
        assert torch.equal(norm(x), expected)
    assert same(before, state(norm)) and norm.track_running_stats


def test_kept_statistics_are_kept_where_processes_share_them():
    """Two processes on CPUs: one normalisation over both batches, and no statistic moves."""
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(3), torch.randn(8, 3, 2, 2)
    expected, before = copy.deepcopy(norm)(x), state(norm)
    recipe = make_spec(recipe__batch_size=8).recipe

    def check(rank):
        torch.distributed.init_process_group("gloo")
        set_normalisation_batch(norm, recipe, Group(torch.device("cpu"), rank, 2), 1)
        with kept_statistics(norm):
            torch.testing.assert_close(norm(x.chunk(2)[rank]), expected.chunk(2)[rank])
        assert same(before, state(norm))
        norm(x.chunk(2)[rank])
        assert not same(before, state(norm))
        os._exit(0)

    assert run_together([], 2, check) == [0, 0]


@pytest.mark.parametrize(("direction", "teacher", "student"), [
    ("teacher_head", "vit_s", "resnet18"), ("student_head", "convnext_t", "deit_t"),
])  # fmt: skip
@pytest.mark.parametrize("block", ["swin", "none"])
def test_without_stage_4_a_new_linear_reads_the_pooled_map(direction, teacher, student, block):
    student, teacher = staged_pair(teacher, student)
    fused = fuse(student, teacher, direction, stage4="none", block=block)
    pooled, logits = one_pass(student, teacher, fused)
    logits.square().mean().backward()
    owner = teacher if direction == "teacher_head" else student
    assert pooled.shape == (4, owner.shapes[2].width) == (4, fused.width) and logits.shape == (4, CLASSES)
    assert torch.equal(fused.classifier(pooled), logits)
    assert touched(student) == (EARLY if direction == "teacher_head" else set())
    assert all_touched(fused) and fused.head_is_trainable
    names = {name.partition(".")[0] for name, _ in fused.l2g.named_parameters()}
    assert names == ({"patch_embedding"} if block == "none" else {"patch_embedding", "block"})


def test_only_the_new_parts_are_registered_and_a_copy_shares_the_teacher():
    student, teacher = staged_pair("swin_t", "resnet18")
    fused = fuse(student, teacher, "teacher_head")
    assert {name for name, _ in fused.named_children()} == {"l2g"}
    held = nn.ModuleDict({"student": student, "fused": fused})
    twin = copy.deepcopy(held)
    assert twin["fused"]._networks[0] is twin["student"] is not student
    assert twin["fused"]._networks[1] is teacher
    assert twin["fused"].l2g.patch_embedding.weight is not fused.l2g.patch_embedding.weight


@pytest.mark.parametrize(("width_in", "width_out", "swin", "swinv2", "vit"), [
    (256, 192, 495_222, 498_630, 494_208),       # DeiT-T -> ResNet18
    (1024, 192, 642_678, 646_086, 641_664),      # ResNet50 -> DeiT-T
    (384, 384, 1_923_318, 1_926_534, 1_922_304), # ConvNeXt-T -> ResMLP-S12
])  # fmt: skip
def test_l2g_at_paper_size_has_the_parameters_of_table_6(width_in, width_out, swin, swinv2, vit):
    entry, exit_ = FeatureShape("nchw", width_in, (14, 14)), FeatureShape("tokens", width_out, (14, 14), 1)
    embedding = width_in * width_out + width_out
    for block, count in {"swin": swin, "swinv2": swinv2, "vit": vit, "none": embedding}.items():
        l2g = L2G(entry, exit_, block, heads=6, window=7, mlp_ratio=4.0)
        assert sum(p.numel() for p in l2g.parameters()) == count
    assert l2g(torch.zeros(1, width_in, 14, 14), torch.ones(1, 1, width_out)).shape == (1, 197, width_out)


@pytest.mark.parametrize("entry", [("nchw", (7, 7), 0), ("nhwc", (14, 14), 0), ("tokens", (4, 4), 2)])
@pytest.mark.parametrize("exit_", [("nchw", (14, 14), 0), ("nhwc", (7, 7), 0), ("tokens", (14, 14), 1)])
@pytest.mark.parametrize("block", ["swin", "swinv2", "vit", "none"])
def test_l2g_joins_any_layout_and_grid_to_any_other(entry, exit_, block):
    shapes = [
        FeatureShape(layout, width, grid, prefix)
        for width, (layout, grid, prefix) in ((5, entry), (12, exit_))
    ]
    x = {"nchw": torch.ones(2, 5, 7, 7), "nhwc": torch.ones(2, 14, 14, 5), "tokens": torch.ones(2, 18, 5)}[
        entry[0]
    ]
    prefix = torch.full((2, exit_[2], 12), 3.0) if exit_[2] else None
    y = L2G(*shapes, block, heads=6, window=7, mlp_ratio=4.0)(x, prefix)
    assert y.shape == {"nchw": (2, 12, 14, 14), "nhwc": (2, 7, 7, 12), "tokens": (2, 197, 12)}[exit_[0]]
    assert prefix is None or torch.equal(y[:, :1], prefix)


def test_l2g_averages_where_the_grid_shrinks():
    shapes = FeatureShape("nchw", 1, (4, 4)), FeatureShape("nchw", 1, (2, 2))
    l2g = L2G(*shapes, "none", heads=1, window=7, mlp_ratio=4.0)
    nn.init.ones_(l2g.patch_embedding.weight), nn.init.zeros_(l2g.patch_embedding.bias)
    quarters = l2g(torch.arange(16.0).reshape(1, 1, 4, 4)).flatten().tolist()
    assert quarters == [2.5, 4.5, 10.5, 12.5]


def test_heads_are_lowered_until_they_divide_the_width():
    assert [dividing_heads(width, 6) for width in (192, 384, 36, 80, 49, 7)] == [6, 6, 6, 5, 1, 1]


@pytest.mark.parametrize(("changes", "words"), [
    ({"block": "swim"}, "valid: none, swin, swinv2, vit; did you mean 'swin'"),
    ({"stage4": "patch_embedding_only"}, "valid: fused, none$"),
    ({"class_token": "kept"}, "valid: detached, gradient"),
    ({"block_heads": 0}, "at least 1"),
])  # fmt: skip
def test_an_unknown_choice_names_the_valid_ones(changes, words):
    student, teacher = staged_pair("swin_t", "resnet18")
    with pytest.raises(UserError, match=words):
        fuse(student, teacher, "teacher_head", **changes)
