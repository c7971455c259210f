"""Clouds of vectors on two principal components."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from unspoken.draw.chains import visible
from unspoken.draw.charts import Point, circle, element, polyline, svg

LARGEST = 470  # pixels of the longer side
_EDGE = 26  # free pixels on every side, for labels
Vector = Sequence[float]


class Dot(NamedTuple):
    """A latent."""

    name: str  # in whose colour it is drawn
    at: Vector
    # Of its chain and of itself in every drawing of the section, see `latent_name`; empty where its chain is not drawn.
    chain: str = ""
    latent: str = ""
    hint: str = ""  # shown where the pointer rests on it


def named_cloud(names: Mapping[str, Vector], dots: Sequence[Dot], *, label: str) -> Markup:
    """Names as squares, and translucent dots in the colour of their names; a line joins those of one chain."""
    at, width, height = _scale([*names.values(), *(dot.at for dot in dots)])
    squares = {name: at(vector) for name, vector in names.items()}
    labels = spread(squares)
    groups = {name: _group(index) for index, name in enumerate(squares)}
    chains = [
        element("g", *_path(list(own), at, groups), class_="path", **({"data_chain": chain} if chain else {}))
        for chain, own in groupby(dots, lambda dot: dot.chain)
    ]
    marks, focus = [], []
    for index, (name, (x, y)) in enumerate(squares.items()):
        square = element("rect", class_="row", x=x - 3, y=y - 3, width=6, height=6)
        written = element("text", visible(name), class_="name", x=labels[name][0], y=labels[name][1], dy=".36em")
        marks.append(element("g", square, written, class_=f"n k{index}", style=groups[name][1]))
        focus.append(f".pca:has(.n.k{index}:hover) .n:not(.k{index}){{opacity:.12}}")
    style = element("style", Markup("".join(focus)))
    return svg(width, height, [style, *chains, *marks], label=label, classes="pca")


def _group(index: int) -> tuple[str, str]:
    """The class and the hue of a name: by the golden angle, neighbours in a list get hues that are far apart."""
    return f"k{index}", f"--h:{137.508 * index % 360:.0f}"


def _path(dots: Sequence[Dot], at: Callable[[Vector], Point], groups: Mapping[str, tuple[str, str]]) -> list[Markup]:
    """The latents of one chain, or of none."""
    marks = [polyline([at(dot.at) for dot in dots], "c0 thin")] if dots[0].chain else []
    for dot in dots:
        group, hue = groups.get(dot.name, ("", ""))
        x, y = at(dot.at)
        attributes: dict[str, object] = {"style": hue} if hue else {}
        if dot.latent:
            attributes["data_latent"] = dot.latent
        hint = [element("title", dot.hint)] if dot.hint else []
        marks.append(element("circle", *hint, class_=f"cloud n {group}".strip(), cx=x, cy=y, r=4.5, **attributes))
    return marks


def two_clouds(squares: Sequence[Vector], dots: Sequence[Vector], *, label: str) -> Markup:
    """Vectors of two kinds, as squares and as dots."""
    at, width, height = _scale([*squares, *dots])
    corners = [(x - 2, y - 2) for x, y in map(at, squares)]
    rows = [element("rect", class_="cloud", x=x, y=y, width=4, height=4) for x, y in corners]
    states = [circle(at(vector), "cloud", 2.5) for vector in dots]
    marks = [element("g", *rows, class_="c1"), element("g", *states, class_="c2")]
    return svg(width, height, marks, label=label, classes="pca")


def _scale(points: Sequence[Vector]) -> tuple[Callable[[Vector], Point], float, float]:
    """The way from a plane to pixels, and the width and height of the drawing."""
    left, right = min(point[0] for point in points), max(point[0] for point in points)
    low, high = min(point[1] for point in points), max(point[1] for point in points)
    # One scale for both directions: distances in the drawing are distances in the plane.
    scale = (LARGEST - 2 * _EDGE) / max(right - left, high - low, 1e-6)

    def at(point: Vector) -> Point:
        return _EDGE + scale * (point[0] - left), _EDGE + scale * (high - point[1])

    return at, max(at((right, low))[0] + _EDGE, 260.0), at((right, low))[1] + _EDGE


def spread(marks: Mapping[str, Point], *, gap: float = 16.0, clear: float = 12.0) -> dict[str, Point]:
    """Centres for the labels of some marks, moved until none is on another label or on a mark.

    Args:
        gap: pixels between the middles of two labels.
        clear: pixels between the middle of a label and any mark.
    """
    centres = {name: (x + 10.0, y - 10.0) for name, (x, y) in marks.items()}
    for _ in range(200):
        before = dict(centres)
        for one in centres:
            others = [(centre, gap) for name, centre in centres.items() if name != one]
            for (x, y), distance in [*others, *((mark, clear) for mark in marks.values())]:
                dx, dy = centres[one][0] - x, centres[one][1] - y
                apart = math.hypot(dx, dy)
                if apart >= distance:
                    continue
                # Labels at one point have no direction of their own: part them upwards.
                ux, uy = (dx / apart, dy / apart) if apart else (0.0, -1.0)
                push = (distance - apart) / 2 + 0.1
                centres[one] = (centres[one][0] + ux * push, centres[one][1] + uy * push)
        if centres == before:
            break
    return centres
