"""One table of forced tokens for whatever answers, on the page and on a terminal."""

from __future__ import annotations

import re
from typing import Any

from tag_balance import unbalanced

from unspoken.draw.page import to_html
from unspoken.draw.section import Block
from unspoken.draw.table import Table, grids, text
from unspoken.probes.effects import effect_table, latents_cell, rate_of
from unspoken.probes.forced_tokens import ForcedTokensProbe

Results = dict[str, Any]
SOME = {"mean": 0.1234, "low": 0.1, "high": 0.2}


def effect(later: float | None, lost: float | None, change: float) -> Results:
    def rate(mean: float | None) -> Results | None:
        return None if mean is None else {"mean": mean, "low": mean / 2, "high": (1 + mean) / 2}

    return {
        "forced": rate(0.1),
        "later_changed": rate(later),
        "answers_lost": rate(lost),
        "judged": 50,
        "latents_identical": change == 0,
        "largest_latent_change": change,
    }


SUMMARY = {
    "problems": 200,
    "rates": [0.1, 0.3],
    "systems": {
        "cot": {
            "output_kind": "its explicit chain and its answer",
            "effects": [effect(0.25, 0.5, 1.75), effect(0.375, 0.75, 2.0)],
        },
        "latent_sft_2": {"output_kind": "its answer", "effects": [effect(0.0, None, 0.0)] * 2},
        "jepa_mono": {"output_kind": "all that its Talker says", "effects": [effect(0.0, 0.0, 0.0)] * 2},
    },
}


def blocks() -> list[Block]:
    """What is shown of that summary."""
    section = ForcedTokensProbe().section({"probes": {"forced_tokens": SUMMARY}})
    assert section is not None
    return list(section.blocks)


def row_of(html: str, name: str) -> str:
    """The text of a row, without marks."""
    row = next(part for part in html.split("<tr>") if f">{name}<" in part).split("</tr>")[0]
    return " ".join(re.sub(r"<[^>]*>", " ", row).split())


def test_a_rate_has_its_interval_and_nothing_is_no_number() -> None:
    cell = rate_of("later", "clean")({"later": {"clean": SOME}})
    assert (cell.text, cell.lines) == ("12.3 %", ("10.0 – 20.0", ""))
    assert rate_of("later")({"later": None}).text == "–"
    assert latents_cell(effect(0.0, None, 0.0)).text == "none"
    # A change so small that it rounds to zero is one.
    assert latents_cell(effect(0.5, None, 0.001)).text == "0.00"
    # Where no token was forced, that nothing changed says nothing.
    for never in (None, {"mean": 0.0, "low": 0.0, "high": 0.0}):
        assert latents_cell(effect(None, None, 0.0) | {"forced": never}).text == "–"


def test_every_effect_of_a_system_stands_in_its_row() -> None:
    kinds = {("A|of all", "a"): rate_of("a"), ("B", "b"): rate_of("b")}
    first, second = {"a": SOME, "b": None}, {"a": None, "b": {"mean": 1.0, "low": 1.0, "high": 1.0}}
    table = effect_table([(text("one"), [first, second])], kinds, [("low", "1: "), ("high", "2: ")], note="c")
    page = to_html([table])
    assert unbalanced(page) == []
    assert page.count('colspan="2"') == 2
    assert row_of(page, "one") == "one 12.3 % 10.0 – 20.0 – – 100.0 % 100.0 – 100.0"
    ((_, lines),) = grids(table)
    assert lines == [["system", "1: a", "1: b", "2: a", "2: b"], ["one", "12.3 %", "–", "–", "100.0 %"]]


def test_the_page_says_what_was_forced_and_what_came_of_it() -> None:
    assert ForcedTokensProbe().section({"probes": {}}) is None
    body = to_html(blocks())
    assert unbalanced(body) == []
    assert "first 200 problems" in body
    for group in ("10 % of its tokens wrong", "30 % of its tokens wrong"):
        assert group.replace(" %", "\xa0%") in body
    rows = {
        "cot": "cot forced: its explicit chain and its answer 25.0 % 12.5 – 62.5 50.0 % 25.0 – 75.0 1.75 "
        "37.5 % 18.8 – 68.8 75.0 % 37.5 – 87.5 2.00",
        "latent sft 2": "latent sft 2 forced: its answer " + " ".join(["0.0 % 0.0 – 50.0 – none"] * 2),
        "jepa mono": "jepa mono forced: all that its Talker says "
        + " ".join(["0.0 % 0.0 – 50.0 0.0 % 0.0 – 50.0 none"] * 2),
    }
    for name, expected in rows.items():
        assert row_of(body, name) == expected


def test_the_terminal_has_the_same_numbers() -> None:
    (table,) = blocks()
    assert isinstance(table, Table)
    ((title, (header, *rows)),) = grids(table)
    assert "forced wrong tokens" in title
    assert header == ["system", *(f"{rate} %: {what}" for rate in (10, 30) for what in ("later", "lost", "latents"))]
    assert rows[0] == ["cot", "25.0 %", "50.0 %", "1.75", "37.5 %", "75.0 %", "2.00"]
    assert rows[1] == ["latent sft 2", *("0.0 %", "–", "none") * 2]
    assert [len(row) for row in rows] == [len(header)] * 3
