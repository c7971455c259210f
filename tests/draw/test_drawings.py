"""Drawings: nothing covers anything, and axes hold what they show."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from unspoken.draw.charts import Frame, Level, Line, Point, line_chart, linear, logarithmic, nice_ticks, rates
from unspoken.draw.clouds import spread
from unspoken.draw.trees import RADIUS, VALUE_DROP, Step, draw, layout, size

Box = tuple[float, float, float, float]  # left, top, right, bottom


def boxes(centre: Point, value: str) -> list[Box]:
    """A node's circle with its letter, and the value below; digits of the page are 0.58 em of 10 pixels wide."""
    x, y = centre
    half = 0.58 * 10 * len(value) / 2
    base = y + RADIUS + VALUE_DROP
    return [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), (x - half, base - 7.5, x + half, base)]


def overlap(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_no_label_of_a_tree_covers_another(depth: int) -> None:
    centres = layout(depth)
    assert len(centres) == 2**depth - 1
    width, height = size(depth)
    # The longest value that is ever written.
    labels = [box for centre in centres for box in boxes(centre, "−0.12")]
    for one, two in itertools.combinations(labels, 2):
        assert not overlap(one, two)
    assert all(left >= 0 and right <= width and top >= 0 and bottom <= height for left, top, right, bottom in labels)


def test_a_parent_stands_above_the_middle_of_its_children() -> None:
    centres = layout(4)
    for node in range(7):
        (left, below), (right, level) = centres[2 * node + 1], centres[2 * node + 2]
        assert centres[node][0] == pytest.approx((left + right) / 2)
        assert centres[node][1] < below == level


def test_a_tree_marks_the_right_and_the_spoken_name_and_writes_what_counts() -> None:
    step = Step(heap="ABC", coefficients={"A": 0.01, "B": 0.7, "C": -0.3, "D": 0.2}, right="B", spoken="C")
    drawing = draw(step, label="one & two")
    assert drawing.count('class="right"') == drawing.count('class="spoken"') == 1
    assert "0.70" in drawing
    assert "−0.30" in drawing
    assert ">0.01<" not in drawing
    assert 'aria-label="one &amp; two"' in drawing
    assert step.outside() == ("D", 0.2)


def test_labels_of_a_crowd_are_parted() -> None:
    draw_one = random.Random(0)
    marks = {name: (draw_one.uniform(0, 60), draw_one.uniform(0, 60)) for name in "ABCDEFGH"} | {"I": (30.0, 30.0)}
    marks["J"] = marks["I"]
    places = spread(marks)
    for one, two in itertools.combinations(places.values(), 2):
        assert math.dist(one, two) > 15


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.3), (-0.2, 1.1), (3, 3), (0, 6000)])
def test_ticks_are_round_and_cover_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize("values", [(0.0095, 0.26), (0.01, 2.3), (1e-5, 4.0), (0.5, 0.5)])
def test_a_logarithmic_axis_covers_its_values_with_few_ticks(values: tuple[float, ...]) -> None:
    axis = logarithmic(values)
    assert axis.low <= min(values) * 1.001
    assert axis.high >= max(values) * 0.999
    assert axis.low < axis.high
    assert 1 <= len(axis.ticks) <= 7


@pytest.mark.parametrize("low", [0.0, 0.3, 0.5, 0.72, 0.985, 1.0])
def test_an_axis_of_rates_ends_at_all_and_holds_the_lowest(low: float) -> None:
    axis = rates(low)
    assert axis.low <= low
    assert axis.ticks[-1][1].startswith("100")


def test_the_name_of_a_level_keeps_clear_of_a_line() -> None:
    y = linear([0, 1])
    frame = Frame(x=linear([0, 10]), y=y, levels=(Level(value=0.5, name="chance"),))
    free = line_chart(frame, [], label="")
    met = line_chart(frame, [Line(points=[(0, 0.53), (10, 0.53)], classes="c1")], label="")
    assert 'class="note end"' in free

    def base(drawing: str) -> float:
        return float(drawing.split('class="note')[1].split('y="')[1].split('"', maxsplit=1)[0])

    assert base(met) > base(free)


def test_a_level_beyond_its_axis_is_not_drawn_at_its_end() -> None:
    with pytest.raises(AssertionError, match="chance is beyond the axis"):
        Frame(x=linear([0, 1]), y=linear([0, 0.2]), levels=(Level(value=0.5, name="chance"),))
