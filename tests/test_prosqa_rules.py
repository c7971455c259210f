"""Rules that do not read who is asked about: what they take, and that made-up problems give nothing away to them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from unspoken.tasks.logic import LogicConfig
from unspoken.tasks.problems import ReasoningProblem

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from prosqa_rules import RULES, measured, outcome  # noqa: E402

# Ann is a wug by way of dax; Bo is a fep at once, and a klib as far as Ann is a wug.
FACTS = "Ann is a dax. Every dax is a wug. Bo is a fep. Bo is a kelm. Every kelm is a klib. Every dax is a klib."


def asked(question: str, answer: str) -> ReasoningProblem:
    return ReasoningProblem(question=f"{FACTS} {question}", chains=(), answer=answer, key="")


@pytest.mark.parametrize(
    ("question", "answer", "fewer", "farther"),
    [
        ("Is Ann a wug or fep?", "wug", 0.5, 1.0),
        ("Is Bo a fep or wug?", "fep", 0.5, 0.0),
        ("Is Ann a wug or klib?", "wug", 1.0, 0.5),
        ("Is Bo a klib or wug?", "klib", 0.0, 0.5),
    ],
)
def test_a_rule_takes_an_option_by_itself(question: str, answer: str, fewer: float, farther: float) -> None:
    problem = asked(question, answer)
    assert outcome(RULES["fewer_sentences"], problem) == fewer
    assert outcome(RULES["farther_from_all"], problem) == farther


def test_both_options_of_every_made_up_problem_are_alike_to_every_rule() -> None:
    problems = LogicConfig().build().sample("test", range(100))
    assert {outcome(rule, problem) for rule in RULES.values() for problem in problems} == {0.5}


def test_the_recorded_rates_are_those_of_the_published_file() -> None:
    recorded = json.loads((ROOT / "results" / "prosqa-rules.json").read_text())
    file = Path(os.environ.get("UNSPOKEN_DATA", "")) / recorded["file"]
    if not file.is_file():
        pytest.skip("UNSPOKEN_DATA does not point to the published file")
    task = LogicConfig(tests=(str(file),)).build()
    assert measured(task.sample(file.stem, range(recorded["published"]["problems"]))) == recorded["published"]
