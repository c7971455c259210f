"""What is known of a run as a whole: the rates of its seeds, its time, and where it was measured."""

from __future__ import annotations

from typing import Any

import pytest

from unspoken.report import findings
from unspoken.report.findings import each_seed, finding, origin, sample, training_time


@pytest.mark.parametrize(
    ("rates", "written"),
    [
        ([0.5], "50.00"),
        ([0.5, 0.25, 1, 0.125], "50.00  25.00  100.00  12.50"),
        ([0.5, 0.25, 1, 0.125, 0.09], "9.00 … 100.00"),
    ],
)
def test_four_seeds_are_listed_and_of_more_the_range(rates: list[float], written: str) -> None:
    assert each_seed(rates) == written


def test_the_time_of_a_seed_is_known_where_every_stage_has_one() -> None:
    def results(*seeds: list[float | None]) -> dict[str, Any]:
        return {"training": [{"stages": {str(at): {"seconds": one} for at, one in enumerate(seed)}} for seed in seeds]}

    assert training_time(results([10, 20], [30, 40])) == 50
    assert training_time(results([10, 0])) == 10
    assert training_time(results([10, None])) is None
    assert training_time(results([])) is None
    assert training_time({}) is None


def test_a_page_names_what_is_known_of_where_it_was_measured() -> None:
    machine = {"processor": "EPYC", "threads": 1, "device": "cpu", "gpu": None}
    made = {"date": "2026-01-02", "commit": "abc", "machine": machine, "versions": {"torch": "2.0", "numpy": "1.0"}}
    assert origin({"made": made}) == (
        "Measured 2026-01-02 · commit abc · EPYC, 1 thread, computed on cpu · torch 2.0, numpy 1.0"
    )
    on_gpu = {"machine": {**machine, "gpu": "H200", "threads": 2}}
    assert origin({"made": on_gpu}) == "EPYC, 2 threads, computed on H200 · date, commit and versions not recorded"
    assert origin({}) == "Date, commit, hardware and versions not recorded"


def test_the_size_of_a_run() -> None:
    assert sample({"problems": 1000, "seeds": [0, 1, 2], "probes": {}}) == "1,000 test problems, 3 seeds"
    assert sample({"problems": 1, "seeds": [0], "probes": {"corruption": {"systems": {}}}}) == "1 test sentence, 1 seed"


@pytest.mark.parametrize(("high", "overlap"), [(0.4, "; the interval of b overlaps with its own"), (0.39, "")])
def test_intervals_overlap_where_they_touch(high: float, overlap: str) -> None:
    rates = {"a": {"mean": 0.5, "low": 0.4, "high": 0.6}, "b": {"mean": 0.3, "low": 0.2, "high": high}}
    text = " It is the best of 2 systems that were trained to reason in latents, picked on these problems"
    assert findings._rank(rates, "a") == f"{text}{overlap}."
    results = {
        "systems": {name: {"exact_match": rate} for name, rate in rates.items()},
        "baseline": None,
        "seeds": [0, 1],
        "problems": 10,
        "probes": {},
    }
    text = "Of 2 systems, a answers the most of 10 unseen problems, 50.00 %, and b the least, 30.00 %"
    assert finding(results) == f"{text}{'; their intervals overlap' if overlap else ''}."


@pytest.mark.parametrize(
    ("p", "begin"),
    [(0.05, ", which is no detectable difference"), (0.049, "; seeds differ too much"), (None, ", which")],
)
def test_a_test_is_significant_below_five_per_cent(p: float | None, begin: str) -> None:
    assert findings._verdict({"mean": 0.1, "low": -0.1, "high": 0.3, "p": p}, "one", "other").startswith(begin)
