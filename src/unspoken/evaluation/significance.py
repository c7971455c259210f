"""Intervals and tests for outcomes of several seeds on the same problems.

Seeds and problems are both samples, and all seeds answer the same problems: the variance of a mean is that of seeds and
that of problems together. Few seeds show their own variance badly, so what is divided by it follows Student's
distribution: of three seeds an interval is more than twice as wide as the same variance, known exactly, would make it.

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
_UPPER = 0.975  # of a two-sided 95 % interval


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A success rate with its 95 % interval."""

    # mean, low, high: of the rate over all seeds and problems
    mean: float
    low: float
    high: float
    seeds: list[float]  # the rate of each seed
    problems: int  # how many problems each seed answered


def rate(outcomes: Outcomes) -> Rate:
    """The rate of ``[S, P]`` outcomes in {0, 1}, see `rate_of`."""
    return rate_of(outcomes.mean(axis=1).tolist(), outcomes.shape[1])


def rate_of(seeds: Sequence[float], problems: int) -> Rate:
    """Wilson interval of the rates of seeds on the same problems, of one seed the usual one.

    Of several, the number of observations is that of independent ones whose mean would have the same variance: that
    between seeds, and that of one seed's problems, since nothing tells here how often the same problems are wrong. The
    quantile is Student's, by `_freedom`. The interval does not shrink to a point when every answer is right.
    """
    mean = float(np.mean(seeds))
    of_seeds = float(np.var(seeds, ddof=1)) / len(seeds) if len(seeds) > 1 else 0.0
    of_one = mean * (1 - mean)
    count = of_one / (of_seeds + of_one / problems) if of_seeds else float(problems)
    t = _quantile(_freedom(of_seeds, of_seeds + of_one / problems, len(seeds)))
    centre = (mean + t**2 / (2 * count)) / (1 + t**2 / count)
    spread = t * math.sqrt(of_one / count + t**2 / (4 * count**2)) / (1 + t**2 / count)
    low, high = max(0.0, centre - spread), min(1.0, centre + spread)
    return Rate(
        mean=mean,
        low=min(low, mean),
        high=max(high, mean),
        seeds=[float(value) for value in seeds],
        problems=problems,
    )


def _freedom(of_seeds: float, variance: float, seeds: int) -> float:
    """Degrees of freedom of a variance of which seeds make a part (Satterthwaite, 1946); problems are many."""
    return math.inf if of_seeds == 0 else (seeds - 1) * (variance / of_seeds) ** 2


def _quantile(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(min(freedom, 1e9), _UPPER))


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

    Two levels: problems, which are the same for all seeds, are drawn with replacement; seeds have random weights, by
    which a mean of a few of them spreads as Student's distribution does and not as far less as drawing three of three
    makes it. All K quantities see the same draws, so their differences and ratios are paired.
    """
    seeds, problems, kinds = values.shape
    sums = np.empty((draws, kinds))
    for draw, (rows, columns) in enumerate(zip(*_drawn_weights(seeds, problems, draws, seed), strict=True)):
        sums[draw] = rows @ (columns.astype(np.float64) @ values)
    return sums / (seeds * problems)


@lru_cache(maxsize=2)
def _drawn_weights(seeds: int, problems: int, draws: int, seed: int) -> tuple[Outcomes, NDArray[np.uint16]]:
    """Of each sample the weights of seeds, ``[draws, S]`` with mean 1, and the counts of problems, ``[draws, P]``.

    They are kept, since all that is compared on the same problems sees the same samples, and drawing takes longest.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.ones((draws, seeds)), np.empty((draws, problems), np.uint16)
    if seeds > 1:
        # A normal deviation of the mean over the root of a drawn variance of seeds is Student's t.
        normal = generator.standard_normal((draws, seeds))
        drawn_variance = generator.chisquare(seeds - 1, size=(draws, 1)) / (seeds - 1)
        rows += (normal - normal.mean(axis=1, keepdims=True)) * np.sqrt(seeds / (seeds - 1) / drawn_variance)
    for draw in range(draws):
        columns[draw] = np.bincount(generator.integers(problems, size=problems), minlength=problems)
    return rows, columns


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def interval(mean: float, drawn: Outcomes, *, least: float = -math.inf, most: float = math.inf) -> Interval:
    """Percentiles of the bootstrapped values of a mean.

    Of outcomes that are all alike it is a point; where that can happen to a success rate, `rate` is honest.

    Args:
        least, most: what the mean can be, such as 0 and 1 for a rate.
    """
    low, high = np.clip(np.quantile(drawn, [1 - _UPPER, _UPPER]), least, most)
    return Interval(mean=mean, low=float(low), high=float(high))


def ratio(
    numerator: float, denominator: float, drawn_numerators: Outcomes, drawn_denominators: Outcomes
) -> dict[str, float] | None:
    """A ratio of two means that are not negative, with its interval; None where the denominator is zero.

    Draws in which it is not positive are left out.
    """
    if denominator == 0:
        return None
    some = drawn_denominators > 0
    return asdict(interval(float(numerator / denominator), drawn_numerators[some] / drawn_denominators[some], least=0))


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


def paired_difference(first: Outcomes, second: Outcomes) -> Difference:
    """``first - second`` on the same seeds and problems ``[S, P]``, outcomes in {0, 1}.

    A t-test with seeds and problems as crossed random effects: with three seeds that differ much it is a t-test of
    three numbers, and with one seed, or seeds that agree, a test over problems.
    """
    assert first.shape == second.shape, f"outcomes of shape {first.shape} and {second.shape} cannot be paired"
    values = first - second
    seeds, problems = values.shape
    by_seed, by_problem = values.mean(axis=1), values.mean(axis=0)
    mean = float(values.mean())
    of_seeds = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0
    of_problems = float(by_problem.var()) / problems
    # Both hold what is neither of a seed nor of a problem; once is enough.
    rest = float(np.square(values - by_seed[:, None] - by_problem + mean).mean()) / (max(seeds - 1, 1) * problems)
    return difference_of(mean, of_seeds, max(of_seeds + of_problems - rest, of_seeds, of_problems), seeds, problems)


def difference_of(mean: float, of_seeds: float, variance: float, seeds: int, problems: int) -> Difference:
    """The t-test of a mean difference of outcomes.

    Args:
        of_seeds: the part of its variance that is between seeds.
        variance: all of it; where it is 0, every problem and seed has the same difference, and the sign test remains.
    """
    from scipy.special import stdtr

    if variance == 0:
        return Difference(mean=mean, low=mean, high=mean, p=1.0 if mean == 0 else min(1.0, 2 * 0.5**problems))
    freedom, error = _freedom(of_seeds, variance, seeds), math.sqrt(variance)
    reach = _quantile(freedom) * error
    p = 2 * float(stdtr(min(freedom, 1e9), -abs(mean) / error))
    return Difference(mean=mean, low=max(-1.0, mean - reach), high=min(1.0, mean + reach), p=p)
