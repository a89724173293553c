"""Numbers about features against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from fbt_core.measure.feature_numbers import (
    SimilarityMatrix,
    centred_gram,
    energy_maps,
    group_maps,
    group_similarity,
    locality,
    pool,
    spatial_entropy,
    standardise,
    unbiased_hsic,
)


def random_feature(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_standardised_channels_have_mean_0_and_deviation_1():
    feature = random_feature(8, 5, 4, 4) * 7 + 3
    feature[:, 2] = 5.0  # a dead channel
    done = standardise(feature)
    alive = [0, 1, 3, 4]
    assert done.mean((0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(done.std((0, 2, 3), unbiased=False)[alive], torch.ones(4), atol=1e-4)
    assert done[:, 2].abs().max() == 0


def test_entropy_of_even_single_and_half_maps():
    even, point, half = torch.ones(4, 4), torch.zeros(4, 4), torch.zeros(4, 4)
    point[1, 2] = 9.0
    half[:2] = 3.0  # 8 of 16 positions: log 8 / log 16 = 3/4
    values = spatial_entropy(torch.stack([even, point, half, torch.zeros(4, 4)]))
    assert values.tolist() == pytest.approx([1.0, 0.0, 0.75, 1.0], abs=1e-9)


def test_entropy_of_a_single_position():
    assert spatial_entropy(torch.rand(3, 1, 1)).tolist() == [1.0, 1.0, 1.0]


def test_locality_of_a_checkerboard_a_blob_and_a_constant():
    board = torch.ones(1, 1, 4, 4)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = -1.0  # 24 neighbours differ; pairs: (8*7*2 - 64*2) / 240
    assert locality(board) == pytest.approx(-1.0 - (2 * 56 - 128) / 240, abs=1e-6)
    halves = torch.ones(1, 1, 4, 4)
    halves[..., :2, :] = -1.0  # of 24 neighbouring pairs 4 differ
    assert locality(halves) == pytest.approx((20 - 4) / 24 - (2 * 56 - 128) / 240, abs=1e-6)
    assert locality(torch.ones(2, 3, 4, 4)) == pytest.approx(0.0, abs=1e-6)


def test_locality_of_a_single_position_is_unknown():
    assert locality(torch.ones(2, 3, 1, 1)) != locality(torch.ones(2, 3, 1, 1))


def test_groups_are_runs_of_channels():
    feature = torch.zeros(1, 7, 2, 2)
    feature[0, 0] = 6.0  # first of three channels: 3 + 2 + 2
    groups = group_maps(feature)
    assert groups.shape == (1, 3, 2, 2)
    assert groups[0, 0].unique().tolist() == [2.0]
    assert groups[0, 1:].abs().max() == 0


def test_group_similarity_of_equal_and_opposite_maps():
    ramp = torch.arange(16.0).view(4, 4)
    assert group_similarity(torch.stack([ramp, 2 * ramp, ramp + 5])[None]) == pytest.approx(1.0, abs=1e-5)
    assert group_similarity(torch.stack([ramp, -ramp])[None]) == pytest.approx(-1.0, abs=1e-5)


def test_energy_is_the_mean_of_absolute_values():
    feature = torch.tensor([[[[1.0]], [[-3.0]]]])
    assert energy_maps(feature).item() == 2.0


def test_cka_is_1_for_itself_and_after_rotation_and_scaling():
    feature = random_feature(32, 10)
    rotation = torch.linalg.qr(random_feature(10, 10, seed=1)).Q
    matrix = SimilarityMatrix(1, 2)
    matrix.add([feature], [feature, 3.5 * feature @ rotation + 2.0])
    assert matrix.value()[0].tolist() == pytest.approx([1.0, 1.0], abs=1e-4)


def test_cka_of_independent_features_is_near_0_whatever_the_batch():
    first, second = random_feature(256, 40, seed=2), random_feature(256, 40, seed=3)
    for batch in (32, 256):
        matrix = SimilarityMatrix(1, 1)
        for start in range(0, 256, batch):
            matrix.add([first[start : start + batch]], [second[start : start + batch]])
        assert abs(matrix.value().item()) < 0.1


def test_unbiased_hsic_against_the_formula_by_hand():
    first = torch.tensor([[0, 1, 2, 3], [1, 0, 4, 5], [2, 4, 0, 6], [3, 5, 6, 0]], dtype=torch.double)
    # trace 2(1+4+9+16+25+36) = 182; sum 42: 42*42/6 = 294; rows 6,10,12,14: 2*476/2 = 476; over 4*1
    assert unbiased_hsic(first, first).item() == pytest.approx((182 + 294 - 476) / 4)


def test_gram_is_centred():
    gram = centred_gram(random_feature(6, 3, 2, 2) + 4)
    assert gram.sum(0).abs().max() < 1e-6


def test_the_same_content_is_as_local_on_a_fine_grid_as_on_a_coarse_one():
    """Neighbours on a fine grid are nearer to each other; on the common grid both say the same."""
    coarse = random_feature(8, 6, 4, 4, seed=4)
    fine = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert locality(standardise(fine)) > locality(standardise(coarse)) + 0.2
    assert locality(standardise(pool(fine, (4, 4)))) == pytest.approx(locality(standardise(coarse)), abs=1e-5)
    assert pool(coarse, (4, 4)) is coarse
