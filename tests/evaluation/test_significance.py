"""Intervals cover, tests find what is there and nothing else."""

import warnings

import numpy as np
import pytest

from unspoken.evaluation import significance
from unspoken.evaluation.significance import (
    bootstrap_means,
    interval,
    paired_difference,
    rate,
    ratio,
    ratios_of_counts,
    seed_means,
)


def test_a_perfect_score_still_has_an_interval():
    found = rate(np.ones((3, 2000)))
    assert found.mean == found.high == 1.0
    assert 0.998 < found.low < 1.0
    # Never more than all of them, whatever is rounded, and a single seed has no variance to be asked for.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {rate(np.ones((1, problems))).high for problems in range(1, 200)} == {1.0}
        assert rate(np.array([[0.0, 1.0]])).mean == 0.5


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = rate((generator.random((3, 200)) < 0.9).astype(float))
        hits += found.low <= 0.9 <= found.high
    assert hits / 400 > 0.92


def test_seeds_that_disagree_widen_the_interval():
    agree = np.zeros((3, 1000))
    agree[:, :900] = 1
    disagree = np.zeros((3, 1000))
    disagree[0, :800], disagree[1, :900], disagree[2, :1000] = 1, 1, 1
    narrow, wide = rate(agree), rate(disagree)
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_real_difference_is_found_and_its_sign_is_right():
    generator = np.random.default_rng(1)
    worse = (generator.random((3, 500)) < 0.80).astype(float)
    better = np.maximum(worse, (generator.random((3, 500)) < 0.3).astype(float))
    found = paired_difference(better, worse)
    assert found.low > 0
    assert found.p < 0.01
    assert paired_difference(worse, better).high < 0


def test_no_difference_is_rarely_called_one():
    generator = np.random.default_rng(2)
    small = sum(
        paired_difference(
            (generator.random((3, 200)) < 0.9).astype(float), (generator.random((3, 200)) < 0.9).astype(float),
            draws=300, seed=trial,
        ).p < 0.05
        for trial in range(60)
    )  # fmt: skip
    assert small <= 9


def test_outcomes_of_different_shape_are_refused():
    with pytest.raises(AssertionError, match="paired"):
        paired_difference(np.ones((3, 10)), np.ones((2, 10)))


def found(values, draws=200, seed=0):
    return interval(float(values.mean()), bootstrap_means(values[..., None], draws=draws, seed=seed)[:, 0])


def width(values):
    return found(values).high - found(values).low


def test_bootstrapped_means_are_means_of_rows_and_columns_drawn_anew():
    values = np.random.default_rng(3).random((3, 20, 4))
    drawn = bootstrap_means(values, draws=5, seed=7)
    generator = np.random.default_rng(7)
    for means in drawn:
        rows, columns = generator.integers(3, size=3), generator.integers(20, size=20)
        np.testing.assert_allclose(means, values[rows][:, columns].mean(axis=(0, 1)))


def test_the_bootstrap_covers_a_known_value_although_seeds_differ():
    generator, hits, narrow = np.random.default_rng(4), 0, 0
    for trial in range(120):
        levels = generator.normal(0.7, 0.06, size=(10, 1))
        values = (generator.random((10, 200)) < levels).astype(float)
        one, flat = found(values, seed=trial), found(values.reshape(1, -1), seed=trial)
        hits += one.low <= 0.7 <= one.high
        narrow += flat.low <= 0.7 <= flat.high
    assert 0.88 <= hits / 120 <= 0.99
    # Control: problems alone, as if all answers came from one seed, promise too much.
    assert narrow / 120 < 0.8


def test_the_bootstrap_interval_shrinks_with_the_root_of_the_number_of_problems():
    values = (np.random.default_rng(5).random((3, 6400)) < 0.7).astype(float)
    assert width(values[:, :400]) / width(values) == pytest.approx(4, rel=0.35)


@pytest.mark.parametrize("seeds", [1, 3])
def test_samples_that_are_kept_are_those_of_a_fresh_generator(seeds):
    values = np.random.default_rng(3).random((seeds, 9, 2))
    generator = np.random.default_rng(5)
    expected = []
    for _ in range(20):
        rows, columns = generator.integers(seeds, size=seeds), generator.integers(9, size=9)
        expected.append(values[rows][:, columns].mean(axis=(0, 1)))
    for _ in range(2):
        np.testing.assert_allclose(bootstrap_means(values, draws=20, seed=5), expected)
    assert not np.allclose(bootstrap_means(values, draws=20, seed=6), expected)


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_one_seed_is_wilsons(right, of, low, high):
    found = rate((np.arange(of) < right)[None].astype(float))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert (found.mean, found.seeds, found.problems) == (right / of, [right / of], of)


