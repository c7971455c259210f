"""Small charts as inline SVG: drawn in pixels at the size they are shown, coloured by the page's style sheet.

A colour is a class (``c1`` to ``c6``, ``c0`` for grey), never a value: the style sheet has a light and a dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from unspoken.draw.formats import coefficient

_LETTER = 6.4  # pixels, of a letter on average
_LABEL_GAP, _LABEL_HEIGHT = 8, 14  # pixels between a plot and the names of its lines, and from name to name
Point = tuple[float, float]
Tick = tuple[float, str]


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """An SVG element; text and attributes are escaped, numbers are short, an underscore stands for a hyphen."""
    # Formatting a Markup takes twenty times as long as formatting a string, and a page has thousands of elements.
    names = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    opening = tag + "".join(f' {name}="{escape(_short(value))}"' for name, value in names)
    return Markup(f"<{opening}>{''.join(map(escape, content))}</{tag}>" if content else f"<{opening}/>")


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One direction of a chart: its range, its ticks, and whether it is logarithmic."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    log: bool = False
    title: str = ""

    def fraction(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high end; values beyond an end lie on it."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series: joined points, with ``classes`` of the style sheet (colour, ``thin``, ``dashed``)."""

    points: Sequence[Point]
    classes: str
    marker: str = ""
    hint: str = ""
    name: str = ""  # at its right end


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point with its interval, and the number by which a legend names it."""

    x: float
    y: float
    # low, high: ends of the interval of y
    low: float
    high: float
    number: int
    colour: str  # class of the style sheet
    filled: bool = True  # a dot instead of a ring
    hint: str = ""  # shown where the pointer rests on it


@dataclass(frozen=True, kw_only=True)
class Level:
    """A dashed horizontal line with its name."""

    value: float
    name: str


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Size and margins of a chart, and the way from values to pixels."""

    x: Axis
    y: Axis
    width: int = 330
    height: int = 210
    left: int = 54
    right: int = 10
    top: int = 10
    bottom: int = 36
    levels: tuple[Level, ...] = field(default=())

    def __post_init__(self) -> None:
        # Points beyond an end are drawn on it; a level there would carry the value of another line.
        for level in self.levels:
            assert self.y.low <= level.value <= self.y.high, f"{level.name} is beyond the axis"

    def at(self, x: float, y: float) -> Point:
        """Pixels of a point."""
        across = self.width - self.left - self.right
        down = self.height - self.top - self.bottom
        return self.left + across * self.x.fraction(x), self.top + down * (1 - self.y.fraction(y))

    def labelled(self, lines: Iterable[Line]) -> Frame:
        """The same size with a margin on the right for the names of the lines."""
        widths = [round(_LETTER * len(line.name)) + _LABEL_GAP + 2 for line in lines if line.name]
        return replace(self, right=max(self.right, *widths)) if widths else self


# --- axes --------------------------------------------------------------------------------------------------------


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range, about ``count``: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def linear(values: Iterable[float], write: Callable[[float], str] = "{:g}".format, *, count: int = 5) -> Axis:
    """An axis from round number to round number around the values."""
    known = list(values) or [0.0, 1.0]
    ticks = nice_ticks(min(known), max(known), count)
    return Axis(low=ticks[0], high=ticks[-1], ticks=tuple((tick, write(tick)) for tick in ticks))


def logarithmic(values: Iterable[float], write: Callable[[float], str] = "{:g}".format, *, most: int = 7) -> Axis:
    """An axis over the powers of ten, with 1, 2 and 5 of each if that makes no more than ``most`` ticks.

    Values that are not positive are left out.
    """
    known = [value for value in values if value > 0] or [0.1, 1.0]
    low, high = min(known), max(known)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    grid = [factor * 10.0**power for power in powers for factor in (1.0, 2.0, 5.0)]
    below = max(tick for tick in grid if tick <= low * 1.001)
    above = min(tick for tick in grid if tick >= high * 0.999 and tick > below)
    ticks = [tick for tick in grid if below <= tick <= above]
    if len(ticks) > most:
        ticks = [tick for tick in ticks if math.isclose(math.log10(tick), round(math.log10(tick)))]
    return Axis(low=below, high=above, ticks=tuple((tick, write(tick)) for tick in ticks), log=True)


