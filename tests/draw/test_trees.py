"""Where the nodes of a tree stand and what is marked in them: pixels worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from lxml import etree

from unspoken.draw.trees import Step, draw, layout, size


def marks(step: Step) -> list[dict[str, Any]]:
    """Every element that has a class, in the order of drawing, with its text."""
    nodes = etree.fromstring(str(draw(step, label="one"))).iter()
    return [{**node.attrib, "text": node.text} for node in nodes if node.get("class") not in (None, "tree")]


def nodes(step: Step, classes: str, *names: str) -> list[tuple[str, ...]]:
    return [tuple(one[name] for name in names) for one in marks(step) if one["class"] == classes]


def test_leaves_are_evenly_spaced_and_parents_are_above_their_middle() -> None:
    # Four leaves of 48 pixels, 54 pixels from level to level, 4 free ones on either side.
    assert layout(3) == [(100, 18), (52, 72), (148, 72), (28, 126), (76, 126), (124, 126), (172, 126)]
    assert layout(1) == [(28, 18)]
    # Eight leaves share 246 pixels.
    assert layout(4)[7:9] == [(4 + 30.75 / 2, 180), (4 + 30.75 * 1.5, 180)]
    assert layout(4)[0] == (127, 18)


def test_a_drawing_has_free_pixels_around_its_nodes() -> None:
    assert [size(depth) for depth in (1, 2, 3, 4)] == [(56, 52), (104, 106), (200, 160), (254, 214)]


def test_the_depth_of_a_tree_follows_from_its_names() -> None:
    assert [Step(heap="ABCDEFG"[:length], coefficients={}, right="A", spoken=None).depth for length in (1, 3, 7)] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("value", "written", "letter", "shade"),
    [
        (0.049, None, "letter", None),
        (0.05, ".05", "letter some", "0.05"),
        (0.7, ".70", "letter some", "0.70"),
        (0.71, ".71", "letter full", "0.71"),
        (1.25, "1.25", "letter full", "1.00"),
        (10.05, "10.05", "letter full", "1.00"),
        (-0.05, "−.05", "letter", None),
        (-0.04, None, "letter", None),
    ],
)
def test_a_node_shows_its_coefficient(value: float, written: str | None, letter: str, shade: str | None) -> None:
    step = Step(heap="ABC", coefficients={"B": value}, right="A", spoken=None)
    at = ("28", "72")
    assert (*at, "B") in nodes(step, letter, "x", "y", "text")
    # The value is 13 pixels below the circle, whose radius is 11.
    assert nodes(step, "value", "x", "y", "text") == ([("28", "96", written)] if written else [])
    assert nodes(step, "mass", "cx", "cy", "r", "fill-opacity") == ([(*at, "11", shade)] if shade else [])


def test_every_node_has_a_circle_and_a_hint() -> None:
    step = Step(heap="ABC", coefficients={"B": 0.12345, "C": -0.5}, right="B", spoken="C")
    assert nodes(step, "node", "cx", "cy", "r") == [("52", "18", "11"), ("28", "72", "11"), ("76", "72", "11")]
    drawing = str(draw(step, label="one"))
    assert [f"<title>{hint}</title>" in drawing for hint in ("A: 0.000", "B: 0.123", "C: −0.500")] == [True] * 3
    # The ring of the right name is 2.5 pixels wider; the dot of the name in the answer is at the upper right.
    assert nodes(step, "right", "cx", "cy", "r") == [("28", "72", "13.5")]
    assert nodes(step, "spoken", "cx", "cy", "r") == [("86", "62", "4.5")]


def test_a_link_begins_below_what_is_written_under_its_parent() -> None:
    bare = Step(heap="ABC", coefficients={}, right="B", spoken=None)
    assert nodes(bare, "link", "d") == [("M52.0 29V53M28.0 61V53H76.0V61",)]
    written = Step(heap="ABC", coefficients={"A": 0.3}, right="B", spoken=None)
    assert nodes(written, "link", "d") == [("M52.0 46V53M28.0 61V53H76.0V61",)]
    three = Step(heap="ABCDEFG", coefficients={}, right="B", spoken=None)
    assert [d.split("V")[0] for (d,) in nodes(three, "link", "d")] == ["M100.0 29", "M52.0 83", "M148.0 83"]


@pytest.mark.parametrize(
    ("coefficients", "outside"),
    [
        ({"A": 0.9}, None),
        ({"D": 0.05}, ("D", 0.05)),
        ({"D": 0.049, "E": -0.04}, None),
        ({"D": 0.2, "E": -0.3, "A": 0.9}, ("E", -0.3)),
    ],
)
def test_a_name_outside_of_the_tree_is_shown_if_it_is_large(
    coefficients: dict[str, float], outside: tuple[str, float] | None
) -> None:
    assert Step(heap="ABC", coefficients=coefficients, right="A", spoken=None).outside() == outside