def test_seeds_that_disagree_count_as_fewer_problems():
    # Rates 0.4 and 0.6: their variance, 0.02, is eight times the 0.25 / 100 of independent problems.
    outcomes = (np.arange(100) < np.array([[40], [60]])).astype(float)
    half = 1.959964 * np.sqrt(0.25 / 25 + 1.959964**2 / (4 * 25**2)) / (1 + 1.959964**2 / 25)
    found = rate(outcomes)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    # No fewer than one problem a seed, and no more than there are where seeds agree.
    apart = rate(np.array([[0.0] * 50, [1.0] * 50]))
    half = 1.959964 * np.sqrt(0.25 / 2 + 1.959964**2 / 16) / (1 + 1.959964**2 / 2)
    assert (apart.low, apart.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    alike = rate((np.arange(100) < 50)[None].repeat(2, axis=0).astype(float))
    half = 1.959964 * np.sqrt(0.25 / 200 + 1.959964**2 / (4 * 200**2)) / (1 + 1.959964**2 / 200)
    assert (alike.low, alike.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_percentiles_and_p_values_by_hand():
    found = significance.tested(0.5, np.arange(-100, 901) / 1000)
    # 101 of 1001 draws are not above zero; one is added to both counts.
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, -0.075, 0.875))
    assert found.p == pytest.approx(2 * 102 / 1002)
    assert significance.tested(-0.5, -np.arange(-100, 901) / 1000).p == found.p
    assert significance.tested(0.0, np.array([-1.0, 1.0])).p == 1
    assert significance.tested(0.0, np.zeros(9)).p == 1
    # 5,000 draws, none of which is on the other side.
    certain = paired_difference(np.ones((2, 5)), np.zeros((2, 5)))
    assert (certain.mean, certain.low, certain.high, certain.p) == pytest.approx((1, 1, 1, 2 / 5001))


def test_ratios_leave_out_draws_without_a_denominator():
    found = ratio(3.0, 4.0, np.array([1.0, 9.0, 1.0]), np.array([2.0, 0.0, 2.0]))
    assert found == {"mean": 0.75, "low": 0.5, "high": 0.5}
    assert ratio(3.0, 0.0, np.ones(2), np.ones(2)) is None
    counts = np.random.default_rng(0).integers(1, 9, (2, 5, 3)).astype(float)
    of = ratios_of_counts(counts, ["a", "b", "c"])
    assert of("c", "a") == ratios_of_counts(counts, ["a", "b", "c"], draws=2000, seed=0)("c", "a")
    drawn = bootstrap_means(counts, draws=2000)
    means = counts.mean(axis=(0, 1))
    assert of("c", "a") == ratio(means[2], means[0], drawn[:, 2], drawn[:, 0])


def test_means_over_seeds_keep_the_seeds():
    assert seed_means([{"rate": 1.0, "steps": [0, 4]}, {"rate": 2.0, "steps": [2, 8]}]) == {
        "rate": {"mean": 1.5, "seeds": [1.0, 2.0]},
        "steps": {"mean": [1.0, 6.0], "seeds": [[0, 4], [2, 8]]},
    }


def test_a_single_reading_is_its_own_mean():
    assert seed_means([{"rate": 1.0}]) == {"rate": {"mean": 1.0, "seeds": [1.0]}}


def test_a_difference_is_drawn_five_thousand_times_by_the_first_seed():
    first, second = (np.random.default_rng(seed).random((3, 40)) for seed in (1, 2))
    found = paired_difference(first, second)
    assert found == paired_difference(first, second, draws=5000, seed=0)
    assert found != paired_difference(first, second, seed=1)
    # With one to both counts: 0.4 of the draws on the far side would be 0.8.
    drawn = bootstrap_means((first - second)[..., None], draws=5000, seed=0)[:, 0]
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    assert found.p == pytest.approx(2 * (1 + beyond) / 5001)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
