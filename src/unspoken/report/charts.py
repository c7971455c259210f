"""Small charts as inline SVG: drawn in pixels at the size they are shown, coloured by the page's style sheet.

A colour is a class (``c1`` to ``c6``, ``c0`` for grey), never a value, so that light and dark mode are the style sheet's
business. Text is text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from unspoken.report.formats import coefficient

Point = tuple[float, float]
Tick = tuple[float, str]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One direction of a chart: its range, its ticks, and whether it is logarithmic."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    log: bool = False
    title: str = ""

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high end; values beyond an end lie on it."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series: joined points, with ``classes`` out of the style sheet (colour, ``thin``, ``dashed``)."""

    points: Sequence[Point]
    classes: str
    marker: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point with its interval, and the number by which a legend names it.

    Attributes:
        low, high: ends of the interval of y.
        colour: class out of the style sheet.
        filled: a dot instead of a ring.
        hint: shown where the pointer rests on it.
    """

    x: float
    y: float
    low: float
    high: float
    number: int
    colour: str
    filled: bool = True
    hint: str = ""


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
    left: int = 44
    right: int = 10
    top: int = 10
    bottom: int = 36
    levels: tuple[Level, ...] = field(default=())

    def at(self, x: float, y: float) -> Point:
        """Pixels of a point."""
        across = self.width - self.left - self.right
        down = self.height - self.top - self.bottom
        return self.left + across * self.x.place(x), self.top + down * (1 - self.y.place(y))


# --- axes --------------------------------------------------------------------------------------------------------


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover a range: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(1, wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def linear(
    values: Iterable[float], write: Callable[[float], str] = "{:g}".format, *, title: str = "", wanted: int = 5
) -> Axis:
    """An axis from round number to round number around the values."""
    known = list(values) or [0.0, 1.0]
    ticks = nice_ticks(min(known), max(known), wanted)
    return Axis(low=ticks[0], high=ticks[-1], ticks=tuple((tick, write(tick)) for tick in ticks), title=title)


def logarithmic(values: Iterable[float], write: Callable[[float], str] = "{:g}".format, *, most: int = 7) -> Axis:
    """An axis over the powers of ten, with 1, 2 and 5 of each if that makes no more than ``most`` ticks.

    Values that are not positive are left out.
    """
    known = [value for value in values if value > 0] or [0.1, 1.0]
    low, high = min(known), max(known)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    grid = [factor * 10.0**power for power in powers for factor in (1.0, 2.0, 5.0)]
    below = max(mark for mark in grid if mark <= low * 1.001)
    above = min(mark for mark in grid if mark >= high * 0.999 and mark > below)
    marks = [mark for mark in grid if below <= mark <= above]
    if len(marks) > most:
        marks = [mark for mark in marks if math.isclose(math.log10(mark), round(math.log10(mark)))]
    return Axis(low=below, high=above, ticks=tuple((mark, write(mark)) for mark in marks), log=True)


def shares(low: float = 0.0, *, title: str = "") -> Axis:
    """An axis in per cent from a round share at or below ``low`` to 100 %."""
    # Starting nearer to the top shows small losses; the caption must say that the axis is cut.
    choices = ((0.99, 0.002), (0.95, 0.01), (0.9, 0.02), (0.8, 0.05), (0.6, 0.1), (0.4, 0.1), (0.0, 0.25))
    start, step = next((choice for choice in choices if low >= choice[0]), choices[-1])
    marks = [start + index * step for index in range(round((1 - start) / step) + 1)]
    digits = 1 if step < 0.01 else 0
    ticks = tuple((mark, f"{100 * mark:.{digits}f} %") for mark in marks)
    return Axis(low=start, high=1.0, ticks=ticks, title=title)


def training_steps(values: Iterable[float], *, title: str = "step") -> Axis:
    """An axis of optimiser steps from 0."""
    last = max([*values, 1.0])
    ticks = [tick for tick in nice_ticks(0, last, 5) if tick <= last * 1.001]
    return Axis(low=0, high=last, ticks=tuple((tick, f"{tick:,.0f}") for tick in ticks), title=title)


# --- marks -------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".removesuffix(".0")


def polyline(points: Iterable[Point], classes: str) -> str:
    """A line through pixels."""
    return f'<polyline class="line {classes}" points="{" ".join(f"{number(x)},{number(y)}" for x, y in points)}"/>'


def svg(width: float, height: float, content: Iterable[str], *, label: str, classes: str = "") -> str:
    """A drawing at its natural size; narrower screens shrink it."""
    return (
        f'<svg class="{classes}" role="img" aria-label="{escape(label)}" width="{number(width)}" height="{number(height)}" '
        f'viewBox="0 0 {number(width)} {number(height)}">{"".join(content)}</svg>'
    )


def _axes(frame: Frame) -> list[str]:
    parts = []
    bottom, right = frame.height - frame.bottom, frame.width - frame.right
    for value, text in frame.y.ticks:
        y = number(frame.at(frame.x.low, value)[1])
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick end" x="{frame.left - 6}" y="{y}" dy=".35em">{escape(text)}</text>')
    for value, text in frame.x.ticks:
        x = frame.at(value, frame.y.low)[0]
        # The last label would hang over the edge if it were centred.
        anchor = " end" if x > right - 12 and len(text) > 3 else ""
        place = right if anchor else x
        parts.append(f'<line class="axis" x1="{number(x)}" x2="{number(x)}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick middle{anchor}" x="{number(place)}" y="{bottom + 16}">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{frame.left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    if frame.x.title:
        middle = number((frame.left + right) / 2)
        parts.append(f'<text class="tick middle" x="{middle}" y="{frame.height - 3}">{escape(frame.x.title)}</text>')
    return parts


def _level(frame: Frame, level: Level, lines: Sequence[Line]) -> str:
    """A level with its name where it covers the least of the lines: at either end, above or below."""
    y = frame.at(frame.x.low, level.value)[1]
    right = frame.width - frame.right
    width = 5.8 * len(level.name)
    bent = [place for line in lines for place in _along([frame.at(*point) for point in line.points])]

    def covered(start: float, base: float) -> int:
        return sum(start - 3 <= px <= start + width + 3 and base - 12 <= py <= base + 4 for px, py in bent)

    places = [(start, y + drop) for drop in (-5.5, 13.0) for start in (right - width, frame.left + 4.0)]
    places = [place for place in places if place[1] <= frame.height - frame.bottom]
    start, base = min(places, key=lambda place: covered(*place))
    x, anchor = (start, "start") if start < right - width else (right, "end")
    return (
        f'<line class="level" x1="{frame.left}" x2="{right}" y1="{number(y)}" y2="{number(y)}"/>'
        f'<text class="note {anchor}" x="{number(x)}" y="{number(base)}">{escape(level.name)}</text>'
    )


def _along(pixels: Sequence[Point]) -> list[Point]:
    """Places along a line, a few pixels apart."""
    found = list(pixels)
    for (x1, y1), (x2, y2) in pairwise(pixels):
        count = int(max(abs(x2 - x1), abs(y2 - y1)) / 4)
        found += [(x1 + (x2 - x1) * i / count, y1 + (y2 - y1) * i / count) for i in range(1, count)]
    return found


def _marker(point: Point, line: Line) -> str:
    x, y = number(point[0]), number(point[1])
    if line.marker == "ring":
        return f'<circle class="ring {line.classes}" cx="{x}" cy="{y}" r="5.5"/>'
    return f'<circle class="dot {line.classes}" cx="{x}" cy="{y}" r="3"/>'


def line_chart(frame: Frame, lines: Sequence[Line], *, label: str, extra: Iterable[str] = ()) -> str:
    """Lines over axes, levels behind them and their names in front.

    Args:
        label: what the drawing shows, for a reader who does not see it.
        extra: marks already in pixels, drawn last.
    """
    parts = _axes(frame)
    for line in lines:
        pixels = [frame.at(x, y) for x, y in line.points]
        hint = f"<title>{escape(line.hint)}</title>" if line.hint else ""
        parts.append(f"<g>{hint}{polyline(pixels, line.classes)}")
        parts += [_marker(pixel, line) for pixel in pixels] if line.marker else []
        parts.append("</g>")
    parts += [_level(frame, level, lines) for level in frame.levels]
    return svg(frame.width, frame.height, [*parts, *extra], label=label)


def scatter(frame: Frame, marks: Sequence[Mark], stair: Sequence[Point], *, label: str) -> str:
    """Numbered points with their intervals, in front of a line of steps.

    A number stands where it covers neither a point, nor an interval, nor another number; from far away a thin line leads
    to its point.

    Args:
        stair: corners of the line, in values.
        label: what the drawing shows, for a reader who does not see it.
    """
    parts = _axes(frame)
    if stair:
        parts.append(polyline([frame.at(*point) for point in stair], "c0 thin"))
    line = _along([frame.at(*point) for point in stair])
    marks = sorted(marks, key=lambda mark: mark.filled)  # what is on the line lies in front
    at = [frame.at(mark.x, mark.y) for mark in marks]
    spans = [(frame.at(mark.x, mark.high)[1], frame.at(mark.x, mark.low)[1]) for mark in marks]
    for mark, (x, y), (top, bottom) in zip(marks, at, spans, strict=True):
        place = f'cx="{number(x)}" cy="{number(y)}"'
        dot = f'<circle class="{"dot" if mark.filled else "ring open"} {mark.colour}" {place} r="4.5"/>'
        span = f'<line class="range {mark.colour}" x1="{number(x)}" x2="{number(x)}" y1="{number(top)}" y2="{number(bottom)}"/>'
        parts.append(f"<g><title>{escape(mark.hint)}</title>{span}{dot}</g>")
    for mark, point, name in zip(marks, at, _names(frame, marks, at, spans, line), strict=True):
        if math.dist(point, name) > _NEAR:
            x1, y1 = _towards(point, name, 6)
            x2, y2 = _towards(name, point, 7)
            ends = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
            parts.append(f'<line class="lead" {ends}/>')
        parts.append(
            f'<text class="name middle {mark.colour}" x="{number(name[0])}" y="{number(name[1])}" dy=".35em">'
            f"{mark.number}</text>"
        )
    return svg(frame.width, frame.height, parts, label=label)


_NEAR = 14  # pixels between a point and a number that needs no line


def _towards(start: Point, end: Point, pixels: float) -> Point:
    share = pixels / math.dist(start, end)
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _names(
    frame: Frame,
    marks: Sequence[Mark],
    at: Sequence[Point],
    spans: Sequence[tuple[float, float]],
    line: Sequence[Point],
) -> list[Point]:
    """The middle of every mark's number: the nearest place, in rings around its point, that is free."""
    turns = [math.radians(angle) for angle in (-45, 45, 225, 135, 0, 180, -90, 90)]
    placed: list[Point] = []
    for (x, y), mark in zip(at, marks, strict=True):
        half = 3.5 * len(str(mark.number)) + 1.5
        rings = [(x + away * math.cos(turn), y + away * math.sin(turn)) for away in range(12, 76, 8) for turn in turns]

        def crowding(place: Point, half: float = half) -> float:
            px, py = place
            outside = not (
                frame.left + half <= px <= frame.width - frame.right and 6 <= py <= frame.height - frame.bottom - 7
            )
            points = sum(abs(px - ox) < half + 5 and abs(py - oy) < 11 for ox, oy in at)
            lines = sum(
                abs(px - ox) < half + 1.5 and top - 6 < py < bottom + 6
                for (ox, _), (top, bottom) in zip(at, spans, strict=True)
            )
            names = sum(abs(px - ox) < 2 * half + 1 and abs(py - oy) < 13 for ox, oy in placed)
            struck = any(abs(px - ox) < half and abs(py - oy) < 6 for ox, oy in line)
            return 8 * outside + 4 * names + 2 * points + lines + struck

        placed.append(min(rings, key=crowding))  # the first of equals is the nearest
    return placed


