"""Several runs on one page: numbers by hand, problems that are never mixed, and a page that closes its tags."""

from __future__ import annotations

import copy
import math
import re
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tag_balance import unbalanced
from words_results import words_results

from unspoken.draw.charts import Axis, Frame, Mark, scatter
from unspoken.draw.page import to_html
from unspoken.evaluation.outcomes import fingerprint_of, outcomes_of, packed, unpacked
from unspoken.evaluation.significance import Difference
from unspoken.report import compare
from unspoken.report.compare import comparisons, cost_blocks, frontier, holm, problem_sets, reference
from unspoken.report.page import render

Results = dict[str, Any]
RIGHT = {"cot": [1, 1, 1, 0], "latent": [1, 0, 0, 0], "answer_only": [0, 0, 0, 0]}
PASSES = {"cot": 20.0, "latent": 10.0, "answer_only": 4.0}


def rate(values: list[int], seeds: int) -> Results:
    mean = sum(values) / len(values)
    return {"mean": mean, "low": 0.8 * mean, "high": min(1.0, mean + 0.1), "seeds": [mean] * seeds, "problems": 4}


def run(name: str, *, fingerprint: str = "a", seeds: int = 1, right: dict[str, list[int]] | None = None) -> Results:
    """A small run on four problems with everything that is compared."""
    right = RIGHT if right is None else right
    outcomes = {system: [np.array(values, dtype=np.float64)] * seeds for system, values in right.items()}
    costs = {
        system: {
            "latent_steps": 3.0,
            "sequential_passes": PASSES[system],
            "flops": 1e6 * PASSES[system],
            "seconds": 0.1,
        }
        for system in right
    }
    kinds = {"cot": "tokens", "latent": "superposition"}
    more = {"spoken_tokens": 2.0, "seconds_batched": 0.1, "seconds_alone": 1.0, "parameters": 9}
    systems = {
        system: {
            "exact_match": rate(values, seeds),
            "ended": None,
            "cost": costs[system] | more,
            "chain": kinds.get(system),
        }
        for system, values in right.items()
    }
    return {
        "schema": 2,
        "name": name,
        "size": "tiny",
        "seeds": list(range(seeds)),
        "problems": 4,
        "baseline": "cot",
        "systems": systems,
        "outcomes": {"test": outcomes_of(fingerprint, outcomes, costs)},
        "recipe": {"task": {"kind": "arithmetic"}},
        "tests": {"test": systems},
        "probes": {},
    }


def aged(results: Results) -> Results:
    """The same as a version wrote it that kept no outcomes."""
    old = copy.deepcopy(results)
    del old["outcomes"]
    return old


def text_of(page: str) -> str:
    part = page[page.index('id="compare"') : page.index("<article")]
    return re.sub(r"<[^>]+>", " ", part).replace("\xa0", " ")


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_outcomes_are_packed_eight_problems_a_byte() -> None:
    outcomes = np.array([1, 0, 1, 0, 0, 0, 0, 1, 1], dtype=np.float64)
    assert packed(outcomes) == "a180"
    assert unpacked("a180", 9).tolist() == outcomes.tolist()
    with pytest.raises(ValueError, match="4 digits do not fit 20 problems"):
        unpacked("a180", 20)


def test_a_fingerprint_is_of_the_problems_in_their_order() -> None:
    first = fingerprint_of([b"one", b"two"])
    assert first == fingerprint_of([b"one", b"two"])
    assert len({first, fingerprint_of([b"two", b"one"]), fingerprint_of([b"one"]), fingerprint_of([b"onetwo"])}) == 4


def test_the_frontier_is_what_nothing_beats() -> None:
    # (cost, accuracy): the third is beaten by the first, the fifth by the fourth at the same cost; equals both stay.
    places = [(1.0, 0.5), (4.0, 0.9), (2.0, 0.4), (3.0, 0.8), (3.0, 0.7), (1.0, 0.5)]
    assert frontier(places, 0.001) == [0, 5, 3, 1]


def test_the_frontier_takes_no_notice_of_differences_below_the_resolution() -> None:
    # 23.566 and 23.5665 passes are the same number of passes, so the less accurate system is beaten; 23.5 are fewer.
    assert frontier([(23.566, 0.77), (23.5665, 0.83)], 0.001) == [1]
    assert frontier([(23.5, 0.77), (23.5665, 0.83)], 0.001) == [0, 1]
    assert frontier([(23.566, 0.8), (23.5665, 0.8)], 0.001) == [0, 1]
    assert frontier([(1.0, 0.5), (1.0, 0.7), (1.0, 0.7)], 0.0) == [1, 2]