def rates(low: float = 0.0) -> Axis:
    """An axis in per cent from a round rate at or below ``low`` to 100 %."""
    # Starting nearer to the top shows small losses; the caption must say that the axis is cut.
    choices = ((0.99, 0.002), (0.95, 0.01), (0.9, 0.02), (0.8, 0.05), (0.6, 0.1), (0.4, 0.1), (0.0, 0.25))
    start, step = next((choice for choice in choices if low >= choice[0]), choices[-1])
    values = [start + index * step for index in range(round((1 - start) / step) + 1)]
    digits = 1 if step < 0.01 else 0
    ticks = tuple((value, f"{100 * value:.{digits}f} %") for value in values)
    return Axis(low=start, high=1.0, ticks=ticks)


def training_steps(values: Iterable[float]) -> Axis:
    """An axis of optimiser steps from 0."""
    last = max([*values, 1.0])
    ticks = [tick for tick in nice_ticks(0, last) if tick <= last]
    return Axis(low=0, high=last, ticks=tuple((tick, f"{tick:,.0f}") for tick in ticks), title="step")


# --- marks -------------------------------------------------------------------------------------------------------


def circle(at: Point, classes: str, radius: float) -> Markup:
    """A dot or a ring, as its classes say."""
    return element("circle", class_=classes, cx=at[0], cy=at[1], r=radius)


def span(low: Point, high: Point, colour: str) -> Markup:
    """The upright line of an interval."""
    return element("line", class_=f"range {colour}", x1=low[0], x2=low[0], y1=low[1], y2=high[1])


def polyline(points: Iterable[Point], classes: str) -> Markup:
    """A line through pixels."""
    joined_points = " ".join(f"{_short(float(x))},{_short(float(y))}" for x, y in points)
    return element("polyline", class_=f"line {classes}", points=joined_points)


def svg(width: float, height: float, content: Iterable[Markup], *, label: str, classes: str = "") -> Markup:
    """A drawing at its natural size, which narrower screens shrink; ``label`` describes it to who does not see it."""
    width, height = _short(float(width)), _short(float(height))  # type: ignore[assignment]
    box = f"0 0 {width} {height}"
    return element(
        "svg", *content, class_=classes, role="img", aria_label=label, width=width, height=height, viewBox=box
    )


