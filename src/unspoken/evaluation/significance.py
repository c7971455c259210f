"""Intervals and tests for outcomes of several seeds on the same problems.

Axes: S seeds, P problems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Outcomes = NDArray[np.float64]
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


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference of two methods: mean, 95 % interval, and two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def paired_difference(first: Outcomes, second: Outcomes, *, draws: int = 5000, seed: int = 0) -> Difference:
    """``first - second`` on the same seeds and problems ``[S, P]``.

    Interval: bootstrap over seeds, then over problems within them. p: from the same bootstrap, twice the share of
    draws on the far side of zero, with one added to both counts; so the two never contradict each other, and one seed
    that goes the other way counts as such.
    """
    if first.shape != second.shape:
        raise ValueError(f"outcomes of shape {first.shape} and {second.shape} cannot be paired")
    generator = np.random.default_rng(seed)
    difference = first - second
    seeds, problems = difference.shape
    means = np.empty(draws)
    for draw in range(draws):
        chosen = generator.integers(seeds, size=seeds)
        columns = generator.integers(problems, size=problems)
        means[draw] = difference[chosen][:, columns].mean()
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (1 + beyond) / (1 + draws))
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(mean=float(difference.mean()), low=float(low), high=float(high), p=float(p))