@given(
    st.lists(st.tuples(st.floats(1, 40), st.integers(0, 20).map(lambda right: right / 20)), min_size=1),
    st.sampled_from([0.0, 0.001, 0.1]),
)
def test_a_frontier_is_never_empty_rises_and_beats_what_is_not_on_it(places: list[Any], resolution: float) -> None:
    best = frontier(places, resolution)
    accuracies = [places[i][1] for i in best]
    assert accuracies and accuracies == sorted(accuracies)
    for cost, accuracy in (place for i, place in enumerate(places) if i not in best):
        assert any(places[i][1] >= accuracy and places[i][0] <= cost * (1 + resolution) ** len(places) for i in best)


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ([1.0, 10.0], "cost"),
        ([1.0, 10.1], "cost, logarithmic"),
        ([0.05, 0.6], "cost, logarithmic"),
        ([0.0, 5.0], "cost"),
    ],
)
def test_costs_that_lie_more_than_ten_times_apart_have_a_logarithmic_axis(values: list[float], title: str) -> None:
    axis = compare._axis(values, "cost")
    assert (axis.title, axis.log) == (title, title != "cost")
    assert axis.low <= min(values) < max(values) <= axis.high


def test_an_axis_of_costs_has_about_four_round_numbers_or_at_most_five_of_a_power() -> None:
    def ticks(*values: float) -> list[str]:
        return [text for _, text in compare._axis(values, "cost").ticks]

    assert ticks(8, 7) == ["0", "5", "10"]
    assert ticks(1, 20) == ["1", "2", "5", "10", "20"]
    assert ticks(1, 40) == ["1", "10"]


def test_ticks_have_no_zeros_at_their_end() -> None:
    written = {50e6: "50 M", 1500: "1.5 k", 0.25: "0.25", 100: "100", 12: "12", 0: "0"}
    assert {value: compare._tick(value) for value in written} == written


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; the last must not fall below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_differences_are_those_of_the_problems() -> None:
    (one,) = problem_sets([run("first", seeds=2), run("second", seeds=3)])
    against = reference(one.entries)
    assert against is not None
    assert (against.system, against.run) == ("cot", "first tiny")
    found = {(c.entry.run, c.entry.system): c for c in comparisons(one.entries, against)}
    assert len(found) == 5
    # Three of four against one of four: half of the problems; the same system of the other run: none.
    assert found["second tiny", "latent"].difference.mean == pytest.approx(-0.5)
    assert found["second tiny", "cot"].difference.mean == 0
    assert {c.seeds for c in found.values()} == {2}
    assert all(c.holm >= c.difference.p for c in found.values())


def test_the_reference_writes_its_chain_where_any_system_does() -> None:
    better = {"cot": [1, 1, 0, 0], "latent": [1, 1, 1, 1], "answer_only": [1, 1, 1, 0]}
    (one,) = problem_sets([run("a", right=better)])
    assert getattr(reference(one.entries), "system", None) == "cot"
    silent = [entry for entry in one.entries if entry.system != "cot"]
    assert getattr(reference(silent), "system", None) == "latent"
    assert reference([]) is None


# --- what is compared with what --------------------------------------------------------------------------------------


def test_runs_meet_where_their_problems_are_the_same() -> None:
    sets = problem_sets([run("a"), run("b", fingerprint="b"), run("c")])
    assert [one.runs for one in sets] == [["a tiny", "c tiny"], ["b tiny"]]
    text = text_of(render([run("a"), run("b", fingerprint="b"), run("c")]))
    assert "b tiny was measured on problems that no other run here has" in text
    apart = text_of(render([run("a"), run("b", fingerprint="b")]))
    assert "No two of these runs were measured on the same problems" in apart


def test_older_results_are_told_apart_by_task_and_count_and_never_tested() -> None:
    old, other = aged(run("old")), aged(run("other"))
    other["recipe"]["task"]["kind"] = "tree_search"
    sets = problem_sets([run("new"), old, other])
    assert [one.runs for one in sets] == [["new tiny", "old tiny"], ["other tiny"]]
    assert [entry.right is None for entry in sets[0].entries] == [False] * 3 + [True] * 3
    text = text_of(render([run("new"), old, other]))
    assert "Results of old tiny and other tiny do not keep which problems were answered rightly" in text
    assert "older results counted a padded batch" in text


def test_older_results_of_one_task_meet_in_whatever_order_its_settings_stand() -> None:
    old, other = aged(run("old")), aged(run("other"))
    old["recipe"]["task"] = {"kind": "arithmetic", "steps": 3}
    other["recipe"]["task"] = {"steps": 3, "kind": "arithmetic"}
    assert [one.runs for one in problem_sets([old, other])] == [["old tiny", "other tiny"]]


def templates(*every: Results) -> list[str]:
    """The kinds of blocks that a comparison is made of."""
    section = compare.comparison(every)
    return [] if section is None else [block.template for block in section.blocks]


