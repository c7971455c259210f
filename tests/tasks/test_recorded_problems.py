"""Made-up problems are those that they were when results were recorded: sample i is a pure function of its settings.

Whoever changes how problems are made changes the data of every result that was committed before, so the digests below
are those of these results. They are of questions, chains, steps and answers, or of tokens.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from unspoken.tasks import TreeSearchConfig
from unspoken.tasks.arithmetic import ArithmeticConfig
from unspoken.tasks.cups import CupsConfig
from unspoken.tasks.grammar import GrammarConfig
from unspoken.tasks.logic import LogicConfig
from unspoken.tasks.problems import MadeUpConfig

SPLITS = ("train", "validation", "test")
IN_WORDS: dict[str, tuple[MadeUpConfig, str]] = {
    "arithmetic": (ArithmeticConfig(), "a1ecfb193760"),
    "arithmetic of all sizes": (
        ArithmeticConfig(steps=(1, 3, 5, 6), largest=30, operations=("add", "multiply")),
        "525f13b95b46",
    ),
    "arithmetic of one person": (
        ArithmeticConfig(steps=(3, 4), largest=50, joins=False, operations=("add", "subtract", "multiply", "divide")),
        "ac26a0cac923",
    ),
    "logic": (LogicConfig(), "57777c3adbce"),
    "logic, spelled": (LogicConfig(hops=(1, 2), concepts=12, edges=18, spelled=0.5), "80ecec3d8419"),
    "cups": (CupsConfig(), "97e1f8ed3389"),
    "three cups": (CupsConfig(cups=3, swaps=(1, 3)), "ba5a94d5688a"),
}
IN_TOKENS: dict[str, tuple[TreeSearchConfig | GrammarConfig, str]] = {
    "tree search": (TreeSearchConfig(), "238bed950feb"),
    "ambiguous tree search": (TreeSearchConfig(depth=3, shuffle_edges=True, targets=3, certain=0.3), "4501e8167968"),
    "leaves listed once": (TreeSearchConfig(targets=4, repeat_targets=False), "8b603264fdd7"),
    "small grammar": (GrammarConfig(levels=3, rules=3, grammar_seed=1), "b2cc40e3ccb5"),
    "grammar": (GrammarConfig(), "d4def9ba0ec6"),
}


def digest(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", IN_WORDS)
def test_word_problems_are_those_of_recorded_results(name: str) -> None:
    config, expected = IN_WORDS[name]
    task: Any = config.build()  # type: ignore[attr-defined]
    problems = [problem for split in SPLITS for seed in (0, 1) for problem in task.sample(split, range(30), seed)]
    assert digest([(one.question, one.chains, one.steps, one.answer) for one in problems]) == expected


@pytest.mark.parametrize("name", IN_TOKENS)
def test_token_problems_are_those_of_recorded_results(name: str) -> None:
    config, expected = IN_TOKENS[name]
    task: Any = config.build()
    batches = [task.rows(task.sample(split, np.arange(20), seed)) for split in SPLITS for seed in (0, 1)]
    tokens = [(batch["input_ids"].tolist(), batch["answer_mask"].int().tolist()) for batch in batches]
    assert digest(tokens) == expected
