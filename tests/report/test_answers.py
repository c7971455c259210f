"""An answer on a terminal, of a result made up by hand."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from unspoken.report.answers import print_answer

RESULT: dict[str, Any] = {
    "problem": "LK[ROOT]L",
    "system": "pair",
    "answer": "LK",
    "latent_steps": 2,
    "silent": True,
    "stopped": "end",
    "chain": [
        {"nearest": "L", "coefficients": {"L": 0.9, "K": -0.126}},
        {"nearest": "[EOS]", "coefficients": {"[EOS]": 1.0}},
    ],
}
CHAIN = "\nstep  nearest  made of\n   1  L        L 0.90  K −0.13\n   2  [EOS]    [EOS] 1.00\n"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "pair: LK  (2 silent steps)"),
        ({"correct": True, "expected": "LK"}, "pair: LK  right  (2 silent steps)"),
        ({"correct": False, "expected": "7"}, "pair: LK  wrong: the answer is 7  (2 silent steps)"),
        ({"silent": False, "latent_steps": 1}, "pair: LK  (1 token)"),
        ({"stopped": "cap"}, "pair: LK  (2 silent steps, cut off at the cap)"),
    ],
)
def test_an_answer_is_one_line_and_its_chain_one_a_step(changes: dict[str, Any], line: str) -> None:
    for chain in (False, True):
        out = StringIO()
        print_answer(RESULT | changes, Console(file=out, width=60), chain=chain)
        assert out.getvalue() == f"LK[ROOT]L\n\n{line}\n{CHAIN if chain else ''}"


def test_a_tree_is_drawn_above_the_answer_and_an_empty_chain_is_not() -> None:
    out = StringIO()
    drawn = {"tree": "(L)", "correct": False, "expected": "LK", "chain": []}
    print_answer(RESULT | drawn, Console(file=out, width=60), chain=True)
    assert out.getvalue() == "LK[ROOT]L\n\n(L)\n\npair: LK  wrong: the route is LK  (2 silent steps)\n"
