"""Shared runs of words are found whatever their case and punctuation, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unspoken.tasks.overlap import overlap
from unspoken.tasks.problems import ReasoningProblem

SHEEP = "A shepherd counts sheep on seven hills before noon and then he counts them all once more at dusk."


def row(key: str, question: str, chain: str = "", solution: str = "") -> ReasoningProblem:
    return ReasoningProblem(question=question, chains=(chain,) if chain else (), answer="1", key=key, solution=solution)


def keys(train: list[ReasoningProblem], test: list[ReasoningProblem], **settings: Any) -> tuple[list[str], list[str]]:
    actual = overlap(train, {"one": test}, **settings)["tests"]["one"]
    return actual["problem_keys"], actual["row_keys"]


def test_thirteen_shared_words_are_an_overlap_and_twelve_are_not() -> None:
    words = SHEEP.split()
    test = [row("asked", SHEEP)]
    assert keys([row("a", "Yesterday " + " ".join(words[3:16]) + " or not")], test) == (["asked"], ["a"])
    assert keys([row("a", "Yesterday " + " ".join(words[3:15]) + " or not")], test) == ([], [])
    assert keys([row("a", "Yesterday " + " ".join(words[3:15]) + " or not")], test, words=12) == (["asked"], ["a"])


def test_case_punctuation_and_the_form_of_letters_do_not_count() -> None:
    written = SHEEP.upper().replace(" ", " , ").replace("SEVEN", "\uff33\uff25\uff36\uff25\uff2e")
    assert keys([row("a", written)], [row("asked", SHEEP)]) == (["asked"], ["a"])


def test_another_number_breaks_the_run() -> None:
    test = [row("asked", "Ann has 5 pears and 3 plums and 2 figs.")]
    assert keys([row("a", "Ann has 5 pears and 3 plums and 2 figs, they say.")], test) == (["asked"], ["a"])
    assert keys([row("a", "Ann has 5 pears and 4 plums and 2 figs, they say.")], test) == ([], [])


def test_a_short_question_must_be_there_as_a_whole() -> None:
    test = [row("asked", "Compute 2 + 3."), row("blank", "?!")]
    assert keys([row("a", "First compute (2 + 3), then double it.")], test) == (["asked"], ["a"])
    for lacks_a_word in ("Compute 2 and 3", "Take 2 + 3", "compute 2"):
        assert keys([row("a", lacks_a_word)], test) == ([], [])


def test_chains_and_solutions_are_searched_each_by_itself() -> None:
    half = SHEEP.split()
    test = [row("asked", SHEEP)]
    train = [
        row("in the chain", "Why?", chain=f"So: {SHEEP}"),
        row("in the solution", "Why?", solution=SHEEP),
        row("across", " ".join(half[:9]), chain=" ".join(half[9:])),
    ]
    assert keys(train, test) == (["asked"], ["in the chain", "in the solution"])


def test_every_test_set_has_its_own_keys_and_counts() -> None:
    train = [row("a", SHEEP), row("b", "Nothing of that kind."), row("c", "Oh! " + SHEEP)]
    actual = overlap(train, {"first": [row("x", SHEEP), row("y", "Who?")], "second": [row("z", "Where to?")]})
    assert actual == {
        "words": 13,
        "rows": 3,
        "tests": {
            "first": {"problems": 2, "problem_keys": ["x"], "row_keys": ["a", "c"]},
            "second": {"problems": 1, "problem_keys": [], "row_keys": []},
        },
    }
    assert json.loads(json.dumps(actual)) == actual


def test_an_overlap_has_at_least_one_word() -> None:
    with pytest.raises(AssertionError, match="words is 0"):
        overlap([], {}, words=0)
