"""Curves of a training whose values are known: which axis they get, where their dots are, how ticks are written."""

from __future__ import annotations

import re
from typing import Any

import pytest

from unspoken.report.training import power, training_panels


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.001, "0.001"),
        (0.00099, "10⁻³"),
        (1e-5, "10⁻⁵"),
        (9999, "9999"),
        (10_000, "10⁴"),
        (1e12, "10¹²"),
        (0.5, "0.5"),
    ],
)
def test_long_ticks_are_powers_of_ten(value: float, written: str) -> None:
    assert power(value) == written


def panels(losses: list[float], **curve: Any) -> list[Any]:
    steps = [100 * (index + 1) for index in range(len(losses))]
    stage = {"steps": [], "loss_steps": steps, "loss": losses, "selected_step": 100, **curve}
    results = {
        "training": [{"seed": 0, "stages": {"sst": stage}}],
        "recipe": {"stages": [{"name": "sst", "objective": {"kind": "next_token", "k": 4.0, "positions": "all"}}]},
    }
    (group,) = training_panels(results)
    return group


@pytest.mark.parametrize(
    ("losses", "axis"),
    [
        ([20.0, 1.0], "loss"),
        ([20.1, 1.0], "loss, logarithmic"),
        # Losses of nothing count as 0.00001.
        ([2e-4, 0.0], "loss"),
        ([2.1e-4, 0.0], "loss, logarithmic"),
    ],
)
def test_losses_that_fall_far_have_a_logarithmic_axis(losses: list[float], axis: str) -> None:
    (panel,) = panels(losses)
    assert [key.name for key in panel.legend] == [axis]
    assert (panel.title, panel.remark) == ("sst", "next token, positions all")


@pytest.mark.parametrize(
    ("losses", "ticks"),
    [
        ([8.0, 7.0], ["0", "5", "10"]),
        ([20.01, 1.0], ["1", "2", "5", "10", "20"]),
        ([40.0, 1.0], ["1", "10"]),
    ],
)
def test_an_axis_of_losses_has_few_ticks(losses: list[float], ticks: list[str]) -> None:
    (panel,) = panels(losses)
    assert re.findall(r'class="tick end"[^>]*>([^<]*)<', panel.drawing) == ticks


def test_exact_match_has_a_panel_with_a_dot_at_the_checkpoint_that_was_kept() -> None:
    loss, rate = panels([2.0, 1.0], steps=[0, 100, 200], exact_match=[0.0, 0.5, 0.25])
    # The plot goes from 42 to 233 pixels across and from 10 to 106 down; the last step is 200, the axis ends at 100 %.
    (line,) = re.findall(r'<polyline[^>]*points="([^"]*)"', rate.drawing)
    assert line == "42,106 137.5,58 233,82"
    assert re.findall(r'class="dot c1" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', rate.drawing) == [
        ("137.5", "58", "3.5")
    ]
    # Losses begin at their first step; the axis of steps is that of both.
    (line,) = re.findall(r'<polyline[^>]*points="([^"]*)"', loss.drawing)
    assert [point.split(",")[0] for point in line.split()] == ["137.5", "233"]
    assert panels([], steps=[0, 100], exact_match=[0.0, 0.5])[0].title == ""
    # A last validation without a reading has no point.
    _, rate = panels([2.0, 1.0], steps=[0, 100, 200], exact_match=[0.0, 0.5])
    assert re.findall(r'<polyline[^>]*points="([^"]*)"', rate.drawing) == ["42,106 137.5,58"]
