"""An answer on a terminal, of a result made up by hand."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_words import TASK

from unspoken.report.answers import print_answer, verdict
from unspoken.tasks import TreeSearchConfig

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


def test_an_answer_is_judged_where_the_right_one_is_known() -> None:
    problems = TASK.sample("test", [0])
    right = problems[0].answer
    for text, correct in ((f"\\boxed{{{right}}}", True), ("\\boxed{none}", False)):
        answer: Any = SimpleNamespace(text=text)
        assert verdict(TASK, problems, answer) == {"expected": right, "correct": correct}
    assert verdict(TASK, TASK.parse(problems[0].question), answer) == {}
    assert verdict(None, None, answer) == {}


@pytest.mark.parametrize(("targets", "judged"), [(1, True), (2, False)])
def test_a_route_is_judged_where_one_leaf_is_meant(targets: int, judged: bool) -> None:
    task = TreeSearchConfig(depth=2, targets=targets).build()
    problems = task.sample("test", np.arange(1))
    route = task.text(problems)[0].rpartition("[ROUTE]")[2]
    answer: Any = SimpleNamespace(tokens=task.answers(problems)[0].tolist())
    facts = verdict(task, problems, answer)
    assert facts.pop("tree") == task.draw(problems)
    assert facts == ({"expected": route, "correct": True} if judged else {})
