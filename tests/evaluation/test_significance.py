"""Intervals cover, tests find what is there and nothing else."""

import numpy as np
import pytest

from unspoken.evaluation.significance import bootstrap_means, interval, paired_difference, rate


def test_a_perfect_score_still_has_an_interval():
    found = rate(np.ones((3, 2000)))
    assert found.mean == found.high == 1.0
    assert 0.998 < found.low < 1.0


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
    with pytest.raises(ValueError, match="paired"):
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
