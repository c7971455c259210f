"""Curves and tests of accuracy under a disturbance, of hits that are known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from unspoken.evaluation.degradation import comparison, degradation, summary

CLEAN = np.array([[[1.0, 1], [1, 0]], [[1, 1], [0, 1]]])  # two seeds, two problems, two steps
NOISY = np.array([[[1.0, 0], [0, 0]], [[1, 1], [0, 0]]])


def by_seed(seeds: int = 2, **levels: np.ndarray[Any, Any]) -> list[dict[float, np.ndarray[Any, Any]]]:
    return [{int(name[1:]) / 100: values[seed] for name, values in levels.items()} for seed in range(seeds)]


def test_a_summary_holds_steps_and_wholes_absolute_and_relative() -> None:
    curves = summary(by_seed(_30=NOISY, _0=CLEAN), draws=100)
    assert (curves["seeds"], curves["problems"]) == (2, 2)
    clean, noisy = curves["levels"]
    assert (clean["level"], noisy["level"]) == (0.0, 0.3)
    assert [entry["mean"] for entry in clean["symbol"]] == [0.75, 0.75]
    assert [entry["mean"] for entry in clean["exact"]] == [0.75, 0.5]
    assert [entry["mean"] for entry in noisy["symbol"]] == [0.5, 0.25]
    assert [entry["mean"] for entry in noisy["exact"]] == [0.5, 0.25]
    assert clean["symbol"][0]["seeds"] == [1.0, 0.5]
    assert noisy["exact"][1]["seeds"] == [0.0, 0.5]
    relative = [entry["relative"]["mean"] for entry in (*noisy["symbol"], *noisy["exact"])]
    assert relative == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 2])
    assert clean["exact"][1]["relative"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert json.loads(json.dumps(curves, allow_nan=False)) == curves


def drawn_hits(generator: np.random.Generator, **rates: float) -> list[dict[float, np.ndarray[Any, Any]]]:
    """Three seeds, forty problems, three symbols."""
    return by_seed(3, **{name: (generator.random((3, 40, 3)) < rate) * 1.0 for name, rate in rates.items()})


def test_a_curve_is_of_all_levels_and_drawn_by_the_first_seed() -> None:
    generator = np.random.default_rng(3)
    hits, others = (drawn_hits(generator, _0=rate, _10=0.4, _30=0.2, _50=0.1) for rate in (0.7, 0.6))
    curves = summary(hits)
    assert (curves["seeds"], curves["problems"]) == (3, 40)
    assert [level["level"] for level in curves["levels"]] == [0.0, 0.1, 0.3, 0.5]
    assert {len(level[kind]) for level in curves["levels"] for kind in ("symbol", "exact")} == {3}
    assert curves == summary(hits, draws=2000, seed=0)
    tests = comparison(hits, others)
    assert {len(level[kind]) for level in tests["levels"] for kind in ("symbol", "exact")} == {3}
    assert tests == comparison(hits, others, draws=5000, seed=0)
    # One seed is enough.
    assert summary(hits[:1], draws=20)["seeds"] == 1


def test_a_system_with_nothing_right_under_noise_has_lost_all_of_its_clean_accuracy() -> None:
    clean = np.tile([[1.0], [1.0], [1.0], [0.0]], (2, 1, 1))
    kept, lost = by_seed(_0=clean, _30=clean), by_seed(_0=clean, _30=0 * clean)
    for first, second, change in ((lost, kept, -1.0), (kept, lost, 1.0)):
        relative = comparison(first, second, draws=2000)["levels"][1]["symbol"][0]["relative"]
        # In draws without anything right at first nothing can be lost; all others agree.
        assert (relative["mean"], relative["low"], relative["high"]) == (change, change, change)


def test_relative_accuracy_is_paired_with_the_clean_run() -> None:
    some = (np.random.default_rng(0).random((2, 50, 1)) < 0.5).astype(float)
    entry = summary(by_seed(_0=some, _10=some), draws=100)["levels"][1]["symbol"][0]
    assert entry["high"] - entry["low"] > 0.1
    assert entry["relative"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert summary(by_seed(_0=0 * some, _10=some), draws=20)["levels"][1]["symbol"][0]["relative"] is None


def test_a_system_may_be_worse_and_yet_degrade_less() -> None:
    generator = np.random.default_rng(1)
    draw = generator.random((5, 2000, 1))
    better = by_seed(5, _0=(draw < 0.9).astype(float), _30=(draw < 0.6).astype(float))
    worse = by_seed(5, _0=(draw < 0.5).astype(float), _30=(draw < 0.45).astype(float))
    curves = comparison(better, worse, draws=300)["levels"][1]["exact"][0]
    assert curves["absolute"]["mean"] == pytest.approx(0.15, abs=0.03)
    assert curves["absolute"]["low"] > 0
    assert curves["relative"]["mean"] == pytest.approx(0.6 / 0.9 - 0.45 / 0.5, abs=0.03)
    assert curves["relative"]["high"] < 0
    assert max(curves["absolute"]["p"], curves["relative"]["p"]) < 0.01
    same = comparison(better, better, draws=50)["levels"][1]["symbol"][0]
    assert same["absolute"] == same["relative"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    nothing = comparison(better, by_seed(5, _0=0 * draw, _30=0 * draw), draws=20)["levels"][1]["symbol"][0]
    assert nothing["relative"] is None
    json.dumps(comparison(better, worse, draws=20), allow_nan=False)


def test_runs_that_do_not_belong_together_are_refused() -> None:
    for wrong in (by_seed(_10=NOISY), [{0.0: CLEAN[0]}, {0.0: CLEAN[1], 0.3: NOISY[1]}], []):
        with pytest.raises(AssertionError, match=r"clean level 0|seeds differ"):
            summary(wrong)
    with pytest.raises(AssertionError, match="cannot be paired"):
        comparison(by_seed(_0=CLEAN), by_seed(_0=CLEAN[:, :1]))


def test_each_system_is_summed_up_and_compared_with_one_of_them() -> None:
    measured = {"a": by_seed(_0=CLEAN, _30=NOISY), "b": by_seed(_0=CLEAN, _30=CLEAN)}
    found = degradation(measured, "b")
    assert found == {
        "systems": {name: summary(hits, draws=2000, seed=0) for name, hits in measured.items()},
        "comparison": {"a - b": comparison(measured["a"], measured["b"], draws=5000, seed=0)},
    }
    for against in (None, "c"):
        assert degradation(measured, against)["comparison"] == {}
    # Two seeds and two problems: the clean rate of a symbol in a sample is a multiple of a quarter.
    levels = found["comparison"]["a - b"]["levels"]
    assert [level["level"] for level in levels] == [0.0, 0.3]
    assert levels[1]["symbol"][0]["absolute"]["mean"] == -0.25
    assert levels[1]["exact"][1]["relative"]["mean"] == pytest.approx(0.25 / 0.5 - 1)
