"""A chain of latents as columns: which tokens are shared with the explicit chain, and how much of it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from unspoken.draw.chains import Chain, latent_name, visible


def chain(tokens: Sequence[Sequence[str]], pieces: Sequence[str], **rest: Any) -> Chain:
    steps = [{"tokens": [(token, 0.5) for token in step], "entropy": 0.1} for step in tokens]
    texts = dict.fromkeys(("title", "remark", "label", "question", "response", "answer"), "")
    return Chain(**texts, steps=steps, pieces=pieces, most=1.0, **rest)


@pytest.mark.parametrize(
    ("tokens", "piece", "marked"),
    [
        (["5"], "", []),
        (["5"], "7", [("7", False)]),
        (["5"], "5", [("5", True)]),
        # No number inside of a number, no word inside of a word; an underscore is inside of neither.
        (["1"], "18 81 1", [("18 81 ", False), ("1", True)]),
        (["pear"], "pears _pear_", [("pears _", False), ("pear", True), ("_", False)]),
        # What begins or ends with a sign may touch a number there.
        (["5)"], "15) 5)1", [("15) ", False), ("5)", True), ("1", False)]),
        (["(5"], "1(5 (51", [("1", False), ("(5", True), (" (51", False)]),
        (["+"], "1+1", [("1", False), ("+", True), ("1", False)]),
        # Space around a token does not count, and a token of space alone is nowhere.
        ([" 5 ", " "], "a 5", [("a ", False), ("5", True)]),
        # Of two tokens that begin at one character the longer one is marked, in whatever order they are.
        ([">", ">>", ">>>"], ">> >", [(">>", True), (" ", False), (">", True)]),
        ([">>", ">"], ">> >", [(">>", True), (" ", False), (">", True)]),
        # A sign that means something in a pattern means itself.
        (["."], "a.b", [("a", False), (".", True), ("b", False)]),
    ],
)
def test_tokens_are_marked_where_the_piece_has_them_whole(
    tokens: list[str], piece: str, marked: list[tuple[str, bool]]
) -> None:
    ((_, shared, parts),) = chain([tokens], [piece]).columns
    assert parts == marked
    assert {token.strip() for token in shared} >= {text for text, is_shared in marked if is_shared}


def test_a_column_names_the_tokens_that_are_shared() -> None:
    ((step, shared, _),) = chain([["18", "1", " apple"]], ["<<18+3 apples"]).columns
    assert step is not None and [token for token, _ in step["tokens"]] == ["18", "1", " apple"]
    assert shared == {"18"}


def test_latents_and_pieces_that_are_left_over_stand_alone() -> None:
    columns = chain([["5"]], ["5", "6"]).columns
    assert [step is None for step, _, _ in columns] == [False, True]
    assert columns[1][2] == [("6", False)]
    assert [parts for _, _, parts in chain([["5"]] * 2, ["5"]).columns] == [[("5", True)], []]


@pytest.mark.parametrize(
    ("steps", "pieces", "drawn", "left_out"),
    [
        (35, 2, 35, ""),
        (36, 2, 35, "and 1 more step"),
        (2, 37, 35, "and 2 more steps"),
        (1235, 0, 35, "and 1,200 more steps"),
    ],
)
def test_of_a_long_chain_thirty_five_steps_are_drawn(steps: int, pieces: int, drawn: int, left_out: str) -> None:
    long = chain([["5"]] * steps, ["5"] * pieces, key="0.1", decoded=["a"] * steps)
    assert len(long.columns) == drawn
    assert long.left_out == left_out
    assert len(long.words) == min(steps, 35)


def test_a_latent_has_a_name_where_its_chain_has_one() -> None:
    named = chain([["5"]] * 2, [], key="0.1", decoded=["a b", ""])
    assert latent_name("0.1", 3) == named.latent(3) == "0.1.3"
    assert named.words == [("a␣b", "0.1.0"), ("∅", "0.1.1")]
    assert chain([["5"]], []).latent(0) == ""


def test_white_space_is_visible() -> None:
    assert visible(" a\n\tb") == "␣a↵⇥b"
    assert visible("") == "∅"
