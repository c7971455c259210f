"""Chains that state all sentences again: what a first stage learns to look names up from."""

from __future__ import annotations

from collections import Counter

import pytest

from unspoken.tasks.logic import LogicConfig, LogicTask
from unspoken.training.recipe import parse
from unspoken.training.settings import SettingsError

STAGE = """
name: restated
size: tiny
task: {kind: logic, hops: [1], concepts: 6, edges: 6, restated: true}
backbone: {hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
stages: [{name: cot, objective: {kind: next_token, questions: 2}, steps: 1}]
"""


def restated(**settings: object) -> LogicTask:
    return LogicConfig(hops=(2, 3), concepts=12, edges=16, restated=True, **settings).build()  # type: ignore[arg-type]


@pytest.mark.parametrize("spelled", [0.0, 1.0])
def test_the_chain_states_every_sentence_once_more_in_another_order(spelled: float) -> None:
    in_order = 0
    for problem in restated(spelled=spelled).sample("train", range(50)):
        assert len(problem.chains) == 1
        sentences = problem.question.rpartition(" Is ")[0].split(". ")
        again = problem.chains[0].split(". ")
        assert Counter(text.rstrip(".") for text in again) == Counter(text.rstrip(".") for text in sentences)
        in_order += problem.chains[0] == problem.question.rpartition(" Is ")[0]
    assert in_order == 0


def test_all_but_the_chain_is_that_of_the_same_problem() -> None:
    plain = LogicConfig(hops=(2, 3), concepts=12, edges=16).build().sample("test", range(30))
    for one, other in zip(restated().sample("test", range(30)), plain, strict=True):
        assert (one.question, one.answer, one.key) == (other.question, other.answer, other.key)
        assert one.chains != other.chains


def test_such_a_chain_is_read_whatever_problems_were_made_before() -> None:
    together = restated().sample("train", range(5))
    assert [restated().sample("train", [index])[0] for index in range(5)] == list(together)
    assert [one.chains for one in restated().sample("train", range(5), seed=1)] != [one.chains for one in together]


def test_its_data_are_not_those_of_chains_to_the_answer() -> None:
    assert restated().fingerprint != LogicConfig(hops=(2, 3), concepts=12, edges=16).build().fingerprint


def test_no_other_question_is_asked_about_sentences_that_are_stated_again() -> None:
    with pytest.raises(SettingsError, match=r"objective\.questions is 2, but logic as it is set up asks at most 1"):
        parse(STAGE, "here")
