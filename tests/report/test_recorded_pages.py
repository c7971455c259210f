"""Headlines, costs, findings, training and terminals of committed and of made-up results are as they were recorded."""

from __future__ import annotations

import pytest
from recorded_sections import RUNS, TOGETHER, changed, comparison_texts, report_texts


@pytest.mark.parametrize("run", RUNS)
def test_the_page_and_the_terminal_of_a_run_are_as_recorded(run: str) -> None:
    assert changed("report", run, report_texts(run)) == [], "see tests/recorded_sections.py"


@pytest.mark.parametrize("runs", TOGETHER, ids=" + ".join)
def test_the_page_of_several_runs_is_as_recorded(runs: tuple[str, ...]) -> None:
    assert changed("together", " + ".join(runs), comparison_texts(runs)) == [], "see tests/recorded_sections.py"
