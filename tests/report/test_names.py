"""Names of further ways to reason show what tells them apart."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from unspoken.evaluation.results import read_results
from unspoken.report.names import short_names
from unspoken.report.page import render

CUPS = Path(__file__).parents[2] / "results" / "cups-small.json"
SETTINGS = ["temperature 0.6", "top k 30", "top p 0.95", "noise gumbel", "budget 8"]


def test_settings_that_all_variants_have_are_left_out_and_those_that_go_together_are_one() -> None:
    sampled = "cot, soft thinking, temperature 0.6, top k 30"
    names = ["cot", "soft thinking", sampled, f"{sampled}, noise gumbel", "cot, budget forcing, budget 8"]
    assert short_names(names) == {
        sampled: "cot, soft thinking, temperature 0.6 …",
        f"{sampled}, noise gumbel": "cot, soft thinking, temperature 0.6 …, noise gumbel",
        "cot, budget forcing, budget 8": "cot, budget forcing",
    }
    two = ["cot, budget forcing, budget 8", "cot, budget forcing, budget 16"]
    assert short_names(two) == {}, "the setting tells them apart"
    assert short_names(["jepa-reasoner", "jepa-reasoner, nearest row", "jepa, talker_own, nearest row"]) == {
        "jepa, talker_own, nearest row": "jepa, talker_own"
    }


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["cot", "coupled"]),
            st.sampled_from(["soft thinking", "no think"]),
            st.lists(st.sampled_from(SETTINGS), unique=True).map(lambda some: sorted(some, key=SETTINGS.index)),
        ),
        unique_by=repr,
    )
)
def test_no_two_systems_get_one_name(ways: list[tuple[str, str, list[str]]]) -> None:
    names = ["cot", "soft thinking", *(", ".join([stage, way, *some]) for stage, way, some in ways)]
    names = list(dict.fromkeys(names))
    short = short_names(names)
    written = [short.get(name, name) for name in names]
    assert len(set(written)) == len(names)
    assert all(len(other) <= len(name) for name, other in short.items())


def test_a_page_has_short_names_and_names_them_in_full_once() -> None:
    page = render([read_results(CUPS)]).replace("\xa0", " ")
    heads = re.findall(r'<th scope="row"[^>]*>([^<]*)', page)
    assert "cot, soft thinking, temperature 0.6 …, noise gumbel" in heads
    assert max(map(len, heads)) < 60
    assert "“cot, no think” is cot, no think, sentence none" in page
    assert page.count("top p 0.95, min p 0.001, noise gumbel") == 1
