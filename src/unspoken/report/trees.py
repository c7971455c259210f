"""A binary tree whose nodes show how much of each name is in one latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from unspoken.report.charts import number, svg
from unspoken.report.formats import coefficient

WIDEST, LARGEST_PITCH = 246, 48  # pixels: of all leaves together, and between two of them
DROP = 54  # pixels between levels
RADIUS = 11
SHOWN_FROM = 0.05  # smaller coefficients are within the noise of the read-out and would only clutter
_MARGIN_TOP, _MARGIN_SIDE, _BELOW = 18, 4, 34
_LETTER_SIZE, _VALUE_SIZE = 12.0, 10.0
_VALUE_DROP = 13  # from the circle's lower edge to the baseline of the value


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where a label lies, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether two labels share a pixel."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


@dataclass(frozen=True, kw_only=True)
class Place:
    """Centre of one node's circle."""

    x: float
    y: float

    def boxes(self, value: str) -> list[Box]:
        """The circle with its letter, and the value below; digits of the page's sans serif are 0.58 em wide."""
        half = 0.58 * _VALUE_SIZE * len(value) / 2
        base = self.y + RADIUS + _VALUE_DROP
        circle = Box(left=self.x - RADIUS, top=self.y - RADIUS, right=self.x + RADIUS, bottom=self.y + RADIUS)
        return [circle, Box(left=self.x - half, top=base - 0.75 * _VALUE_SIZE, right=self.x + half, bottom=base)]


def _pitch(depth: int) -> float:
    return min(LARGEST_PITCH, WIDEST / 2 ** (depth - 1))


def layout(depth: int) -> list[Place]:
    """Places of a complete tree's nodes in heap order: leaves evenly spaced, a parent above the middle of its children."""
    leaves = 2 ** (depth - 1)
    places = []
    for level in range(depth):
        span = _pitch(depth) * leaves / 2**level
        y = _MARGIN_TOP + level * DROP
        places += [Place(x=_MARGIN_SIDE + span * (index + 0.5), y=y) for index in range(2**level)]
    return places


def size(depth: int) -> tuple[float, float]:
    """Width and height of the drawing."""
    return _pitch(depth) * 2 ** (depth - 1) + 2 * _MARGIN_SIDE, _MARGIN_TOP + (depth - 1) * DROP + _BELOW


@dataclass(frozen=True, kw_only=True)
class Step:
    """One latent of one problem.

    Attributes:
        heap: names of the tree in heap order.
        coefficients: of the latent, by name.
        right: the name that this step should mean.
        said: what was spoken for it, if anything.
    """

    heap: Sequence[str]
    coefficients: Mapping[str, float]
    right: str
    said: str | None


def depth_of(step: Step) -> int:
    """Levels of the step's tree."""
    return len(step.heap).bit_length()


def _value(step: Step, name: str) -> str:
    value = step.coefficients.get(name, 0.0)
    return coefficient(value) if abs(value) >= SHOWN_FROM else ""


def _link(parent: Place, left: Place, right: Place, parent_value: str) -> str:
    start = parent.y + RADIUS + (_VALUE_DROP + 4 if parent_value else 0)
    end = left.y - RADIUS
    arms = f"M{number(left.x)} {number(end)}V{number(end - 8)}H{number(right.x)}V{number(end)}"
    return f'<path class="link" d="M{number(parent.x)} {number(start)}V{number(end - 8)}{arms}"/>'


def _node(step: Step, place: Place, name: str) -> str:
    value = step.coefficients.get(name, 0.0)
    share = min(max(value, 0.0), 1.0)
    x, y = number(place.x), number(place.y)
    parts = [f'<circle class="node" cx="{x}" cy="{y}" r="{RADIUS}"/>']
    if share >= SHOWN_FROM:
        parts.append(f'<circle class="mass" cx="{x}" cy="{y}" r="{RADIUS}" fill-opacity="{share:.2f}"/>')
    if name == step.right:
        parts.append(f'<circle class="right" cx="{x}" cy="{y}" r="{RADIUS + 2.5}"/>')
    # A letter has the colour that stands out from the mixture of shade and paper.
    letter = "letter full" if share > 0.7 else "letter some" if share >= SHOWN_FROM else "letter"
    parts.append(f'<text class="{letter}" x="{x}" y="{y}" dy=".36em">{escape(name)}</text>')
    if shown := _value(step, name):
        base = number(place.y + RADIUS + _VALUE_DROP)
        parts.append(f'<text class="value" x="{x}" y="{base}">{shown}</text>')
    if name == step.said:
        badge = f'cx="{number(place.x + RADIUS - 1)}" cy="{number(place.y - RADIUS + 1)}"'
        parts.append(f'<circle class="said" {badge} r="4.5"/>')
    return f"<g><title>{escape(name)}: {coefficient(value, 3)}</title>{''.join(parts)}</g>"


def draw(step: Step, *, label: str) -> str:
    """The tree of one step as SVG."""
    depth = depth_of(step)
    places = layout(depth)
    links = [
        _link(places[node], places[2 * node + 1], places[2 * node + 2], _value(step, step.heap[node]))
        for node in range(len(places) // 2)
    ]
    nodes = [_node(step, place, name) for place, name in zip(places, step.heap, strict=True)]
    return svg(*size(depth), [*links, *nodes], label=label, classes="tree")


def elsewhere(step: Step) -> tuple[str, float] | None:
    """The name outside the tree with the largest coefficient, if it is large enough to show."""
    others = {name: value for name, value in step.coefficients.items() if name not in step.heap}
    if not others:
        return None
    name = max(others, key=lambda other: abs(others[other]))
    return (name, others[name]) if abs(others[name]) >= SHOWN_FROM else None
