"""Where charts draw what they show: coordinates worked out by hand from sizes, margins and values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from lxml import etree
from markupsafe import Markup

from unspoken.draw import charts
from unspoken.draw.charts import (
    Axis,
    Frame,
    Level,
    Line,
    Mark,
    Point,
    difference_bar,
    element,
    line_chart,
    linear,
    logarithmic,
    nice_ticks,
    rate_bar,
    rates,
    scatter,
    training_steps,
)

# A plot of 100 by 100 pixels between x 20 and 120, y 10 and 110; values from 0 to 10 and from 0 to 1.
AXIS_X = Axis(low=0, high=10, ticks=((0, "0"), (5, "5"), (10, "a long end")), title="step")
AXIS_Y = Axis(low=0, high=1, ticks=((0, "none"), (0.5, "half")))
FRAME = Frame(x=AXIS_X, y=AXIS_Y, width=150, height=150, left=20, right=30, top=10, bottom=40)


def number(text: str) -> float | str:
    return float(text) if re.fullmatch(r"-?[\d.]+", text) else text


def drawn(drawing: Markup, tag: str, classes: str) -> list[dict[str, Any]]:
    """Attributes of the elements of a tag and class, numbers as numbers, with their text."""
    found = []
    for node in etree.fromstring(str(drawing)).iter(tag):
        if node.get("class") == classes:
            values = {
                name: float(v) if v.replace(".", "").replace("-", "").isdigit() else v for name, v in node.items()
            }
            found.append({**values, "text": "".join(node.itertext())})
    return found


def lines(drawing: Markup, classes: str) -> list[tuple[float, ...]]:
    return [(one["x1"], one["y1"], one["x2"], one["y2"]) for one in drawn(drawing, "line", classes)]


def texts(drawing: Markup, classes: str) -> list[tuple[str, float, float]]:
    return [(one["text"], one["x"], one["y"]) for one in drawn(drawing, "text", classes)]


def test_values_lie_in_proportion_and_beyond_the_ends_on_them() -> None:
    assert [AXIS_X.fraction(value) for value in (-1, 0, 2.5, 10, 11)] == [0, 0, 0.25, 1, 1]
    assert [Axis(low=2, high=4, ticks=()).fraction(value) for value in (2, 3.5)] == [0, 0.75]
    powers = Axis(low=0.1, high=1000, ticks=(), log=True)
    assert [powers.fraction(value) for value in (0.01, 0.1, 10, 1000, 1e9)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert FRAME.at(0, 0) == (20, 110)
    assert FRAME.at(10, 1) == (120, 10)
    assert FRAME.at(2.5, 0.75) == (45, 35)
    usual = Frame(x=AXIS_X, y=AXIS_Y)
    assert (usual.at(0, 0), usual.at(10, 1)) == ((54, 210 - 36), (330 - 10, 10))


def test_ticks_are_one_two_or_five_times_a_power_of_ten() -> None:
    assert nice_ticks(0, 1) == [0, 0.5, 1]
    assert nice_ticks(0, 4) == [0, 1, 2, 3, 4]
    assert nice_ticks(0.03, 0.71) == [0, 0.2, 0.4, 0.6, 0.8]
    assert nice_ticks(-7, 13) == [-10, -5, 0, 5, 10, 15]
    assert nice_ticks(0, 100, 3) == [0, 50, 100]
    assert nice_ticks(0, 10, 1) == [0, 10]
    assert nice_ticks(3, 3) == [3, 4, 5, 6]
    assert nice_ticks(0, 0) == [0, 0.5, 1]
    axis = linear([0.2, 3.9])
    assert (axis.low, axis.high, axis.ticks) == (0, 4, ((0, "0"), (1, "1"), (2, "2"), (3, "3"), (4, "4")))
    assert [text for _, text in linear([0, 9]).ticks] == ["0", "5", "10"]
    assert (linear([]).low, linear([]).high) == (0, 1)


def test_a_logarithmic_axis_names_ones_twos_and_fives_or_powers_alone() -> None:
    axis = logarithmic([-1.0, 0.0, 0.03, 0.4])
    assert [tick for tick, _ in axis.ticks] == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5])
    assert (axis.low, axis.high, axis.log) == pytest.approx((0.02, 0.5, True))
    long = logarithmic([0.03, 400])
    assert [text for _, text in long.ticks] == ["0.1", "1", "10", "100"]
    assert (long.low, long.high) == pytest.approx((0.02, 500))
    assert [tick for tick, _ in logarithmic([]).ticks] == pytest.approx([0.1, 0.2, 0.5, 1])
    assert [tick for tick, _ in logarithmic([0.5]).ticks] == pytest.approx([0.5, 1])
    # Rounding takes no further tick.
    assert [tick for tick, _ in logarithmic([0.0999999, 1.0000001]).ticks] == pytest.approx([0.1, 0.2, 0.5, 1])
    assert len(logarithmic([0.01, 1]).ticks) == 7
    assert [text for _, text in logarithmic([0.01, 2]).ticks] == ["0.01", "0.1", "1"]


@pytest.mark.parametrize(
    ("low", "ticks"),
    [
        (0.995, [99.0, 99.2, 99.4, 99.6, 99.8, 100.0]),
        (0.96, [95, 96, 97, 98, 99, 100]),
        (0.9, [90, 92, 94, 96, 98, 100]),
        (0.85, [80, 85, 90, 95, 100]),
        (0.7, [60, 70, 80, 90, 100]),
        (0.4, [40, 50, 60, 70, 80, 90, 100]),
        (0.39, [0, 25, 50, 75, 100]),
    ],
)
def test_an_axis_of_rates_begins_at_a_round_rate(low: float, ticks: list[float]) -> None:
    axis = rates(low)
    assert [100 * value for value, _ in axis.ticks] == pytest.approx(ticks)
    assert [text for _, text in axis.ticks] == [f"{tick} %" for tick in ticks]
    assert (axis.low, axis.high) == (ticks[0] / 100, 1)
    assert rates() == rates(0.0)


def test_an_axis_of_steps_ends_at_the_last_one() -> None:
    axis = training_steps([600, 5500])
    assert (axis.low, axis.high, axis.title) == (0, 5500, "step")
    assert axis.ticks == ((0, "0"), (2000, "2,000"), (4000, "4,000"))
    assert training_steps([]).high == 1
    assert training_steps([4000]).ticks[-1] == (4000, "4,000")
    assert [text for _, text in training_steps([4]).ticks] == ["0", "1", "2", "3", "4"]


def test_axes_have_a_line_for_every_tick() -> None:
    drawing = line_chart(FRAME, [], label="one")
    assert lines(drawing, "grid") == [(20, 110, 120, 110), (20, 60, 120, 60)]
    assert texts(drawing, "tick end") == [("none", 14, 110), ("half", 14, 60)]
    # A short line below the plot for each, and the plot's own lower edge.
    assert lines(drawing, "axis") == [(20, 110, 20, 114), (70, 110, 70, 114), (120, 110, 120, 114), (20, 110, 120, 110)]
    assert texts(drawing, "tick middle") == [("0", 20, 126), ("5", 70, 126), ("step", 70, 147)]
    assert texts(drawing, "tick middle end") == [("a long end", 120, 126)]
    assert 'viewBox="0 0 150 150"' in drawing


def test_a_long_label_within_twelve_pixels_of_the_edge_ends_at_it() -> None:
    axis = Axis(low=0, high=100, ticks=((88, "four"), (89, "100"), (90, "1000")))
    drawing = line_chart(replace(FRAME, x=axis), [], label="one")
    assert texts(drawing, "tick middle") == [("four", 108, 126), ("100", 109, 126)]
    assert texts(drawing, "tick middle end") == [("1000", 120, 126)]


def test_a_line_passes_through_its_points() -> None:
    series = Line(points=[(0, 0), (2.5, 0.75), (10, 1)], classes="c1 thin", marker="ring", hint="seed 0")
    drawing = line_chart(FRAME, [series], label="one")
    assert [one["points"] for one in drawn(drawing, "polyline", "line c1 thin")] == ["20,110 45,35 120,10"]
    rings = drawn(drawing, "circle", "ring c1 thin")
    assert [(one["cx"], one["cy"], one["r"]) for one in rings] == [(20, 110, 5.5), (45, 35, 5.5), (120, 10, 5.5)]
    assert "<title>seed 0</title>" in drawing
    dots = line_chart(FRAME, [Line(points=[(5, 0.5)], classes="c2", marker="dot")], label="one")
    assert [(one["cx"], one["cy"], one["r"]) for one in drawn(dots, "circle", "dot c2")] == [(70, 60, 3)]


def test_names_stand_at_the_ends_of_lines_and_apart() -> None:
    named = [
        Line(points=[(10, y)], classes="c1 dashed", name=name) for y, name in ((0.5, "b"), (0.52, "a"), (0.1, "c"))
    ]
    drawing = line_chart(FRAME, named, label="one")
    # The plot ends at 120; names are 8 pixels away and at least 14 from each other, moved down where they meet.
    assert texts(drawing, "end-name c1") == [("a", 128, 58), ("b", 128, 72), ("c", 128, 100)]
    assert lines(drawing, "lead") == [(123, 60, 126, 72)]
    # From 14 pixels on no line is needed; the name is at 128.
    for x, number in ((9.4, 0), (9.39, 1)):
        one = line_chart(FRAME, [Line(points=[(x, 0.5)], classes="c1", name="a")], label="one")
        assert len(lines(one, "lead")) == number
    low = [Line(points=[(10, 0)], classes="c1", name=name) for name in "abc"]
    # None lies below the plot, so the upper ones move up.
    assert [y for _, _, y in texts(line_chart(FRAME, low, label=""), "end-name c1")] == [82, 96, 110]
    # Ten letters of 6.4 pixels, the gap of 8, and two more.
    wide = FRAME.labelled([Line(points=[], classes="", name="ten lettersx"[:10])])
    assert wide.right == 64 + 8 + 2
    assert FRAME.labelled([Line(points=[], classes="", name="a")]).right == 30
    assert FRAME.labelled([Line(points=[], classes="")]) is FRAME.labelled([]) is FRAME


def test_a_level_has_its_name_at_its_end() -> None:
    frame = Frame(**{**vars(FRAME), "levels": (Level(value=0.5, name="chance"),)})
    free = line_chart(frame, [], label="")
    assert lines(free, "level") == [(20, 60, 120, 60)]
    assert texts(free, "note end") == [("chance", 120, 54.5)]
    # Six letters of 5.8 pixels; a line above the right end moves the name to the left end, one all along below.
    right = line_chart(frame, [Line(points=[(7, 0.55), (10, 0.55)], classes="c1")], label="")
    assert texts(right, "note start") == [("chance", 24, 54.5)]
    along = line_chart(frame, [Line(points=[(0, 0.55), (10, 0.55)], classes="c1")], label="")
    assert texts(along, "note end") == [("chance", 120, 73)]
    # A name covers what is less than three pixels to its left or right, twelve above its base or four below.
    for (x, y), name in (
        ((82.1, 50), ("end", 120, 54.5)),
        ((82.3, 50), ("start", 24, 54.5)),
        ((100, 42.4), ("end", 120, 54.5)),
        ((100, 42.6), ("start", 24, 54.5)),
        ((100, 58.4), ("start", 24, 54.5)),
        ((100, 58.6), ("end", 120, 54.5)),
    ):
        point = Line(points=[((x - 20) / 10, (110 - y) / 100)], classes="c1")
        assert texts(line_chart(frame, [point], label=""), f"note {name[0]}") == [("chance", *name[1:])]
    for x, name in ((61.9, ("start", 24, 54.5)), (61.7, ("end", 120, 73))):
        points = [Line(points=[((px - 20) / 10, 0.6)], classes="c1") for px in (x, 100)]
        assert texts(line_chart(frame, points, label=""), f"note {name[0]}") == [("chance", *name[1:])]
    # Below it must end above the lower edge.
    for value, base in ((0.13, 110), (0.12, 92.5)):
        low = Frame(**{**vars(FRAME), "levels": (Level(value=value, name="chance"),)})
        over = line_chart(low, [Line(points=[(0, value + 0.05), (10, value + 0.05)], classes="c1")], label="")
        assert texts(over, "note end") == [("chance", 120, base)]
    # At the lower edge there is no place below.
    edge = Frame(**{**vars(FRAME), "levels": (Level(value=0, name="none"),)})
    over = line_chart(edge, [Line(points=[(0, 0.05), (10, 0.05)], classes="c1")], label="")
    assert texts(over, "note end") == [("none", 120, 104.5)]


def mark(number: int, x: float, y: float, *, filled: bool = True) -> Mark:
    return Mark(x=x, y=y, low=y - 0.1, high=y + 0.1, number=number, colour="c3", filled=filled, hint=f"point {number}")


def test_points_have_intervals_and_numbers_beside_them() -> None:
    drawing = scatter(FRAME, [mark(1, 5, 0.5), mark(2, 5, 0.5, filled=False)], [(0, 0.2), (10, 0.2)], label="one")
    assert [one["points"] for one in drawn(drawing, "polyline", "line c0 thin")] == ["20,90 120,90"]
    assert lines(drawing, "range c3") == [(70, 50, 70, 70)] * 2
    (ring,), (dot,) = drawn(drawing, "circle", "ring open c3"), drawn(drawing, "circle", "dot c3")
    assert (ring["cx"], ring["cy"], ring["r"]) == (dot["cx"], dot["cy"], dot["r"]) == (70, 60, 4.5)
    names = {text: (x, y) for text, x, y in texts(drawing, "name middle c3")}
    # What is not filled lies below and is named first: 12 pixels to the right, the nearest place beside the dot, whose
    # half and that of a digit are 10 pixels wide together. The other number is on the left.
    assert names == {"2": (82, 60), "1": (58, 60)}


def test_a_point_is_a_dot_and_an_axis_even_unless_asked() -> None:
    assert Mark(x=0, y=0, low=0, high=0, number=1, colour="c1").filled
    assert not Axis(low=0, high=1, ticks=()).log


# Values are pixels from the lower left corner of a plot between x 20 and 148, y 10 and 138.
PIXELS = Axis(low=0, high=128, ticks=())
PLOT = Frame(x=PIXELS, y=PIXELS, width=178, height=178, left=20, right=30, top=10, bottom=40)


def numbers(marks: Sequence[tuple[int, float, float, float, float]], line: Sequence[Point] = ()) -> list[Point]:
    """Where the numbers of points stand, everything in pixels: a point, and both ends of its interval."""
    made = [
        Mark(x=x - 20, y=138 - y, low=138 - bottom, high=138 - top, number=number, colour="c3")
        for number, x, y, top, bottom in marks
    ]
    drawing = scatter(PLOT, made, [(x - 20, 138 - y) for x, y in line], label="one")
    return [(x, y) for _, x, y in texts(drawing, "name middle c3")]


RIGHT, LEFT, ABOVE, BELOW = (82, 60), (58, 60), (70, 48), (70, 72)
UPRIGHT, LEVEL = [(70, 10), (70, 138)], [(20, 60), (148, 60)]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ([], RIGHT),
        # A line of steps is 6 pixels from the middle of a number, or half of the number beside it.
        ([(20, 66), (148, 66)], RIGHT),
        ([(20, 65.9), (148, 65.9)], ABOVE),
        ([(20, 54), (148, 54)], RIGHT),
        ([(20, 54.1), (148, 54.1)], ABOVE),
        ([(87, 10), (87, 138)], RIGHT),
        ([(86.9, 10), (86.9, 138)], LEFT),
        ([(77, 10), (77, 138)], RIGHT),
        ([(77.1, 10), (77.1, 138)], LEFT),
        (LEVEL, ABOVE),
        ([*LEVEL, (148, 48), (20, 48)], BELOW),
        # Between the arms of a cross it stands farther out: nearer it would cover its own point.
        ([*LEVEL, (70, 60), *UPRIGHT], (84.1, 45.9)),
    ],
)
def test_a_number_stands_on_the_first_side_where_no_line_strikes_it(line: list[Point], place: Point) -> None:
    assert numbers([(1, 70, 60, 60, 60)], line) == [place]


@pytest.mark.parametrize(("x", "place"), [(78.5, ABOVE), (78.4, BELOW)])
def test_a_number_of_two_digits_is_17_pixels_wide(x: float, place: Point) -> None:
    assert numbers([(12, 70, 60, 60, 60)], [(x, 40), (x, 56)]) == [place]


@pytest.mark.parametrize(
    ("other", "place"),
    [
        # Another point is half of the number and 5 pixels away, or 11 above or below.
        ((92, 60, 60, 60), RIGHT),
        ((91.9, 60, 60, 60), LEFT),
        ((82, 71, 71, 71), RIGHT),
        ((82, 70.9, 70.9, 70.9), LEFT),
        ((82, 49, 49, 49), RIGHT),
        ((82, 49.1, 49.1, 49.1), LEFT),
        # Its interval is half of the number and 1.5 pixels away, or 6 above or below.
        ((88.5, 20, 20, 110), RIGHT),
        ((88.4, 20, 20, 110), LEFT),
        ((75.5, 20, 20, 110), RIGHT),
        ((75.6, 20, 20, 110), LEFT),
        ((85, 20, 20, 54), RIGHT),
        ((85, 20, 20, 54.1), LEFT),
        ((85, 100, 66, 100), RIGHT),
        ((85, 100, 65.9, 100), LEFT),
    ],
)
def test_a_number_covers_no_other_point_or_interval(other: tuple[float, float, float, float], place: Point) -> None:
    assert numbers([(1, 70, 60, 60, 60), (2, *other)])[0] == place


def test_corners_are_tried_from_the_upper_right_on() -> None:
    cross, corners = [*LEVEL, (70, 60), *UPRIGHT], [(84.1, 45.9), (84.1, 74.1), (55.9, 45.9), (55.9, 74.1)]
    for index, corner in enumerate(corners):
        taken = [(2, x, y, y, y) for x, y in corners[:index]]
        assert numbers([(1, 70, 60, 60, 60), *taken], cross)[0] == corner


@pytest.mark.parametrize(
    ("x", "y", "line", "place"),
    [
        # A plot ends at 20 and 148 pixels; on the left half of the number is free too.
        (136, 60, [], (148, 60)),
        (136.1, 60, [], (124.1, 60)),
        (37, 60, [(49, 10), (49, 138)], (25, 60)),
        (36.9, 60, [(49, 10), (49, 138)], (36.9, 48)),
        # Six pixels are free at the top of the drawing, and seven at the lower end of the plot, which is at 138.
        (70, 18, [(20, 18), (148, 18)], (70, 6)),
        (70, 17.9, [(20, 17.9), (148, 17.9)], (70, 29.9)),
        (70, 119, [(20, 119), (148, 119), (148, 107), (20, 107)], (70, 131)),
        (70, 119.1, [(20, 119.1), (148, 119.1), (148, 107.1), (20, 107.1)], (70, 99.1)),
    ],
)
def test_a_number_stands_inside_of_the_plot(x: float, y: float, line: list[Point], place: Point) -> None:
    assert numbers([(1, x, y, y, y)], line) == [place]


@pytest.mark.parametrize(
    ("first", "second", "place"),
    [
        # The second point is so far to the right that its number stands on the left, 11 pixels from the other one.
        ((102, 60), (137, 60), (125, 60)),
        ((102.1, 60), (137, 60), (137, 48)),
        ((108, 60), (137, 73), (125, 73)),
        ((108, 60), (137, 72.9), (137, 60.9)),
    ],
)
def test_a_number_covers_no_other_number(first: Point, second: Point, place: Point) -> None:
    assert numbers([(number, x, y, y, y) for number, (x, y) in ((1, first), (2, second))])[1] == place


def test_a_number_is_at_most_68_pixels_from_its_point() -> None:
    # A line that goes to and fro leaves only places that are farther away.
    line = [(x, y) for y in range(10, 140, 10) for x in (30, 110, 30)]
    assert numbers([(1, 40, 70, 70, 70)], line) == [(52, 70)]


def test_points_along_a_line_are_four_pixels_apart() -> None:
    assert sorted(charts._along([(0, 0), (12, -6), (12, -8)])) == [(0, 0), (4, -2), (8, -4), (12, -8), (12, -6)]
    assert charts._along([(3, 1), (0, 8)]) == [(3, 1), (0, 8)]
    assert charts._along([(1, 9), (2, 1)])[2:] == [(1.5, 5)]


def test_numbers_of_a_crowd_cover_nothing() -> None:
    crowd = [mark(number, 4 + 0.3 * (number % 3), 0.5 + 0.04 * (number // 3)) for number in range(9)]
    drawing = scatter(FRAME, crowd, [(0, 0.5), (10, 0.5)], label="one")
    names = [(x, y) for _, x, y in texts(drawing, "name middle c3")]
    assert len(names) == 9
    for index, (x, y) in enumerate(names):
        assert 20 + 5 <= x <= 120
        assert 6 <= y <= 103
        assert all(abs(x - ox) >= 10.9 or abs(y - oy) >= 12.9 for ox, oy in names[:index])
        assert all(math.dist((x, y), FRAME.at(one.x, one.y)) > 9 for one in crowd)
    leader_lines = lines(drawing, "lead")
    # A number farther than 14 pixels from its point has a line, from 6 pixels beside the point to 7 before the number.
    far = [
        (start, name)
        for start, name in zip((FRAME.at(one.x, one.y) for one in crowd), names, strict=True)
        if math.dist(start, name) > 14
    ]
    assert len(leader_lines) == len(far) > 0
    for (x1, y1, x2, y2), (start, name) in zip(leader_lines, far, strict=True):
        assert math.dist(start, (x1, y1)) == pytest.approx(6, abs=0.2)
        assert math.dist(name, (x2, y2)) == pytest.approx(7, abs=0.2)
        assert math.dist((x1, y1), (x2, y2)) == pytest.approx(math.dist(start, name) - 13, abs=0.3)


def test_bars_in_cells_are_in_per_cent_of_the_cell() -> None:
    rate = {"mean": 0.25, "low": 0.125, "high": 0.5}
    bar = rate_bar(rate, "c1")
    (rect,) = drawn(bar, "rect", "bar c1")
    assert (rect["x"], rect["width"], rect["y"], rect["height"]) == ("0.00%", "25.00%", 3, 14)
    assert lines(bar, "whisker") == [("12.50%", 10, "50.00%", 10)]
    assert lines(bar, "grid") == [(0, 17.5, "100%", 17.5)]
    dot = rate_bar(rate, "c1", bar=False)
    assert [(one["cx"], one["cy"], one["r"]) for one in drawn(dot, "circle", "dot c1")] == [("25.00%", 10, 4)]
    assert lines(dot, "grid") == [(0, 10, "100%", 10)]
    assert not drawn(bar, "circle", "dot c1")
    assert not drawn(dot, "rect", "bar c1")
    assert 'aria-label="25.00 %, interval 12.50 to 50.00 %"' in dot
    assert 'width="100%" height="20"' in bar


def test_differences_lie_on_both_sides_of_the_middle() -> None:
    drawing = difference_bar({"mean": 0.05, "low": -0.1, "high": 0.2}, 0.2, "c2")
    assert lines(drawing, "axis") == [("50%", 2, "50%", 18)]
    assert lines(drawing, "grid") == [(0, 10, "100%", 10)]
    # The reach is 48 % of the cell.
    assert lines(drawing, "range c2") == [("26.00%", 10, "98.00%", 10)]
    assert [(one["cx"], one["cy"], one["r"]) for one in drawn(drawing, "circle", "dot c2")] == [("62.00%", 10, 4)]
    assert 'aria-label="5.00 points, interval −10.00 to 20.00" width="100%" height="20"' in drawing


def test_elements_are_escaped_and_numbers_short() -> None:
    assert element("text", "a<b", class_="x&y", font_size=2.0, x=1.26) == Markup(
        '<text class="x&amp;y" font-size="2" x="1.3">a&lt;b</text>'
    )
    assert element("line", x1=0.04) == Markup('<line x1="0"/>')