def _axes(frame: Frame) -> list[Markup]:
    marks = []
    bottom, right = frame.height - frame.bottom, frame.width - frame.right
    for value, name in frame.y.ticks:
        y = frame.at(frame.x.low, value)[1]
        marks.append(element("line", class_="grid", x1=frame.left, x2=right, y1=y, y2=y))
        marks.append(element("text", name, class_="tick end", x=frame.left - 6, y=y, dy=".35em"))
    for value, name in frame.x.ticks:
        x = frame.at(value, frame.y.low)[0]
        # The last label would hang over the edge if it were centred.
        last = x > right - 12 and len(name) > 3
        marks.append(element("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4))
        classes = f"tick middle{' end' if last else ''}"
        marks.append(element("text", name, class_=classes, x=float(right) if last else x, y=bottom + 16))
    marks.append(element("line", class_="axis", x1=frame.left, x2=right, y1=bottom, y2=bottom))
    if frame.x.title:
        middle = (frame.left + right) / 2
        marks.append(element("text", frame.x.title, class_="tick middle", x=middle, y=frame.height - 3))
    return marks


def _level(frame: Frame, level: Level, lines: Sequence[Line]) -> Markup:
    """A level with its name where it covers the least of the lines: at either end, above or below."""
    y = frame.at(frame.x.low, level.value)[1]
    right = frame.width - frame.right
    width = 5.8 * len(level.name)
    drawn = [point for line in lines for point in _along([frame.at(*point) for point in line.points])]

    def covered(start: float, base: float) -> int:
        return sum(start - 3 <= px <= start + width + 3 and base - 12 <= py <= base + 4 for px, py in drawn)

    corners = [(start, y + drop) for drop in (-5.5, 13.0) for start in (right - width, frame.left + 4.0)]
    corners = [corner for corner in corners if corner[1] <= frame.height - frame.bottom]
    start, base = min(corners, key=lambda corner: covered(*corner))
    x, anchor = (start, "start") if start < right - width else (float(right), "end")
    line = element("line", class_="level", x1=frame.left, x2=right, y1=y, y2=y)
    return line + element("text", level.name, class_=f"note {anchor}", x=x, y=base)


def _along(pixels: Sequence[Point]) -> list[Point]:
    """Points along a line, a few pixels apart."""
    points = list(pixels)
    for (x1, y1), (x2, y2) in pairwise(pixels):
        count = int(max(abs(x2 - x1), abs(y2 - y1)) / 4)
        points += [(x1 + (x2 - x1) * i / count, y1 + (y2 - y1) * i / count) for i in range(1, count)]
    return points


def line_chart(frame: Frame, lines: Sequence[Line], *, label: str, extra: Iterable[Markup] = ()) -> Markup:
    """Lines over axes, levels below them and their names in front; ``extra`` marks, in pixels, are drawn last."""
    marks = _axes(frame)
    for line in lines:
        pixels = [frame.at(x, y) for x, y in line.points]
        hint = [element("title", line.hint)] if line.hint else []
        shape, radius = ("ring", 5.5) if line.marker == "ring" else ("dot", 3.0)
        dots = [circle(pixel, f"{shape} {line.classes}", radius) for pixel in pixels] if line.marker else []
        marks.append(element("g", *hint, polyline(pixels, line.classes), *dots))
    marks += [_level(frame, level, lines) for level in frame.levels]
    return svg(frame.width, frame.height, [*marks, *_end_names(frame, lines), *extra], label=label)


def _end_names(frame: Frame, lines: Sequence[Line]) -> list[Markup]:
    """Names of lines at the height of their ends, moved apart where ends meet, with a thin line to an end far away."""
    ends = sorted(((frame.at(*line.points[-1]), line) for line in lines if line.name), key=lambda end: end[0][1])
    x, heights = frame.width - frame.right + _LABEL_GAP, [y for (_, y), _ in ends]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + _LABEL_HEIGHT)
    lowest = float(frame.height - frame.bottom)
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], lowest)
        lowest = heights[index] - _LABEL_HEIGHT
    marks = []
    for (end, line), y in zip(ends, heights, strict=True):
        if math.dist(end, (x, y)) > _NEAR:
            marks.append(element("line", class_="lead", x1=end[0] + 3, y1=end[1], x2=float(x - 2), y2=y))
        marks.append(element("text", line.name, class_=f"end-name {line.classes.split()[0]}", x=x, y=y, dy=".35em"))
    return marks


# --- numbered points ---------------------------------------------------------------------------------------------


def scatter(frame: Frame, marks: Sequence[Mark], stair: Sequence[Point], *, label: str) -> Markup:
    """Numbered points with their intervals, in front of a line of steps.

    A number stands where it covers neither a point, nor an interval, nor another number; from far away a thin line
    leads to its point. ``stair`` are the corners of the line, in values.
    """
    drawn = _axes(frame)
    if stair:
        drawn.append(polyline([frame.at(*point) for point in stair], "c0 thin"))
    line = _along([frame.at(*point) for point in stair])
    marks = sorted(marks, key=lambda mark: mark.filled)  # what is on the line lies in front
    at = [frame.at(mark.x, mark.y) for mark in marks]
    spans = [(frame.at(mark.x, mark.high)[1], frame.at(mark.x, mark.low)[1]) for mark in marks]
    for mark, (x, y), (top, bottom) in zip(marks, at, spans, strict=True):
        dot = circle((x, y), f"{'dot' if mark.filled else 'ring open'} {mark.colour}", 4.5)
        drawn.append(element("g", element("title", mark.hint), span((x, top), (x, bottom), mark.colour), dot))
    for mark, point, name in zip(marks, at, _names(frame, marks, at, spans, line), strict=True):
        if math.dist(point, name) > _NEAR:
            (x1, y1), (x2, y2) = _towards(point, name, 6), _towards(name, point, 7)
            drawn.append(element("line", class_="lead", x1=x1, y1=y1, x2=x2, y2=y2))
        classes = f"name middle {mark.colour}"
        drawn.append(element("text", mark.number, class_=classes, x=name[0], y=name[1], dy=".35em"))
    return svg(frame.width, frame.height, drawn, label=label)


