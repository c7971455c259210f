"""Plans and lists of recipes on a terminal, of facts made up by hand."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from unspoken.report.plan import _ROUNDED, print_plan
from unspoken.report.terminal import print_recipes
from unspoken.training.recorded_plans import Offer


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0.00"),
        (0.004, "<0.01"),
        (0.006, "0.01"),
        (9.99, "9.99"),
        (10, "10.0"),
        (99.9, "99.9"),
        (100, "100"),
        (1234.6, "1,235"),
    ],
)
def test_hours_and_gigabytes_have_fewer_decimals_the_larger_they_are(value: float, written: str) -> None:
    assert _ROUNDED(value) == written


def model(stage: str, factor: int, *, fits: bool) -> dict[str, Any]:
    memory = dict(zip(("weights", "gradients", "optimizer", "gathered"), (1.0, 2.0, 4.0, 0.5), strict=True))
    memory |= {"activations": 10.0, "scores": 20.0, "total": 40.0}
    return {
        "stage": stage,
        "parameters": 1_000_000 * factor,
        "trained": 250_000 * factor,
        "steps": 1_500 * factor,
        "batch_size": 8,
        "tokens": 2e6 * factor,
        "flops": 3.456e15 * factor,
        "hours": {"1": 2.0 * factor, "8": 0.25 * factor if fits else None},
        "memory_gb": {"1": memory, "8": memory if fits else None},
    }


def test_a_plan_has_budget_and_memory_of_every_stage_and_the_sum() -> None:
    models = [model("one", 1, fits=True), model("two", 2, fits=False)]
    out, note = StringIO(), "word " * 30
    print_plan({"name": "r", "size": "s", "models": models, "notes": [note]}, Console(file=out, width=120))
    lines = [re.split(r" {2,}", line.strip()) for line in out.getvalue().splitlines()]
    assert lines[1] == ["r s, built on the meta device: budget, and hours (h) on 1 and 8 GPUs"]
    assert lines[2:6] == [
        ["stage", "parameters", "trained", "steps", "batch", "tokens", "FLOPs", "h on 1", "h on 8"],
        ["one", "1,000,000", "250,000", "1,500", "8", "2.00 M", "3.46e15", "2.00", "0.25"],
        ["two", "2,000,000", "500,000", "3,000", "8", "4.00 M", "6.91e15", "4.00", "–"],
        # A sum of hours is known where all of them are.
        ["all", "6.00 M", "1.04e16", "6.00", "–"],
    ]
    assert lines[8:11] == [
        ["stage", "weights", "gradients", "optimiser", "gathered", "act.", "GB on 1", "act.", "GB on 8"],
        ["one", "1.00", "2.00", "4.00", "0.50", "30.0", "40.0", "30.0", "40.0"],
        ["two", "1.00", "2.00", "4.00", "0.50", "30.0", "40.0", "–", "–"],
    ]
    # A note is indented from its second line on.
    assert out.getvalue().splitlines()[11:] == [" ".join(["word"] * 23), "  " + " ".join(["word"] * 7)]


@pytest.mark.parametrize(("letters", "lines"), [(57, 1), (58, 2)])
def test_a_line_of_a_note_has_at_most_116_letters(letters: int, lines: int) -> None:
    out, note = StringIO(), f"{'x' * 58} {'y' * letters}"
    print_plan({"name": "r", "size": "s", "models": [model("one", 1, fits=True)], "notes": [note]}, Console(file=out))
    assert len(out.getvalue().partition("x")[2].splitlines()) == lines


def test_recipes_are_listed_by_task_with_a_star_before_the_one_to_start_with() -> None:
    def offer(name: str, task: str, seconds: float, *, start_here: bool) -> Offer:
        about = {"size": "tiny", "summary": f"about {name}", "hardware": "two cores"}
        return Offer(name=name, task=task, seconds=seconds, start_here=start_here, **about)

    offers = [
        offer("a", "trees", 60, start_here=True),
        offer("long", "trees", 7200, start_here=False),
        offer("b", "words", 120, start_here=False),
    ]
    out, terminal = StringIO(), StringIO()
    print_recipes(offers, Console(file=terminal, width=60, force_terminal=True, color_system=None))
    shown = [line.rstrip() for line in terminal.getvalue().splitlines()]
    assert shown[1] == " recipe   size   per seed   on          what it does"
    assert shown[3:6] == [
        " trees",
        " * a      tiny   60 s       two cores   about a",
        "   long   tiny   2.0 h      two cores   about long",
    ]
    print_recipes(offers, Console(file=out, width=200))
    assert out.getvalue().split("\n\n* start here.")[0] == (
        "recipe  size  per seed  on         what it does\n"
        "\n"
        "trees\n"
        "* a     tiny  60 s      two cores  about a\n"
        "  long  tiny  2.0 h     two cores  about long\n"
        "\n"
        "words\n"
        "  b     tiny  2 min     two cores  about b"
    )
