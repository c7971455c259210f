"""Drawings and tables of some committed and made-up results are as they were recorded: every chart, cloud and tree."""

from __future__ import annotations

import pytest
from recorded_sections import changed, comparison_texts, probe_texts, report_texts

# Between them these have every kind of drawing: crowds of numbered points, curves with names and levels, clouds, trees.
SECTIONS = [
    "grammar-small",
    "arithmetic-small",
    "tree-search-siblings-small",
    "tree-search-unsolved-small",
    "made up: words",
    "made up: known odds",
]
PAGES = ["cups-codi-small", "prose-small", "made up: trees"]
TOGETHER = [("cups-small", "cups-codi-small"), ("made up: words", "made up: trees")]


@pytest.mark.parametrize("run", SECTIONS)
def test_drawings_of_what_was_measured_are_as_recorded(run: str) -> None:
    assert changed("probes", run, probe_texts(run)) == [], "see tests/recorded_sections.py"


@pytest.mark.parametrize("run", PAGES)
def test_drawings_of_a_training_and_of_costs_are_as_recorded(run: str) -> None:
    assert changed("report", run, report_texts(run)) == [], "see tests/recorded_sections.py"


@pytest.mark.parametrize("runs", TOGETHER, ids=" + ".join)
def test_drawings_of_several_runs_are_as_recorded(runs: tuple[str, ...]) -> None:
    assert changed("together", " + ".join(runs), comparison_texts(runs)) == [], "see tests/recorded_sections.py"
