"""OFA's branches: the paper's sizes to the unit, and any layout, grid and width."""

import pytest
import torch

from fbt_core.branches import PAPER_DEPTHS, RELEASED_DEPTHS, MapBranch, PatchMerging, ofa_branch
from fbt_core.staged.base import FeatureShape

RESNET18 = [FeatureShape("nchw", 64 * 2**i, (56 // 2**i, 56 // 2**i)) for i in range(4)]
DEIT_T = [FeatureShape("tokens", 192, (14, 14), 1)] * 4
RESMLP = [FeatureShape("tokens", 384, (14, 14), 0)] * 4
PAIRS = {
    "deit_t__resnet18": (RESNET18, 512, 192),
    "resnet50__deit_t": (DEIT_T, 192, 2048),
    "convnext_t__resmlp_s12": (RESMLP, 384, 768),
}


def parameters(pair, depths):
    shapes, student_width, teacher_width = PAIRS[pair]
    with torch.device("meta"):
        branches = [
            ofa_branch(s, i, student_width, teacher_width, 1000, depths) for i, s in enumerate(shapes)
        ]
    return sum(p.numel() for branch in branches for p in branch.parameters())


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("deit_t__resnet18", 4_920_736),
        ("resnet50__deit_t", 5_810_848),
        ("convnext_t__resmlp_s12", 21_644_704),
    ],
)
def test_parameters_are_those_of_table_6(pair, expected):
    assert parameters(pair, PAPER_DEPTHS) == expected


@pytest.mark.parametrize(
    ("pair", "millions"),
    [("deit_t__resnet18", 3.04), ("resnet50__deit_t", 4.48), ("convnext_t__resmlp_s12", 16.32)],
)
def test_released_depths_give_the_smaller_branches(pair, millions):
    assert round(parameters(pair, RELEASED_DEPTHS) / 1e6, 2) == millions


def images(shape, batch=3):
    height, width = shape.grid
    sizes = {
        "nchw": (batch, shape.width, height, width),
        "nhwc": (batch, height, width, shape.width),
        "tokens": (batch, shape.prefix_tokens + height * width, shape.width),
    }
    return torch.randn(sizes[shape.layout], generator=torch.Generator().manual_seed(1), requires_grad=True)


@pytest.mark.parametrize("depths", [PAPER_DEPTHS, RELEASED_DEPTHS], ids=["paper", "released"])
@pytest.mark.parametrize(
    ("shape", "stage"),
    [(FeatureShape("nchw", 12 * 2**i, (16 // 2**i, 16 // 2**i)), i) for i in range(4)]
    + [(FeatureShape("nhwc", 12 * 2**i, (16 // 2**i, 16 // 2**i)), i) for i in range(4)]
    + [(FeatureShape("nhwc", 12 * 2**i, (56 // 2**i, 56 // 2**i)), i) for i in range(4)]
    + [(FeatureShape("tokens", 96, (4, 4), prefix), 2) for prefix in (0, 1, 2)]
    + [
        (FeatureShape("tokens", 96, (14, 14), 1), 1),
        (FeatureShape("tokens", 24, (14, 14), 1), 1),  # a class token that a later stage widens
        (FeatureShape("tokens", 96, (15, 17), 0), 0),  # odd sides
        (FeatureShape("nchw", 10, (7, 5), 0), 0),
    ],
    ids=str,
)
def test_every_layout_grid_and_width_gives_logits_and_gradient(shape, stage, depths):
    branch = ofa_branch(shape, stage, student_width=96, teacher_width=80, classes=10, depths=depths)
    feature = images(shape)
    logits = branch(feature)
    assert logits.shape == (3, 10)
    logits.square().sum().backward()
    assert feature.grad.abs().sum() > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in branch.parameters())


def test_a_map_branch_doubles_its_width_and_ends_at_the_wider_network():
    branch = ofa_branch(FeatureShape("nchw", 64, (56, 56)), 0, 512, 2048, 10, PAPER_DEPTHS)
    assert isinstance(branch, MapBranch)
    pointwise = [m for m in branch.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (1, 1)]
    assert [conv.out_channels for conv in pointwise[1::2]] == [128, 256, 512, 2048]


def test_a_class_token_alone_decides_the_logits_where_there_is_one():
    branch = ofa_branch(FeatureShape("tokens", 8, (4, 4), 1), 3, 8, 8, 5, PAPER_DEPTHS).eval()
    seen = []
    branch.blocks.register_forward_hook(lambda module, inputs, result: seen.append(result))
    logits = branch(torch.randn(2, 17, 8))
    assert torch.equal(logits, branch.head(seen[0][:, 0]))


def test_patch_merging_puts_each_two_by_two_neighbourhood_into_one_position():
    merging = PatchMerging(1, 4, activation=False)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    grid = torch.arange(16.0).reshape(1, 4, 4, 1)
    merged = merging(grid)
    assert merged.shape == (1, 2, 2, 4)
    assert [sorted(cell.tolist()) for cell in merged.reshape(4, 4)] == [
        [0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15],
    ]  # fmt: skip


def test_a_stage_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="stage is 4, valid are 0"):
        ofa_branch(RESNET18[3], 4, 512, 192, 10, PAPER_DEPTHS)
    with pytest.raises(ValueError, match="negative"):
        ofa_branch(RESNET18[3], 3, 512, 192, 10, (4, 3, 2, -1))
