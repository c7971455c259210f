"""How accuracy falls with the level of a disturbance: curves with intervals, and paired tests between systems.

Axes: S seeds, B problems, L levels, M symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from unspoken.evaluation.significance import Outcomes, bootstrap_means, interval, ratio, tested

# Level of a disturbance -> which symbols ``[B, M]`` were right (0 or 1). Level 0 is the clean run.
Hits = Mapping[float, Outcomes]


def degradation(systems: Mapping[str, Sequence[Hits]], against: str | None) -> dict[str, Any]:
    """``systems``, the curves of each, and ``comparison``, the paired tests of the others against one of them.

    Args:
        systems: for each the hits of its models, one a seed.
        against: no test is made where it is None or was not measured.
    """
    base = None if against is None else systems.get(against)
    return {
        "systems": {name: summary(seeds) for name, seeds in systems.items()},
        "comparison": {
            f"{name} - {against}": comparison(seeds, base)
            for name, seeds in systems.items()
            if base is not None and name != against
        },
    }


def summary(seeds: Sequence[Hits], *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Accuracy of each symbol and of all up to it, absolute and relative to the clean run; plain values.

    Args:
        seeds: hits of the models of one system, one a seed, on the same problems and levels.
        draws, seed: of the bootstrap over seeds and problems.

    Returns:
        ``seeds``, ``problems`` and ``levels``: for each, ``level``, ``symbol`` (each symbol on its own) and ``exact``
        (it and all before it), as lists over the symbols of ``mean``, ``low``, ``high``, ``seeds`` and ``relative``
        (``mean``, ``low``, ``high``, or None where nothing was right without the disturbance).
    """
    levels, values = _stacked(seeds)
    means, drawn = _bootstrapped(values, draws, seed)
    by_seed = values.mean(axis=1)

    def entry(level: int, kind: int, step: int) -> dict[str, Any]:
        mean, here = means[:, kind, step], drawn[:, :, kind, step]
        return {
            **asdict(interval(float(mean[level]), here[:, level], least=0, most=1)),
            "seeds": by_seed[:, level, kind, step].tolist(),
            "relative": ratio(mean[level], mean[0], here[:, level], here[:, 0]),
        }

    return {"seeds": len(values), "problems": values.shape[1], "levels": _by_level(levels, values.shape[-1], entry)}


def comparison(first: Sequence[Hits], second: Sequence[Hits], *, draws: int = 5000, seed: int = 0) -> dict[str, Any]:
    """Paired tests of ``first - second``, absolute and relative to each system's own clean accuracy; plain values.

    Seeds and problems are drawn together for both. The p-values are those of single tests: a table of many needs a
    correction.

    Returns:
        ``levels`` as in `summary`, whose entries have ``absolute`` and ``relative``: ``mean``, ``low``, ``high``, ``p``
        (``relative`` is None where one of them has nothing right without the disturbance).
    """
    levels, one = _stacked(first)
    others, two = _stacked(second)
    assert levels == others and one.shape == two.shape, "hits of other seeds, problems or levels cannot be paired"
    means, drawn = _bootstrapped(np.stack([one, two]), draws, seed)

    def entry(level: int, kind: int, step: int) -> dict[str, Any]:
        mean, here = means[..., kind, step], drawn[..., kind, step]
        relative = None
        if (mean[:, 0] > 0).all():
            own = here[(here[:, :, 0] > 0).all(axis=1)]
            relative = _test(mean[:, level] / mean[:, 0], own[:, :, level] / own[:, :, 0])
        return {"absolute": _test(mean[:, level], here[:, :, level]), "relative": relative}

    return {"levels": _by_level(levels, one.shape[-1], entry)}


def _test(means: Outcomes, drawn: Outcomes) -> dict[str, float]:
    return asdict(tested(float(means[0] - means[1]), drawn[:, 0] - drawn[:, 1]))


def _stacked(seeds: Sequence[Hits]) -> tuple[list[float], Outcomes]:
    """Levels in order, and ``[S, B, L, 2, M]``: each symbol on its own, and with all before it."""
    levels = sorted(seeds[0]) if seeds else []
    shapes = {values.shape for run in seeds for values in run.values()}
    assert levels and levels[0] == 0, "the clean level 0 is missing"
    assert all(sorted(run) == levels for run in seeds) and len(shapes) == 1, "seeds differ in levels, problems or steps"
    steps = np.stack([np.stack([run[level] for level in levels], axis=1) for run in seeds])
    return levels, np.stack([steps, steps.cumprod(axis=-1)], axis=3)


def _bootstrapped(values: Outcomes, draws: int, seed: int) -> tuple[Outcomes, Outcomes]:
    """Means ``[..., L, 2, M]`` of ``[..., S, B, L, 2, M]`` values, and ``draws`` of them in a new first axis."""
    together = np.moveaxis(values, (-5, -4), (0, 1))
    drawn = bootstrap_means(together.reshape(*together.shape[:2], -1), draws=draws, seed=seed)
    return together.mean(axis=(0, 1)), drawn.reshape(draws, *together.shape[2:])


def _by_level(
    levels: list[float], steps: int, entry: Callable[[int, int, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    return [
        {
            "level": float(level),
            **{
                name: [entry(index, kind, step) for step in range(steps)]
                for kind, name in enumerate(("symbol", "exact"))
            },
        }
        for index, level in enumerate(levels)
    ]
