"""Curves of mixtures along training: frames that hold what they show, and a line a seed with the mean of all."""

from __future__ import annotations

import re
from typing import Any

import pytest

from unspoken.draw.charts import line_chart
from unspoken.probes import mixing_curves


@pytest.mark.parametrize("values", [[0.011, 0.03], [0.2, 0.4], [0.0714]])
def test_reference_ranks_lie_at_their_value_between_their_gridlines(values: list[float]) -> None:
    frame = mixing_curves._rank_frame({"no_sibling": 1 / 14, "true_mixture": 1 / 105}, values)
    assert frame.y.low < 1 / 105 and frame.y.high > 1 / 14
    drawing = line_chart(frame, [], label="")
    drawn = [float(y) for y in re.findall(r'class="level"[^>]* y1="([\d.]+)"', drawing)]
    ticks = {text: frame.at(frame.x.low, value)[1] for value, text in frame.y.ticks}
    assert drawn == [pytest.approx(frame.at(frame.x.low, value)[1], abs=0.06) for value in (1 / 14, 1 / 105)]
    # 7.14 % lies between the lines of 5 % and 10 % where they are drawn, nearly in the middle of a logarithmic axis.
    assert ticks["10 %"] + 5 < drawn[0]
    assert "5 %" not in ticks or drawn[0] < ticks["5 %"] - 5


def lines(*curves: dict[str, Any]) -> list[tuple[list[tuple[int, float]], str, str, str]]:
    """Points, classes, hint and name of the lines of some seeds."""
    made = mixing_curves._seed_lines(list(enumerate(curves)), "rank", "c1", "all")
    return [(list(line.points), line.classes, line.hint, line.name) for line in made]


def test_one_seed_has_one_line_and_several_have_their_mean() -> None:
    one, two = ({"steps": [0, 10], "rank": rank} for rank in ([0.5, 0.25], [0.25, 0.75]))
    assert lines(one) == [([(0, 0.5), (10, 0.25)], "c1", "all", "all")]
    assert lines(one, two) == [
        ([(0, 0.5), (10, 0.25)], "c1 faint", "all, seed 0", ""),
        ([(0, 0.25), (10, 0.75)], "c1 faint", "all, seed 1", ""),
        ([(0, 0.375), (10, 0.5)], "c1", "all, mean of seeds", "all"),
    ]
    # Seeds that were read at different steps have no mean, and the last one has the name; some have no reading.
    later = {"steps": [0, 20], "rank": [0.5, 0.5]}
    assert [line[2:] for line in lines(one, later)] == [("all, seed 0", ""), ("all, seed 1", "all")]
    assert len(lines({"steps": [0, 10]}, one)) == 1
    assert lines({"steps": [0]}) == []


@pytest.mark.parametrize(("values", "low"), [([0.9], 0.4), ([0.3, 0.9], 0.0), ([], 0.4)])
def test_chance_is_within_the_axis_of_rates(values: list[float], low: float) -> None:
    frame = mixing_curves._larger_frame({}, values)
    assert (frame.y.low, frame.y.high) == (low, 1)
    assert [(level.value, level.name) for level in frame.levels] == [(0.5, "chance")]


@pytest.mark.parametrize(("value", "low", "high"), [(0.4, 0, 1), (-0.029, 0, 1), (-0.03, -0.5, 1), (1.2, 0, 1.5)])
def test_coefficients_go_from_zero_to_one_or_further(value: float, low: float, high: float) -> None:
    frame = mixing_curves._coefficient_frame({}, [value])
    assert (frame.y.low, frame.y.high) == (low, high)
    assert frame.y.ticks[-1][1] == f"{high:.1f}"
