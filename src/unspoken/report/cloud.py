"""Clouds of vectors on two principal components."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from unspoken.report.charts import Point, number, svg
from unspoken.report.figures import Panel
from unspoken.report.findings import Results

LARGEST = 470  # pixels of the longer side
_EDGE = 26  # room for labels


def pca_panel(results: Results) -> Panel | None:
    """Table rows of the names as squares, predictions as translucent dots in the colour of the right name."""
    pca = results.get("pca")
    if not pca or not pca.get("names"):
        return None
    at, width, height = _placed([*pca["names"].values(), *(entry["at"] for entry in pca["predictions"])])
    squares = {name: at(point) for name, point in pca["names"].items()}
    labels = spread(squares)
    clouds, names, focus = [], [], []
    for index, (name, (x, y)) in enumerate(squares.items()):
        # Seven is prime to fifteen: neighbours in the alphabet get hues that are far apart.
        hue = 360 * (index * 7 % len(squares)) / len(squares)
        opening = f'<g class="n k{index}" style="--h:{hue:.0f}">'
        dots = [at(entry["at"]) for entry in pca["predictions"] if entry["name"] == name]
        clouds.append(opening + "".join(_dot(dot, 4.5) for dot in dots) + "</g>")
        square = f'<rect class="row" x="{number(x - 3)}" y="{number(y - 3)}" width="6" height="6"/>'
        place = f'x="{number(labels[name][0])}" y="{number(labels[name][1])}"'
        names.append(f'{opening}{square}<text class="name" {place} dy=".36em">{escape(name)}</text></g>')
        focus.append(f".pca:has(.k{index}:hover) .n:not(.k{index}){{opacity:.12}}")
    parts = [f"<style>{''.join(focus)}</style>", *clouds, *names]
    label = "Names and predicted latents on two principal components"
    return Panel(title="", drawing=svg(width, height, parts, label=label, classes="pca"))


def plane_panel(plane: Mapping[str, Any]) -> Panel | None:
    """Rows of the embedding table as squares and hidden states as dots, on the main plane of both."""
    if not plane["embeddings"] or not plane["hidden"]:
        return None
    at, width, height = _placed([*plane["embeddings"], *plane["hidden"]])
    squares = (at(point) for point in plane["embeddings"])
    parts = ['<g class="c1">']
    parts += [f'<rect class="cloud" x="{number(x - 2)}" y="{number(y - 2)}" width="4" height="4"/>' for x, y in squares]
    parts += ['</g><g class="c2">', *(_dot(at(point), 2.5) for point in plane["hidden"]), "</g>"]
    legend = (("c1 squared", "rows of the embedding table"), ("c2 dotted", "hidden states"))
    label = "Embedding rows and hidden states on two principal components"
    return Panel(title="", legend=legend, drawing=svg(width, height, parts, label=label, classes="pca"))


def _placed(points: Sequence[Sequence[float]]) -> tuple[Callable[[Sequence[float]], Point], float, float]:
    """The way from a plane to pixels, and the width and height of the drawing."""
    left, right = min(point[0] for point in points), max(point[0] for point in points)
    low, high = min(point[1] for point in points), max(point[1] for point in points)
    # One scale for both directions: distances in the drawing are distances in the plane.
    scale = (LARGEST - 2 * _EDGE) / max(right - left, high - low, 1e-6)

    def at(point: Sequence[float]) -> Point:
        return _EDGE + scale * (point[0] - left), _EDGE + scale * (high - point[1])

    return at, max(at((right, low))[0] + _EDGE, 260.0), at((right, low))[1] + _EDGE


def _dot(place: Point, radius: float) -> str:
    return f'<circle class="cloud" cx="{number(place[0])}" cy="{number(place[1])}" r="{number(radius)}"/>'


def spread(marks: Mapping[str, Point], *, gap: float = 16.0, clear: float = 12.0) -> dict[str, Point]:
    """Places for the labels of some marks, moved until none is on another label or on a mark.

    Args:
        gap: pixels between the middles of two labels.
        clear: pixels between the middle of a label and any mark.
    """
    found = {name: (x + 10.0, y - 10.0) for name, (x, y) in marks.items()}
    for _ in range(200):
        moved = False
        for one in found:
            others = [(place, gap) for name, place in found.items() if name != one]
            for (x, y), distance in [*others, *((mark, clear) for mark in marks.values())]:
                dx, dy = found[one][0] - x, found[one][1] - y
                apart = math.hypot(dx, dy)
                if apart >= distance:
                    continue
                moved = True
                # Labels in one place have no direction of their own: part them upwards.
                ux, uy = (dx / apart, dy / apart) if apart > 1e-6 else (0.0, -1.0)
                push = (distance - apart) / 2 + 0.1
                found[one] = (found[one][0] + ux * push, found[one][1] + uy * push)
        if not moved:
            break
    return found
