"""Rows of several questions about one graph: the same tokens as in rows of their own, and right answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from latent_models import gradients
from tiny_models import tiny_language_model
from torch import Tensor

from unspoken.methods.coupled.stages import NextToken
from unspoken.tasks.logic import LogicConfig, LogicTask, _read
from unspoken.tasks.logic_graphs import split_of_question
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.task import AsksSeveral
from unspoken.training.recipe import load

SETTINGS: list[dict[str, Any]] = [
    {},
    {"hops": (1, 2), "concepts": 8, "edges": 9},
    {"hops": (1,), "concepts": 6, "edges": 6},
    {"hops": (3,), "concepts": 10, "edges": 40, "spelled": 1.0},
]


def task(settings: dict[str, Any]) -> LogicTask:
    return LogicConfig(**settings).build()


def asked(made: LogicTask, row: dict[str, Tensor], index: int, number: int) -> ReasoningProblem:
    """One question of a row, read from its tokens."""
    chosen = ((row["question"][index] == 0) | (row["question"][index] == number)) & row["attention_mask"][index].bool()
    text = made.tokenizer.decode(row["input_ids"][index][chosen])
    question, _, rest = text.partition(" <think> ")
    chain, _, answer = rest.partition(" </think> \\boxed{")
    assert answer.endswith("} [EOS]")
    return ReasoningProblem(question=question, chains=(chain,), answer=answer.removesuffix("} [EOS]"), key="")


def away(pairs: list[tuple[str, str]], start: str) -> dict[str, int]:
    """Steps from a person to all concepts in reach."""
    steps = {start: 0}
    for _ in pairs:
        for old, new in pairs:
            if old in steps:
                steps[new] = min(steps.get(new, 99), steps[old] + 1)
    return steps


@pytest.mark.parametrize("settings", SETTINGS)
def test_each_question_has_the_tokens_of_a_row_of_its_own(settings: dict[str, Any]) -> None:
    made = task(settings)
    problems = made.sample("train", range(5))
    row = made.question_rows(problems, 4)
    for index, problem in enumerate(problems):
        for number in range(1, 5):
            one = asked(made, row, index, number)
            alone = made.rows([one])
            chosen = (row["question"][index] == 0) | (row["question"][index] == number)
            chosen &= row["attention_mask"][index].bool()
            assert row["input_ids"][index][chosen].tolist() == alone["input_ids"][0].tolist()
            assert row["answer_mask"][index][chosen].tolist() == alone["answer_mask"][0].tolist()
            assert row["position_ids"][index][chosen].tolist() == list(range(alone["input_ids"].shape[1]))
        first = asked(made, row, index, 1)
        assert (first.question, first.chains[0], first.answer) == (problem.question, problem.chains[0], problem.answer)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_only_the_person_asked_about_is_the_answer_and_the_split_is_that_of_the_row(
    settings: dict[str, Any], split: str
) -> None:
    made = task(settings)
    row = made.question_rows(made.sample(split, range(12)), 8)
    for index in range(12):
        for number in range(1, 9):
            one = asked(made, row, index, number)
            pairs, person, options = _read(one.question)
            (wrong,) = set(options) - {one.answer}
            (other,) = {old for old, _ in pairs if old[0].isupper()} - {person}
            own, others = away(pairs, person), away(pairs, other)
            assert own[one.answer] == others[wrong] == one.chains[0].count(".")
            assert one.answer not in others
            assert wrong not in own
            assert split_of_question(pairs, options) == split


def test_every_number_of_steps_is_asked_for_about_as_often() -> None:
    made = task({"hops": (6,)})
    row = made.question_rows(made.sample("train", range(100)), 9)
    steps = Counter(
        asked(made, row, index, number).chains[0].count(".") for index in range(100) for number in range(2, 10)
    )
    assert set(steps) == set(range(1, 7))
    assert min(steps.values()) > 80  # of 800, six numbers
    answers = [asked(made, row, index, 2) for index in range(100)]
    assert 30 < sum(_read(one.question).options[0] == one.answer for one in answers) < 70


def test_rows_are_the_same_every_time_and_whatever_stands_beside_them() -> None:
    made = task({})
    problems = made.sample("train", range(3))
    rows, alone = made.question_rows(problems, 5), made.question_rows(problems[1:2], 5)
    length = alone["input_ids"].shape[1]
    for name, values in alone.items():
        assert torch.equal(values[0], rows[name][1, :length])
    assert not rows["attention_mask"][1, length:].any()


def test_a_row_asks_at_most_sixteen() -> None:
    assert isinstance(task({}), AsksSeveral)
    assert LogicConfig().traits.questions == 16


def test_several_questions_need_the_tokens_of_the_task() -> None:
    load("prosqa", "tiny", ["stages.pretrain.objective.questions=16"])
    with pytest.raises(ValueError, match="questions is 4, but rows of several have the tokens of logic itself"):
        load("prosqa", "tiny", ["backbone=any/model", "stages.pretrain.objective.questions=4"])
    with pytest.raises(ValueError, match="chain is 'none', but rows of several questions have their chains"):
        load("prosqa", "tiny", ["stages.pretrain.objective={kind: next_token, chain: none, questions: 2}"])
    with pytest.raises(ValueError, match="asks at most 16"):
        load("prosqa", "tiny", ["stages.pretrain.objective.questions=17"])


def test_answers_train_as_in_separate_rows() -> None:
    made = task({"hops": (1, 2), "concepts": 8, "edges": 9})
    model = tiny_language_model("unspoken", vocab_size=len(made.tokenizer), max_position_embeddings=128)
    row = made.question_rows(made.sample("train", np.arange(4)), 3)
    separate = made.rows([asked(made, row, index, number) for index in range(4) for number in (1, 2, 3)])

    def learned(objective: NextToken, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss, _ = objective.loss(model, objective.with_places(batch))
        return gradients(loss, model)

    packed = learned(NextToken(positions="answer", questions=3), row)
    for name, one in learned(NextToken(positions="answer"), separate).items():
        torch.testing.assert_close(packed[name], one, atol=1e-5, rtol=1e-4)


def test_every_process_asks_the_same() -> None:
    """Python gives the texts of a set another order in each."""
    program = (
        "from unspoken.tasks.logic import LogicConfig as L; t = L().build(); "
        "print(t.question_rows(t.sample('train', range(20)), 8)['input_ids'].sum(1).tolist())"
    )
    asked = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(asked) == 1
