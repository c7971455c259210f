"""Whatever a results file holds, the page shows it as text: no name, problem or answer becomes an element."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lxml.html
import pytest
from words_results import words_results

from unspoken.evaluation.results import read_results
from unspoken.report.page import render

Results = dict[str, Any]
COMMITTED = Path(__file__).parents[2] / "results"
BAD = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;</p>"
# Words that the program compares with its own, so that a file with others has nothing to draw.
OWN = {"jepa-reasoner", "coupled", "coconut", "mean"}
STRUCTURE = {"kind", "positions", "chain", "fingerprint"}


def names_of(results: Results) -> set[str]:
    """Systems, stages, test sets and controls: names by which parts of a file refer to one another."""
    names = {stage["name"] for stage in results["recipe"]["stages"]}
    names |= {*results["systems"], *results["tests"]}
    names |= {name for entries in results["probes"].get("controls", {}).values() for name in entries}
    return names - OWN


def poisoned(value: Any, names: set[str], key: str = "") -> Any:
    """The same file with markup in every text and in every name, wherever a name is referred to."""
    if isinstance(value, dict) and key == "right":
        return {renamed(name, names): entry for name, entry in value.items()}
    if isinstance(value, dict):
        return {renamed(name, names): poisoned(entry, names, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [poisoned(entry, names, key) for entry in value]
    if not isinstance(value, str) or key in STRUCTURE or value in OWN:
        return value
    return value + BAD


def renamed(key: str, names: set[str]) -> str:
    return " - ".join(part + BAD if part in names else part for part in key.split(" - "))


def elements(page: str) -> set[tuple[str, tuple[str, ...]]]:
    """Every element of a page with the names of its attributes, as a parser of HTML sees them."""
    return {(str(each.tag), tuple(sorted(each.attrib))) for each in lxml.html.document_fromstring(page).iter()}


def files() -> dict[str, Results]:
    small = ("tree-search-tiny", "tree-search-ambiguous-small", "arithmetic-tiny", "grammar-small", "prose-small")
    committed = {name: read_results(COMMITTED / f"{name}.json") for name in small}
    return committed | {"by hand": words_results()}


@pytest.mark.parametrize("name", list(files()))
def test_markup_in_every_text_of_a_file_stays_text(name: str) -> None:
    results = files()[name]
    bad = poisoned(results, names_of(results))
    assert BAD in json.dumps(bad, ensure_ascii=False).replace('\\"', '"')
    pages = [(render([bad]), render([results]))]
    if name == "by hand":  # one page of several runs is enough
        pages.append((render([bad, bad]), render([results, results])))
    for page, clean in pages:
        new = elements(page) - elements(clean)
        # A text that was too short to need one may get a line of its own; nothing else is new.
        assert not {tag for tag, _ in new} & {"script", "img", "iframe", "object", "link", "b"}, new
        assert not [attribute for _, attributes in new for attribute in attributes if attribute.startswith("on")]
        text = lxml.html.document_fromstring(page).text_content()
        assert text.count(BAD) > 3