def test_one_system_alone_is_compared_with_nothing() -> None:
    alone = {"cot": RIGHT["cot"]}
    assert templates(run("a", right=alone), run("b", fingerprint="b", right=alone)) == ["paragraph"]
    # Two systems have a picture where the costs of both are known.
    both = run("a", right=alone), run("b", right=alone)
    assert templates(*both) == ["heading", "legend", "figure", "table"]
    both[1]["outcomes"]["test"]["cost"] = {}
    assert templates(*both) == ["heading", "table"]


def test_nothing_is_tested_where_one_system_alone_has_its_outcomes() -> None:
    alone = {"cot": RIGHT["cot"]}
    for every, tested in (
        ((run("a", right=alone), run("b", right=alone)), True),
        ((run("a", right=alone), aged(run("b", right=alone))), False),
    ):
        page = render(every)
        assert ("Against 1 · cot" in page) == ("Differences are paired" in page) == tested


def test_runs_of_one_name_are_told_apart() -> None:
    (one,) = problem_sets([run("a"), run("a")])
    assert one.runs == ["a tiny (run 1)", "a tiny (run 2)"]


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_of_several_runs_shows_costs_frontier_and_tests() -> None:
    page = render([run("a", seeds=2), run("b", seeds=3, right={"cot": [1, 1, 1, 1], "latent": [1, 1, 1, 1]})])
    assert unbalanced(page) == []
    text = re.sub(r"\s+", " ", text_of(page))
    assert "arithmetic: 4 test problems a tiny and b tiny" in text
    for panel in ("passes", "FLOPs", "time"):
        assert f"Accuracy against {panel}" in text
    # Time is the same for all, so the best are on that frontier whatever they cost else.
    assert re.search(r"1 · cot a tiny 2 75\.00 % 60\.00 – 85\.00 3 20 20\.0 M 100 – −25\.0", text)
    assert re.search(r"3 · answer only a tiny 2 0\.00 % [\d. –]+ 3 4 4\.00 M 100 passes, FLOPs −100\.0", text)
    assert re.search(r"5 · latent b tiny 3 100\.00 % [\d. –]+ 3 10 10\.0 M 100 all three", text)
    assert "4 · cot of b tiny is the most accurate system with an explicit chain of thought" in text
    assert "corrected after Holm for 4 tests" in text
    shared = "Differences are paired, problem by problem, on the seeds that both have;"
    assert shared in text
    alike = re.sub(r"\s+", " ", text_of(render([run("a", seeds=2), run("b", seeds=2)])))
    assert "Differences are paired, problem by problem;" in alike


def test_one_run_on_reasoning_problems_has_its_picture() -> None:
    results = words_results()
    drawn = to_html(cost_blocks(results))
    assert drawn.count("<svg") == 3
    assert unbalanced(drawn) == []
    assert drawn.partition("\n")[2] in render([results])
    assert cost_blocks(run("three")) != []
    assert cost_blocks(run("one", right={"cot": [1, 0, 0, 0]})) == []


def test_numbers_of_points_in_one_place_do_not_cover_each_other() -> None:
    ticks = ((0.0, "0"), (1.0, "1"))
    frame = Frame(x=Axis(low=0, high=1, ticks=ticks), y=Axis(low=0, high=1, ticks=ticks))
    marks = [Mark(x=0.5, y=1.0, low=0.6, high=1.0, number=n, colour="c1", filled=n == 3) for n in range(1, 13)]
    drawing = scatter(frame, marks, [(0.5, 1.0), (1.0, 1.0)], label="crowded")
    found = re.findall(r'<text class="name middle c1" x="([\d.]+)" y="([\d.]+)" dy=".35em">(\d+)<', drawing)
    assert sorted(int(name) for _, _, name in found) == list(range(1, 13))
    centres = [(float(x), float(y)) for x, y, _ in found]
    assert all(abs(a[0] - b[0]) > 9 or abs(a[1] - b[1]) > 11 for a, b in combinations(centres, 2))
    dot = frame.at(0.5, 1.0)
    assert all(math.dist(centre, dot) > 9 for centre in centres)
    # What is on the frontier is drawn over the rest.
    assert drawing.rindex('class="dot') > drawing.rindex('class="ring')


@pytest.mark.parametrize(
    ("corrected", "low", "classes"),
    [(0.049, 0.1, ""), (0.05, 0.1, "muted"), (0.3, 0.1, "muted"), (0.049, 0.0, "muted"), (0.049, -0.1, "muted")],
)
def test_grey_is_what_the_data_cannot_tell_from_zero(corrected: float, low: float, classes: str) -> None:
    entry: Any = None
    found = Difference(mean=0.2, low=low, high=0.3, p=0.001)
    one = compare.Comparison(entry=entry, seeds=3, difference=found, holm=corrected)
    assert compare._faint(one) == classes
    assert compare._faint(None) == "muted"
