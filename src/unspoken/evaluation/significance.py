"""Intervals and tests for outcomes of several seeds on the same problems.

Axes: S seeds, P problems, K quantities measured on the same problems.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outcomes = NDArray[np.float64]
Counts = NDArray[np.uint16]
_Z = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A success rate with its 95 % interval.

    Attributes:
        mean, low, high: of the rate over all seeds and problems.
        seeds: the rate of each seed.
        problems: how many problems each seed answered.
    """

    mean: float
    low: float
    high: float
    seeds: list[float]
    problems: int


def rate(outcomes: Outcomes) -> Rate:
    """Wilson interval of ``[S, P]`` outcomes in {0, 1}, with the sample size cut by how much seeds disagree.

    Answers of one seed are not independent. The design effect compares the variance between seeds with what
    independent problems would give; the number of observations is divided by it (never below one observation a seed).
    Unlike a bootstrap the interval does not shrink to a point when every answer is right.
    """
    seeds, problems = outcomes.shape
    per_seed = outcomes.mean(axis=1)
    mean = float(per_seed.mean())
    effect = 1.0
    if seeds > 1 and 0 < mean < 1:
        expected = mean * (1 - mean) / problems
        effect = max(1.0, float(per_seed.var(ddof=1)) / expected)
    count = max(seeds * problems / effect, float(seeds))
    centre = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    spread = _Z * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    low, high = max(0.0, centre - spread), min(1.0, centre + spread)
    return Rate(
        mean=mean,
        low=min(low, mean),
        high=max(high, mean),
        seeds=[float(value) for value in per_seed],
        problems=problems,
    )


def seed_means(readings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ``mean`` over seeds of every number and list of numbers, with the ``seeds``' own values beside it."""
    return {
        key: {
            "mean": np.mean([reading[key] for reading in readings], axis=0).tolist(),
            "seeds": [reading[key] for reading in readings],
        }
        for key in readings[0]
    }


def bootstrap_means(values: Outcomes, *, draws: int, seed: int = 0) -> Outcomes:
    """Means of ``[S, P, K]`` values in ``draws`` samples drawn anew: ``[draws, K]``.

    Two levels: seeds, and problems, which are the same for all seeds. All K quantities see the same draws, so their
    differences and ratios are paired.
    """
    seeds, problems, kinds = values.shape
    sums = np.empty((draws, kinds))
    for draw, (rows, columns) in enumerate(zip(*_drawn_counts(seeds, problems, draws, seed), strict=True)):
        sums[draw] = rows.astype(np.float64) @ (columns.astype(np.float64) @ values)
    return sums / (seeds * problems)


@lru_cache(maxsize=2)
def _drawn_counts(seeds: int, problems: int, draws: int, seed: int) -> tuple[Counts, Counts]:
    """How often each sample has each seed, ``[draws, S]``, and each problem, ``[draws, P]``.

    They are kept, since all that is compared on the same problems sees the same samples, and drawing takes longest.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.empty((draws, seeds), np.uint16), np.empty((draws, problems), np.uint16)
    for draw in range(draws):
        rows[draw] = np.bincount(generator.integers(seeds, size=seeds), minlength=seeds)
        columns[draw] = np.bincount(generator.integers(problems, size=problems), minlength=problems)
    return rows, columns


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def interval(mean: float, drawn: Outcomes) -> Interval:
    """Percentiles of the bootstrapped values of a mean.

    Of outcomes that are all alike it is a point; where that can happen to a success rate, `rate` is honest.
    """
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(mean=mean, low=float(low), high=float(high))


def ratio(
    numerator: float, denominator: float, drawn_numerators: Outcomes, drawn_denominators: Outcomes
) -> dict[str, float] | None:
    """A ratio of two means with its interval, None where the denominator is zero; draws in which it is are left out."""
    if denominator == 0:
        return None
    some = drawn_denominators > 0
    return asdict(interval(float(numerator / denominator), drawn_numerators[some] / drawn_denominators[some]))


def ratios_of_counts(
    counts: Outcomes, names: Sequence[str], *, draws: int = 2000, seed: int = 0
) -> Callable[[str, str], dict[str, float] | None]:
    """Ratios of counts ``[S, P, K]``, summed over seeds and problems, by the K names of numerator and denominator."""
    means, drawn = counts.mean(axis=(0, 1)), bootstrap_means(counts, draws=draws, seed=seed)

    def of(numerator: str, denominator: str) -> dict[str, float] | None:
        first, second = names.index(numerator), names.index(denominator)
        return ratio(means[first], means[second], drawn[:, first], drawn[:, second])

    return of


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference of two methods: mean, 95 % interval, and two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def tested(mean: float, drawn: Outcomes) -> Difference:
    """The test of a difference from its bootstrapped values.

    p: twice the share of draws on the far side of zero, with one added to both counts; so interval and p-value never
    contradict each other.
    """
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (1 + beyond) / (1 + len(drawn)))
    span = interval(mean, drawn)
    return Difference(mean=mean, low=span.low, high=span.high, p=float(p))


def paired_difference(first: Outcomes, second: Outcomes, *, draws: int = 5000, seed: int = 0) -> Difference:
    """``first - second`` on the same seeds and problems ``[S, P]``.

    Interval and p-value from a bootstrap over seeds and problems, so that one seed that goes the other way counts as
    such.
    """
    if first.shape != second.shape:
        raise ValueError(f"outcomes of shape {first.shape} and {second.shape} cannot be paired")
    difference = first - second
    drawn = bootstrap_means(difference[..., None], draws=draws, seed=seed)[:, 0]
    return tested(float(difference.mean()), drawn)