_NEAR = 14  # pixels between a point and a number that needs no line


def _towards(start: Point, end: Point, pixels: float) -> Point:
    ratio = pixels / math.dist(start, end)
    return start[0] + ratio * (end[0] - start[0]), start[1] + ratio * (end[1] - start[1])


def _meet(one: Point, other: Point, across: float, down: float) -> bool:
    return abs(one[0] - other[0]) < across and abs(one[1] - other[1]) < down


def _names(
    frame: Frame,
    marks: Sequence[Mark],
    at: Sequence[Point],
    spans: Sequence[tuple[float, float]],
    line: Sequence[Point],
) -> list[Point]:
    """The middle of every mark's number: the nearest point, in rings around its mark, that is free."""
    turns = [math.radians(angle) for angle in (-45, 45, 225, 135, 0, 180, -90, 90)]
    chosen: list[Point] = []
    for (x, y), mark in zip(at, marks, strict=True):
        half = 3.5 * len(str(mark.number)) + 1.5
        rings = [(x + away * math.cos(turn), y + away * math.sin(turn)) for away in range(12, 76, 8) for turn in turns]

        def crowding(number: Point, half: float = half) -> tuple[bool, int, int, int, bool]:
            """Whether it lies outside of the plot, and what it covers, the worst first."""
            px, py = number
            inside = frame.left + half <= px <= frame.width - frame.right and 6 <= py <= frame.height - frame.bottom - 7
            intervals = sum(
                abs(px - ox) < half + 1.5 and top - 6 < py < bottom + 6
                for (ox, _), (top, bottom) in zip(at, spans, strict=True)
            )
            return (
                not inside,
                sum(_meet(number, other, 2 * half + 1, 13) for other in chosen),
                sum(_meet(number, other, half + 5, 11) for other in at),
                intervals,
                any(_meet(number, other, half, 6) for other in line),
            )

        chosen.append(min(rings, key=crowding))  # the first of equals is the nearest
    return chosen


# --- bars in the cells of a table --------------------------------------------------------------------------------


def rate_bar(rate: Mapping[str, Any], classes: str, *, bar: bool = True) -> Markup:
    """A rate, with ``mean``, ``low`` and ``high``, from 0 to 100 %, as wide as its cell.

    Args:
        bar: draw a bar from 0 up to the mean; else a dot at the mean.
    """
    mean, low, high = rate["mean"], rate["low"], rate["high"]
    base = 17.5 if bar else 10
    marks = [element("line", class_="grid", x1=0, x2="100%", y1=base, y2=base)]
    if bar:
        width = f"{100 * mean:.2f}%"
        marks.append(element("rect", class_=f"bar {classes}", x="0.00%", y=3, width=width, height=14))
    marks.append(element("line", class_="whisker", x1=f"{100 * low:.2f}%", x2=f"{100 * high:.2f}%", y1=10, y2=10))
    marks += [] if bar else [element("circle", class_=f"dot {classes}", cx=f"{100 * mean:.2f}%", cy=10, r=4)]
    label = f"{coefficient(100 * mean)} %, interval {coefficient(100 * low)} to {coefficient(100 * high)} %"
    return element("svg", *marks, class_="interval", role="img", aria_label=label, width="100%", height=20)


def difference_bar(entry: Mapping[str, Any], reach: float, classes: str) -> Markup:
    """A difference with its interval on an axis from -``reach`` to ``reach``, zero in the middle."""

    def across(value: float) -> str:
        return f"{50 + 48 * value / reach:.2f}%"

    mean, low, high = entry["mean"], entry["low"], entry["high"]
    marks = [
        element("line", class_="grid", x1=0, x2="100%", y1=10, y2=10),
        element("line", class_="axis", x1="50%", x2="50%", y1=2, y2=18),
        element("line", class_=f"range {classes}", x1=across(low), x2=across(high), y1=10, y2=10),
        element("circle", class_=f"dot {classes}", cx=across(mean), cy=10, r=4),
    ]
    label = f"{coefficient(100 * mean)} points, interval {coefficient(100 * low)} to {coefficient(100 * high)}"
    return element("svg", *marks, class_="interval", role="img", aria_label=label, width="100%", height=20)
