"""Numbers as they are written, and sentences that claim no more than the numbers do."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from unspoken.draw import formats
from unspoken.probes.colours import BASELINE_COLOUR, system_colours
from unspoken.report.findings import finding
from unspoken.report.terminal import print_results

Results = dict[str, Any]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.percent(0.9987), "99.87 %"),
        (formats.percent(1.0, 1), "100.0 %"),
        (formats.percent(-0.00001), "0.00 %"),
        (formats.points(0.492), "+49.2"),
        (formats.points(-0.004), "−0.4"),
        (formats.points(0.0001), "0.0"),
        (formats.points(-0.0001), "0.0"),
        (formats.p_value(0.0002), "p < 0.001"),
        (formats.p_value(0.0312), "p = 0.031"),
        (formats.p_value(0.314), "p = 0.31"),
        (formats.quantity(298_368), "298 k"),
        (formats.quantity(42_489_600), "42.5 M"),
        (formats.quantity(999_700), "1.00 M"),
        (formats.quantity(12), "12.0"),
        (formats.MILLISECONDS(0.000513), "0.51"),
        (formats.coefficient(-0.0001), "0.00"),
        (formats.coefficient(-0.12), "−0.12"),
        (formats.duration(54.98), "55 s"),
        (formats.duration(3600), "60 min"),
        (formats.duration(12_000), "3.3 h"),
        (formats.steps(4.0), "4"),
        (formats.steps(4.25), "4.25"),
        (formats.joined(["a", "b", "c"]), "a, b and c"),
        (formats.count(1, "seed"), "1 seed"),
        (formats.count(2000, "problem"), "2,000 problems"),
    ],
)
def test_a_number_is_written(written: str, expected: str) -> None:
    assert written == expected


def test_one_seed_is_said_to_be_one(complete: Callable[..., Results]) -> None:
    assert "Only one seed" in finding(complete(seeds=1))
    assert "Only one seed" not in finding(complete(seeds=3))


@pytest.mark.parametrize(("low", "high", "p"), [(-0.01, 0.02, 0.4), (0.01, 0.02, 0.2)])
def test_a_difference_that_may_be_chance_is_not_claimed(
    complete: Callable[..., Results], low: float, high: float, p: float
) -> None:
    results = complete(seeds=3)
    results["differences"]["jepa-reasoner - coupled"] = {"mean": 0.005, "low": low, "high": high, "p": p}
    assert "no detectable difference" in finding(results)


def test_seeds_that_disagree_are_not_outvoted_by_problems(complete: Callable[..., Results]) -> None:
    results = complete(seeds=3)
    results["differences"]["jepa-reasoner - coupled"] = {"mean": -0.06, "low": -0.166, "high": 0.0, "p": 0.0002}
    text = finding(results)
    assert "seeds differ too much" in text
    assert "p <" not in text


def test_a_difference_that_is_one_is_given_in_points(complete: Callable[..., Results]) -> None:
    text = finding(complete(seeds=3))
    assert "answers 50.00 % (48.0 points fewer, p < 0.001)" in text
    assert "as many training steps as sst and talker together" in text


def test_a_baseline_may_have_another_name(complete: Callable[..., Results]) -> None:
    results = complete(seeds=3)
    results["systems"]["transformer"] = results["systems"].pop("coupled")
    results["baseline"] = "transformer"
    results["differences"] = {key.replace("coupled", "transformer"): one for key, one in results["differences"].items()}
    assert "answers 50.00 % (48.0 points fewer" in finding(results)
    colours = system_colours(results)
    assert colours["transformer"] == BASELINE_COLOUR != colours["jepa-reasoner"]


def test_a_sweep_of_equals_is_a_tie(sweep: Results) -> None:
    assert finding(sweep) == "Both systems answer 50.00 % of 200 unseen problems."
    better = {"mean": 0.505, "low": 0.495, "high": 0.515}
    sweep["systems"]["sst_k4"] = sweep["systems"]["sst_k4"] | {"exact_match": better}
    assert finding(sweep).endswith("50.50 %, and sst k1 the least, 50.00 %; their intervals overlap.")


@pytest.mark.parametrize("kind", ["complete", "sweep", "ambiguous"])
def test_piped_tables_are_plain_narrow_and_whole(request: pytest.FixtureRequest, kind: str) -> None:
    made = request.getfixturevalue(kind)
    out = StringIO()
    print_results(made(seeds=3) if kind == "complete" else made, Console(file=out, width=40))
    text = out.getvalue()
    assert "\x1b" not in text
    assert not set(text) & set("│─┃━┏┓…")
    assert max(len(line) for line in text.splitlines()) < 100


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_of_usual_width_shows_every_number(complete: Callable[..., Results], width: int) -> None:
    out = StringIO()
    print_results(complete(seeds=3), Console(file=out, width=width, force_terminal=True))
    assert "…" not in out.getvalue()


def test_a_quiet_console_prints_nothing(complete: Callable[..., Results], capsys: pytest.CaptureFixture[str]) -> None:
    print_results(complete(), Console(quiet=True))
    assert capsys.readouterr().out == ""
