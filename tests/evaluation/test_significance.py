"""Intervals cover, tests find what is there and nothing else."""

import warnings

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp
from scipy.stats import t as student

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
    assert found.p < 0.02
    assert paired_difference(worse, better).high < 0


def false_alarms(spread: float, seeds: int, trials: int = 400) -> float:
    """How often two methods of which each seed is drawn alike are called different at the 5 % level."""
    generator, alarms = np.random.default_rng(2), 0
    for _ in range(trials):
        levels = np.clip(generator.normal(0.7, spread, size=(2, seeds, 1)), 0, 1)
        first, second = (generator.random((2, seeds, 200)) < levels).astype(float)
        alarms += paired_difference(first, second).p < 0.05
    return alarms / trials


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.03, 0.1])
def test_no_difference_is_called_one_in_a_twentieth_of_all_cases(spread, seeds):
    # Of 400 cases, so a standard error of 1.1 points.
    assert 0.01 <= false_alarms(spread, seeds) <= 0.09


def test_one_seed_is_tested_over_its_problems():
    assert 0.02 <= false_alarms(0.0, 1) <= 0.08
    # The normal approximation of McNemar's test: 30 problems are won and 10 are lost.
    first, second = np.zeros((1, 500)), np.zeros((1, 500))
    first[0, :30], second[0, 30:40] = 1, 1
    found = paired_difference(first, second)
    error = np.sqrt(40 / 500 - 0.04**2) / np.sqrt(500)
    reach = 1.959964 * error
    assert (found.mean, found.low, found.high) == pytest.approx((0.04, 0.04 - reach, 0.04 + reach))
    assert found.p == pytest.approx(2 * norm.sf(0.04 / error))


def test_seeds_that_differ_much_are_tested_as_so_many_numbers():
    # Every problem of a seed has the same difference, so nothing but three numbers is known: a t-test of them.
    levels = np.array([0.4, 0.2, 0.9])
    first = (np.arange(1000) < 1000 * levels[:, None]).astype(float)
    found, expected = paired_difference(first, np.zeros((3, 1000))), ttest_1samp(levels, 0.0)
    assert found.mean == pytest.approx(0.5)
    assert found.p == pytest.approx(expected.pvalue, rel=0.01)  # which problems are won differs too
    low, high = expected.confidence_interval()
    assert found.low == pytest.approx(max(-1, low), abs=0.01) and found.high == pytest.approx(min(1, high), abs=0.01)


def test_the_same_problems_in_every_seed_are_no_new_ones():
    difference = (np.arange(400) < 30)[None].astype(float)
    one, three = (paired_difference(difference.repeat(n, axis=0), np.zeros((n, 400))) for n in (1, 3))
    assert one == three


def test_outcomes_of_different_shape_are_refused():
    with pytest.raises(AssertionError, match="paired"):
        paired_difference(np.ones((3, 10)), np.ones((2, 10)))


def found(values, draws=200, seed=0):
    return interval(float(values.mean()), bootstrap_means(values[..., None], draws=draws, seed=seed)[:, 0])


def width(values):
    return found(values).high - found(values).low


def test_bootstrapped_means_are_of_problems_drawn_anew_and_of_weighted_seeds():
    values = np.random.default_rng(3).random((3, 20, 4))
    drawn = bootstrap_means(values, draws=5, seed=7)
    generator = np.random.default_rng(7)
    normal, squares = generator.standard_normal((5, 3)), generator.chisquare(2, size=(5, 1))
    weights = 1 + (normal - normal.mean(axis=1, keepdims=True)) * np.sqrt(3 / squares)
    np.testing.assert_allclose(weights.mean(axis=1), 1)
    for means, weight in zip(drawn, weights, strict=True):
        columns = generator.integers(20, size=20)
        np.testing.assert_allclose(means, (weight[:, None, None] * values[:, columns]).mean(axis=(0, 1)))


def test_a_drawn_mean_of_seeds_has_students_distribution():
    # Every problem of a seed is alike, so nothing is drawn but seeds.
    levels = np.array([0.2, 0.5, 0.6])
    drawn = bootstrap_means(np.broadcast_to(levels[:, None, None], (3, 2, 1)), draws=20000)[:, 0]
    shares = [0.025, 0.25, 0.5, 0.75, 0.975]
    expected = levels.mean() + np.array(student.ppf(shares, 2)) * levels.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(np.quantile(drawn, shares), expected, atol=0.03)


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
    weights = np.ones((20, seeds))
    if seeds > 1:
        normal, squares = generator.standard_normal((20, 3)), generator.chisquare(2, size=(20, 1))
        weights += (normal - normal.mean(axis=1, keepdims=True)) * np.sqrt(3 / squares)
    for weight in weights:
        columns = generator.integers(9, size=9)
        expected.append((weight[:, None, None] * values[:, columns]).mean(axis=(0, 1)))
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


def wilson(mean, count, quantile):
    half = quantile * np.sqrt(mean * (1 - mean) / count + quantile**2 / (4 * count**2)) / (1 + quantile**2 / count)
    centre = (mean + quantile**2 / (2 * count)) / (1 + quantile**2 / count)
    return pytest.approx((centre - half, centre + half), abs=1e-6)


def test_seeds_that_disagree_count_as_fewer_problems():
    # Rates 0.4 and 0.6: the variance of their mean is 0.01 between seeds and 0.0025 of a hundred problems.
    outcomes = (np.arange(100) < np.array([[40], [60]])).astype(float)
    found = rate(outcomes)
    assert (found.low, found.high) == wilson(0.5, 0.25 / 0.0125, student.ppf(0.975, (0.0125 / 0.01) ** 2))
    # Seeds that agree answer the same problems, so they are one seed.
    alike = (np.arange(100) < 50)[None].astype(float)
    assert (rate(alike).low, rate(alike).high) == wilson(0.5, 100, 1.959964)
    assert (rate(alike.repeat(2, axis=0)).low, rate(alike.repeat(2, axis=0)).high) == wilson(0.5, 100, 1.959964)


@pytest.mark.parametrize(("spread", "seeds"), [(0.0, 3), (0.05, 3), (0.05, 5), (0.1, 3)])
def test_the_interval_of_a_rate_covers_although_seeds_differ_and_share_their_problems(spread, seeds):
    generator, hits = np.random.default_rng(6), 0
    for _ in range(400):
        ease = generator.normal(0, 0.15, size=(1, 200))  # of each problem, for every seed
        levels = generator.normal(0.7, spread, size=(seeds, 1))
        found = rate((generator.random((seeds, 200)) < np.clip(levels + ease, 0, 1)).astype(float))
        hits += found.low <= 0.7 <= found.high
    assert hits / 400 > 0.92


def test_percentiles_and_p_values_by_hand():
    found = significance.tested(0.5, np.arange(-100, 901) / 1000)
    # 101 of 1001 draws are not above zero; one is added to both counts.
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, -0.075, 0.875))
    assert found.p == pytest.approx(2 * 102 / 1002)
    assert significance.tested(-0.5, -np.arange(-100, 901) / 1000).p == found.p
    assert significance.tested(0.0, np.array([-1.0, 1.0])).p == 1
    assert significance.tested(0.0, np.zeros(9)).p == 1
    # All of five problems are won: the sign test.
    certain = paired_difference(np.ones((2, 5)), np.zeros((2, 5)))
    assert (certain.mean, certain.low, certain.high, certain.p) == (1, 1, 1, 2 / 2**5)
    assert paired_difference(np.ones((2, 5)), np.ones((2, 5))).p == 1


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
