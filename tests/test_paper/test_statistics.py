"""The intervals keep what the docs promise: their error rates on simulated runs whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from fbt_paper.tables.statistics import (
    Estimate,
    binomial_error,
    difference,
    estimate,
    holm,
    smallest_difference,
    unpaired_difference,
)

DRAWS = 2_000
ALLOWED = 0.025  # each side of a 95 % interval


def simulate(draws, seeds, images, gap, seed_deviation, generator):
    """Pairs of cells whose accuracies differ by `gap` points in the mean over seeds and images.

    An image has a difficulty that both cells share; a seed shifts each cell's own accuracy.
    """
    for _ in range(draws):
        difficulty = generator.normal(1.3, 1.0, images)
        sides = []
        for lift in (gap / 2, -gap / 2):
            shift = generator.normal(0, seed_deviation, (seeds, 1)) + lift
            chance = stats.norm.cdf(difficulty[None, :]) + shift / 100
            sides.append(generator.random((seeds, images)) < chance)
        yield sides


@pytest.mark.parametrize(("seeds", "deviation"), [(1, 0.0), (2, 0.6), (5, 0.0), (5, 0.6), (5, 2.0)])
def test_a_true_difference_of_zero_is_seldom_called_one(seeds, deviation):
    generator = np.random.default_rng(seeds * 100 + int(10 * deviation))
    low = high = 0
    for better, than in simulate(DRAWS, seeds, 600, 0.0, deviation, generator):
        lower, upper = difference(better, than).interval()
        low, high = low + (lower > 0), high + (upper < 0)
    limit = stats.binom.ppf(0.999, DRAWS, ALLOWED)
    assert low <= limit and high <= limit, (low / DRAWS, high / DRAWS)


def test_the_interval_is_no_wider_than_it_must_be():
    """Without chance of seeds the share of misses is what was promised, not far below."""
    generator = np.random.default_rng(7)
    misses = 0
    for better, than in simulate(DRAWS, 1, 600, 0.0, 0.0, generator):
        lower, upper = difference(better, than).interval()
        misses += not lower <= 0 <= upper
    assert stats.binom.ppf(0.001, DRAWS, 0.05) <= misses <= stats.binom.ppf(0.999, DRAWS, 0.05)


def test_one_seed_with_chance_of_seeds_is_too_sure_and_says_that_only_images_count():
    generator = np.random.default_rng(8)
    wrong = 0
    for better, than in simulate(400, 1, 600, 0.0, 3.0, generator):
        measured = difference(better, than)
        assert measured.sources == ("images",)
        lower, upper = measured.interval()
        wrong += not lower <= 0 <= upper
    assert wrong / 400 > 0.2  # why the docs ask for more than one seed


def test_a_large_difference_is_found():
    generator = np.random.default_rng(9)
    measured = [
        difference(*sides).interval()[0] > 0 for sides in simulate(200, 5, 2_000, 4.0, 0.5, generator)
    ]
    assert np.mean(measured) > 0.95


def test_pairing_narrows_and_without_predictions_the_interval_is_wider_but_safe():
    generator = np.random.default_rng(10)
    misses = 0
    for better, than in simulate(500, 5, 600, 0.0, 0.5, generator):
        paired = difference(better, than)
        alone = unpaired_difference(100 * better.mean(1), 100 * than.mean(1), 600)
        assert alone.mean == pytest.approx(paired.mean)
        lower, upper = alone.interval()
        misses += not lower <= 0 <= upper
    assert misses / 500 <= 0.05
    assert alone.error > paired.error


def test_an_estimate_worked_out_by_hand():
    values = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 3.0]])
    # means 2 and 3 of seeds, 1.5, 3, 3 of images: MS_seeds = 1.5, MS_images = 1.5, MS_rest = 0.5
    measured = estimate(values)
    assert measured.mean == pytest.approx(2.5)
    assert measured.error == pytest.approx(math.sqrt((1.5 + 1.5 - 0.5) / 6))
    assert measured.freedom == pytest.approx(2.5**2 / (1.5**2 / 1 + 1.5**2 / 2))


def test_holm_corrects_in_order_and_keeps_it():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_outcomes_of_other_images_cannot_be_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(np.zeros((1, 3), bool), np.zeros((1, 4), bool))


def test_the_standard_error_of_a_cell():
    assert binomial_error(80.0, 1_000) == pytest.approx(1.265, abs=0.001)
    assert binomial_error(80.0, 2_500) == pytest.approx(0.8)


def test_more_seeds_and_images_tell_smaller_differences():
    single = smallest_difference(1, 1_000, 0.5, 0.15)
    five = smallest_difference(5, 1_000, 0.5, 0.15)
    many = smallest_difference(5, 4_000, 0.5, 0.15)
    assert single > five > many > 0
    assert single == pytest.approx((1.962 + 0.842) * math.sqrt(100**2 * 0.15 / 1_000), rel=0.01)


def test_one_seed_varies_by_its_images_alone():
    # d = 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7
    measured = estimate(np.array([[1.0, 2.0, 6.0]]))
    assert measured.error == pytest.approx(math.sqrt(7 / 3))
    assert (measured.mean, measured.freedom, measured.sources) == (3.0, 2, ("images",))


def test_a_variance_is_never_less_than_that_of_either_source():
    # Seeds differ by 4 everywhere but for a cross of -1 and +1: MS_seeds = 24, MS_images = 0, MS_rest = 1.
    values = np.array([[0.0, 0.0, 0.0], [4.0, 5.0, 3.0]]) + np.array([[0.5, 0.0, 1.0], [0.5, 0.0, 1.0]])
    of_seeds, of_images = values.mean(axis=1), values.mean(axis=0)
    squares_seeds, squares_images = 3 * of_seeds.var(ddof=1), 2 * of_images.var(ddof=1)
    rest = ((values - of_seeds[:, None] - of_images + values.mean()) ** 2).sum() / 2
    assert squares_images < rest < squares_seeds  # so the difference of mean squares is less than MS_seeds
    assert estimate(values).error == pytest.approx(math.sqrt(squares_seeds / 6))
    assert estimate(values.T).error == pytest.approx(math.sqrt(squares_seeds / 6))


def test_equal_predictions_have_an_interval_without_width():
    same = estimate(np.zeros((3, 4)))
    assert (same.error, same.freedom, same.interval()) == (0.0, 2.0, (0.0, 0.0))
    assert estimate(np.ones((1, 4))).interval() == (1.0, 1.0)


def test_an_unpaired_difference_worked_out_by_hand():
    # Binomial variances at 50 and 80 % of 100 images: 25 and 16 points squared.
    single = unpaired_difference([50.0], [80.0], 100)
    assert (single.mean, single.freedom, single.sources) == (-30.0, 99, ("images",))
    assert single.error == pytest.approx(math.sqrt(25 + 16))
    # Over seeds the variances of the means are added, 4 / 3 and 6 / 4; the smaller side has 3 seeds.
    several = unpaired_difference([48.0, 50.0, 52.0], [80.0, 83.0, 77.0, 80.0], 100)
    seeds, images = 4 / 3 + 6 / 4, 25 + 16
    assert several.mean == pytest.approx(-30.0) and several.sources == ("seeds", "images")
    assert several.error == pytest.approx(math.sqrt(seeds + images))
    assert several.freedom == pytest.approx((seeds + images) ** 2 / (seeds**2 / 2 + images**2 / 99))


def test_unpaired_cells_without_any_variance():
    same = unpaired_difference([100.0, 100.0, 100.0], [100.0, 100.0], 10)
    assert (same.mean, same.error, same.freedom) == (0.0, 0.0, 1.0)


def test_the_smallest_difference_of_several_seeds_worked_out_by_hand():
    # 100^2 x 0.02 / 2 = 100 of images and of the rest; MS_seeds = 50 x 3^2 + 100, MS_images = 3 x 100 + 100
    seeds, images = 550.0, 400.0
    total = seeds + images - 100
    freedom = total**2 / (seeds**2 / 2 + images**2 / 49)
    reach = stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)
    assert smallest_difference(3, 50, 3.0, 0.02) == pytest.approx(reach * math.sqrt(total / 150))
    reach = stats.t.ppf(0.975, 49) + stats.t.ppf(0.8, 49)
    assert smallest_difference(1, 50, 3.0, 0.02) == pytest.approx(reach * math.sqrt(200 / 50))


def test_p_values_worked_out_by_hand():
    measured = Estimate(3.0, 2.0, 4.0, ("seeds",))
    assert measured.p_above(1.0) == pytest.approx(stats.t.sf(1.0, 4.0))
    assert measured.p_below(1.0) == pytest.approx(stats.t.cdf(1.0, 4.0))
    certain = Estimate(3.0, 0.0, 4.0, ("seeds",))
    assert (certain.p_above(2.0), certain.p_above(3.0)) == (0.0, 1.0)
    assert (certain.p_below(4.0), certain.p_below(3.0)) == (0.0, 1.0)
