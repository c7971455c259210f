"""Results that are in the repository, whatever version wrote them, can be read, printed and put on a page."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tag_balance import unbalanced

from unspoken.evaluation.results import read_results
from unspoken.probes.catalogue import PROBES
from unspoken.report.page import render
from unspoken.report.terminal import print_results

FOLDER = Path(__file__).parents[2] / "results"
RUNS = [path for path in sorted(FOLDER.glob("*.json")) if "systems" in json.loads(path.read_text())]
# What `unspoken.probes.evaluate` describes, and what `unspoken.experiment.measure_run` adds to it.
REQUIRED = {"schema", "seeds", "problems", "baseline", "systems", "tests", "differences", "probes"}
ALLOWED = REQUIRED | {"name", "size", "command", "recipe", "splits", "dropped", "overlap", "outcomes", "training"}


def test_there_are_runs_of_every_kind_of_task() -> None:
    kinds = {read_results(path)["recipe"]["task"]["kind"] for path in RUNS}
    assert kinds >= {"tree_search", "arithmetic", "grammar", "prose", "logic", "grade_school"}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_committed_run_is_read_printed_and_put_on_a_page(path: Path) -> None:
    results = read_results(path)
    assert REQUIRED <= results.keys() <= ALLOWED
    for system in results["systems"].values():
        assert system.keys() == {"exact_match", "ended", "cost", "chain"}
        assert system["chain"] in (None, "tokens", "superposition", "hidden", "latent")
    assert results["probes"].keys() <= {probe.key for probe in PROBES}
    assert {name for rates in results["tests"].values() for name in rates} == set(results["systems"])
    page = render([results])
    assert unbalanced(page) == []
    out = StringIO()
    print_results(results, Console(file=out, width=100))
    for text in (page, out.getvalue()):
        assert not re.search(r"\bnan\b", text)
        assert all(name.replace("_", " ") in text for name in results["systems"])
