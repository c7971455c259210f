"""A binary tree whose nodes show how much of each name is in one latent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from unspoken.draw.charts import Point, circle, element, svg
from unspoken.draw.formats import coefficient

WIDEST, LARGEST_PITCH = 246, 48  # pixels: of all leaves together, and between two of them
DROP = 54  # pixels between levels
RADIUS = 11
SHOWN_FROM = 0.05  # smaller coefficients are within the noise of the read-out and would only clutter
_MARGIN_TOP, _MARGIN_SIDE, _BELOW = 18, 4, 34
VALUE_DROP = 13  # from the circle's lower edge to the baseline of the value


def _pitch(depth: int) -> float:
    return min(LARGEST_PITCH, WIDEST / 2 ** (depth - 1))


def layout(depth: int) -> list[Point]:
    """Centres of a complete tree's nodes in heap order: leaves evenly spaced, parents above their middle."""
    leaves = 2 ** (depth - 1)
    centres = []
    for level in range(depth):
        width = _pitch(depth) * leaves / 2**level
        y = float(_MARGIN_TOP + level * DROP)
        centres += [(_MARGIN_SIDE + width * (index + 0.5), y) for index in range(2**level)]
    return centres


def size(depth: int) -> Point:
    """Width and height of the drawing."""
    return _pitch(depth) * 2 ** (depth - 1) + 2 * _MARGIN_SIDE, _MARGIN_TOP + (depth - 1) * DROP + _BELOW


@dataclass(frozen=True, kw_only=True)
class Step:
    """One latent of one problem."""

    heap: Sequence[str]  # names of the tree in heap order
    coefficients: Mapping[str, float]  # of the latent, by name
    right: str  # the name that this step should mean
    spoken: str | None  # the name that was spoken for it, if any

    @property
    def depth(self) -> int:
        """Levels of the tree."""
        return len(self.heap).bit_length()

    def value(self, name: str) -> str:
        """The coefficient of a name as it is written; nothing where it is too small."""
        value = self.coefficients.get(name, 0.0)
        # Without its zero before the point it is as wide as its circle.
        return re.sub(r"\b0\.", ".", coefficient(value)) if abs(value) >= SHOWN_FROM else ""

    def outside(self) -> tuple[str, float] | None:
        """The name outside the tree with the largest coefficient, if it is large enough to show."""
        others = {name: value for name, value in self.coefficients.items() if name not in self.heap}
        name = max(others, key=lambda other: abs(others[other]), default="")
        return (name, others[name]) if others and abs(others[name]) >= SHOWN_FROM else None


def _link(parent: Point, left: Point, right: Point, parent_value: str) -> Markup:
    start = parent[1] + RADIUS + (VALUE_DROP + 4 if parent_value else 0)
    end = left[1] - RADIUS
    arms = f"M{left[0]:.1f} {end:g}V{end - 8:g}H{right[0]:.1f}V{end:g}"
    return element("path", class_="link", d=f"M{parent[0]:.1f} {start:g}V{end - 8:g}{arms}")


def _node(step: Step, centre: Point, name: str) -> Markup:
    x, y = centre
    value = step.coefficients.get(name, 0.0)
    weight = min(max(value, 0.0), 1.0)
    marks = [element("title", f"{name}: {coefficient(value, 3)}"), circle(centre, "node", RADIUS)]
    if weight >= SHOWN_FROM:
        opacity = f"{weight:.2f}"
        marks.append(element("circle", class_="mass", cx=x, cy=y, r=RADIUS, fill_opacity=opacity))
    if name == step.right:
        marks.append(circle(centre, "right", RADIUS + 2.5))
    # A letter has the colour that stands out from the mixture of shade and paper.
    letter = "letter full" if weight > 0.7 else "letter some" if weight >= SHOWN_FROM else "letter"
    marks.append(element("text", name, class_=letter, x=x, y=y, dy=".36em"))
    if written := step.value(name):
        marks.append(element("text", written, class_="value", x=x, y=y + RADIUS + VALUE_DROP))
    if name == step.spoken:
        marks.append(circle((x + RADIUS - 1, y - RADIUS + 1), "spoken", 4.5))
    return element("g", *marks)


def draw(step: Step, *, label: str) -> Markup:
    """The tree of one step as SVG."""
    at = layout(step.depth)
    links = [
        _link(at[node], at[2 * node + 1], at[2 * node + 2], step.value(step.heap[node])) for node in range(len(at) // 2)
    ]
    nodes = [_node(step, centre, name) for centre, name in zip(at, step.heap, strict=True)]
    return svg(*size(step.depth), [*links, *nodes], label=label, classes="tree")
