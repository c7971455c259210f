"""How numbers are written, and where clouds put their points; examples by hand, at the borders where forms change."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest

from unspoken.draw import formats
from unspoken.draw.clouds import Dot, named_cloud, spread, two_clouds
from unspoken.draw.formats import (
    bare_p_value,
    coefficient,
    count,
    duration,
    joined,
    p_value,
    percent,
    points,
    quantity,
    steps,
)

WRITTEN: list[tuple[Callable[..., str], list[tuple[object, str]]]] = [
    (percent, [(0.9987, "99.87 %"), (1, "100.00 %"), (-0.05, "−5.00 %"), (-1e-9, "0.00 %")]),
    (points, [(0.123, "+12.3"), (-0.05, "−5.0"), (0.0004, "0.0"), (-0.0004, "0.0"), (0.0006, "+0.1")]),
    (p_value, [(0.0009, "p < 0.001"), (0.001, "p = 0.001"), (0.0994, "p = 0.099"), (0.1, "p = 0.10"), (1, "p = 1.00")]),
    (bare_p_value, [(0.0009, "< 0.001"), (0.02, "0.020"), (0.5, "0.50")]),
    (
        quantity,
        [
            (0.123, "0.12"),
            (7, "7.00"),
            (42, "42.0"),
            (999.4, "999"),
            (999.5, "1.00 k"),
            (298_000, "298 k"),
            (999_499, "999 k"),
            (999_500, "1.00 M"),
            (42.5e6, "42.5 M"),
            (1.5e9, "1.50 G"),
            (2e12, "2.00 T"),
            (3.25e15, "3.25 P"),
            (-1500, "−1.50 k"),
        ],
    ),
    (duration, [(0, "0 s"), (89, "89 s"), (90, "2 min"), (150, "2 min"), (5399, "90 min"), (5400, "1.5 h")]),
    (coefficient, [(0.125, "0.12"), (-0.3, "−0.30"), (-0.004, "0.00"), (12, "12.00")]),
    (steps, [(3, "3"), (3.004, "3"), (3.006, "3.01"), (0.005, "0.01"), (17.57, "17.57"), (0, "0")]),
    (joined, [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]),
    (formats.PERCENT, [(0.98, "98.00 %")]),
    (formats.PERCENT_1, [(0.98, "98.0 %")]),
    (formats.BARE_PERCENT_1, [(0.98, "98.0")]),
    (formats.TWO_DECIMALS, [(1.236, "1.24")]),
    (formats.THREE_DECIMALS, [(1.2345, "1.234")]),
    (formats.ONE_DECIMAL, [(1.26, "1.3")]),
    (formats.MILLISECONDS, [(0.0113, "11.3"), (1.5, "1,500")]),
    (formats.MEGAFLOPS, [(1.234e8, "123"), (1.5e6, "1.50")]),
]


@pytest.mark.parametrize(
    ("write", "value", "text"), [(write, value, text) for write, examples in WRITTEN for value, text in examples]
)
def test_numbers_as_they_are_written(write: Callable[..., str], value: object, text: str) -> None:
    assert write(value) == text


def test_one_is_singular_and_thousands_have_commas() -> None:
    assert [count(number, "seed") for number in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]
    assert count(1000, "box", "boxes") == "1,000 boxes"
    assert count(1, "box", "boxes") == "1 box"
    assert formats.PERCENT.interval(0.5, 0.75) == "50.00 – 75.00"
    assert formats.POINTS.interval(-0.1, 0.2) == "−10.0 to +20.0"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a\tb\n", "a\tb\n"),
        ("\x1b[1m\x07\x7f\x9f", "\\x1b[1m\\x07\\x7f\\x9f"),
        ("\u202ea\u2066\ud800", "\\u202ea\\u2066\\ud800"),
        ("–é∅", "–é∅"),
        (5, "5"),
    ],
)
def test_control_characters_are_written_by_their_numbers(text: object, written: str) -> None:
    assert formats.escaped(text) == written


def test_a_stream_writes_what_its_encoding_lacks_by_a_similar_sign_or_by_number() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    formats.write_every_sign(stream)
    stream.write("a −5 – “b” × 2 ± 1 │─┼ ∨ c")
    stream.flush()
    assert raw.getvalue().decode() == 'a -5 - "b" x 2 ~ 1 |-+ \\u2228 c'


def attributes(drawing: str, tag: str, names: str) -> list[tuple[float, ...]]:
    found = re.findall(rf"<{tag} [^>]*>", drawing)
    return [tuple(float(re.search(rf' {name}="([-\d.]+)"', one)[1]) for name in names.split()) for one in found]  # type: ignore[index]


def test_a_cloud_has_one_scale_for_both_directions() -> None:
    # Two units across and one down: the longer side is 470 pixels with 26 free ones on either end.
    drawing = two_clouds([(0, 0), (2, 1)], [(1, 0.5)], label="one")
    scale = (470 - 52) / 2
    assert attributes(drawing, "rect", "x y width height") == [(24, 24 + scale, 4, 4), (24 + 2 * scale, 24, 4, 4)]
    assert attributes(drawing, "circle", "cx cy r") == [(26 + scale, 26 + scale / 2, 2.5)]
    assert 'width="470"' in drawing
    assert f'height="{scale + 52:.0f}"' in drawing
    assert two_clouds([(3, -5), (5, -4)], [(4, -4.5)], label="one") == drawing
    # Distances in the drawing are those of the plane, however small they are.
    assert attributes(two_clouds([], [(0, 0), (1e-5, 0)], label=""), "circle", "cx cy r") == [
        (26, 26, 2.5),
        (444, 26, 2.5),
    ]
    # A narrow one is as wide as its legend.
    assert 'width="260"' in two_clouds([(0, 0), (0, 1)], [], label="one")


def test_names_of_a_cloud_have_their_own_hues_and_places() -> None:
    names = {"A": (0.0, 0.0), "B": (10.0, 10.0)}
    drawing = named_cloud(names, [Dot(name="B", at=(5.0, 5.0))], label="one")
    squares = attributes(drawing, 'rect class="row"', "x y width height")
    assert squares == [(23, 441, 6, 6), (441, 23, 6, 6)]
    # Names stand 10 pixels to the right of their squares and above.
    assert attributes(drawing, 'text class="name"', "x y") == [(36, 434), (454, 16)]
    assert attributes(drawing, "circle", "cx cy")[0] == (235, 235)
    assert attributes(drawing, "circle", "r")[0] == (4.5,)
    # Neighbours are the golden angle apart.
    assert set(re.findall(r"--h:(\d+)", drawing)) == {"0", "138"}


def test_latents_of_one_chain_are_joined_and_named() -> None:
    chain = [
        Dot(name="A", at=(0.0, 0.0), chain="0", latent="0.0"),
        Dot(name="B", at=(1.0, 0.0), chain="0", latent="0.1"),
    ]
    single = Dot(name="A", at=(0.0, 1.0), hint="alone")
    drawing = named_cloud({"A": (0.0, 0.0), "B": (1.0, 1.0)}, [*chain, single], label="one")
    assert re.findall(r'points="([^"]*)"', drawing) == ["26,444 444,444"]
    assert re.findall(r' data-latent="([^"]*)"', drawing) == ["0.0", "0.1"]
    assert re.findall(r'<g class="path"( data-chain="0")?>', drawing) == [' data-chain="0"', ""]
    assert re.findall(r"<title>([^<]*)", drawing) == ["alone"]


def test_labels_that_meet_are_parted_along_the_line_between_them() -> None:
    free = spread({"a": (0.0, 0.0), "b": (100.0, 0.0)})
    assert free == {"a": (10.0, -10.0), "b": (110.0, -10.0)}
    # At 16 pixels they are as far apart as they must be.
    assert spread({"a": (0.0, 0.0), "b": (16.0, 0.0)}, clear=1) == {"a": (10.0, -10.0), "b": (26.0, -10.0)}
    # Each in turn is moved by half of what is missing and a tenth: 3.1, 1.55, 0.775, 0.3875 and 0.19375 pixels.
    beside, below = (spread({"a": (0.0, 0.0), "b": mark}, clear=1) for mark in ((10.0, 0.0), (0.0, 10.0)))
    assert beside["a"] == pytest.approx((10 - 4.06875, -10)) and beside["b"] == pytest.approx((20 + 1.9375, -10))
    assert below["a"] == pytest.approx((10, -10 - 4.06875)) and below["b"] == pytest.approx((10, 1.9375))
    near = spread({"a": (0.0, 0.0), "b": (0.0, 0.0)}, gap=8, clear=1)
    # Labels at one place are moved up and down until they are 8 pixels apart, and no further.
    assert near["a"][0] == near["b"][0] == 10
    assert 8 <= abs(near["a"][1] - near["b"][1]) <= 8.2
    assert sum(y for _, y in near.values()) / 2 == pytest.approx(-10, abs=1.5)