def interval_bar(
    mean: float, low: float, high: float, classes: str, *, ticks: Sequence[float] = (), bar: bool = True
) -> str:
    """A share from 0 to 100 % with its interval, as wide as the cell it stands in.

    Args:
        ticks: shares to mark with a small open diamond.
        bar: draw a bar from 0 up to the mean; else a dot at the mean.
    """
    base = 17.5 if bar else 10
    parts = [f'<line class="grid" x1="0" x2="100%" y1="{base}" y2="{base}"/>']
    if bar:
        parts.append(f'<rect class="bar {classes}" x="0" y="3" width="{100 * mean:.2f}%" height="14"/>')
    parts.append(f'<line class="whisker" x1="{100 * low:.2f}%" x2="{100 * high:.2f}%" y1="10" y2="10"/>')
    if not bar:
        parts.append(f'<circle class="dot {classes}" cx="{100 * mean:.2f}%" cy="10" r="4"/>')
    for share in ticks:
        # A nested drawing takes a place in per cent and a shape in pixels.
        path = f'<path class="diamond {classes}" d="M0-4.5 4.5 0 0 4.5-4.5 0z"/>'
        parts.append(f'<svg x="{100 * share:.2f}%" y="10" overflow="visible">{path}</svg>')
    label = f"{coefficient(100 * mean)} %, interval {coefficient(100 * low)} to {coefficient(100 * high)} %"
    return f'<svg class="interval" role="img" aria-label="{label}" width="100%" height="20">{"".join(parts)}</svg>'
