"""Every kind of stage answers problems the same way, and answers do not depend on how they are batched."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import END, PAD, enliven, tiny_config
from transformers import PreTrainedModel

from unspoken.backbone import UnspokenForCausalLM
from unspoken.evaluation.answering import answer
from unspoken.evaluation.seeds import stage_systems
from unspoken.methods import catalogue
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.loading import load_model
from unspoken.reasoning.speakers import Separate
from unspoken.reasoning.system import System
from unspoken.tasks import TreeSearchConfig
from unspoken.tasks.prompt_format import PromptFormat

KINDS = ["coupled", "nearest row", "pair"]
TASK = TreeSearchConfig(depth=2).build()
FORMAT = PromptFormat(tokenizer=TASK.tokenizer)


def model_of(kind: str) -> PreTrainedModel:
    """A lively model over the task's vocabulary."""
    backbone = tiny_config("unspoken", vocab_size=21)
    if kind == "coupled":
        model: PreTrainedModel = UnspokenForCausalLM._from_config(backbone, attn_implementation="eager")
    else:
        backbone.l2_output = True
        talker = tiny_config("unspoken", vocab_size=21) if kind == "pair" else None
        config = JepaReasonerConfig(
            backbone_config=backbone,
            talker_config=talker,
            pad_token_id=PAD,
            eos_token_id=END,
            max_latents=2 * TASK.answer_length,
        )
        build = JepaReasonerModel if talker is None else JepaReasonerForCausalLM
        model = build._from_config(config, attn_implementation="eager")
    enliven(model, "unspoken")
    if isinstance(model, JepaReasonerModel):
        model.start_target()
    if isinstance(model, JepaReasonerForCausalLM):
        model.reasoner.start_target()
    return model.eval()


def system_of(model: PreTrainedModel) -> System:
    return stage_systems(model, "it", TASK.traits, 8)[0]


def tokens_of(model: PreTrainedModel) -> PreTrainedModel:
    """What ends a model's chain: the Reasoner of a pair, else the model itself."""
    return model.reasoner if isinstance(model, JepaReasonerForCausalLM) else model


@pytest.mark.parametrize("kind", KINDS)
def test_answers_do_not_depend_on_the_batch_size(kind: str) -> None:
    model = model_of(kind)
    problems = TASK.sample("test", np.arange(30))
    ask = partial(answer, task=TASK, problems=problems, prompt_format=FORMAT)
    # The token that chains run into at the most different steps becomes their end.
    tokens = ask(system_of(tokens_of(model)), batch_size=30).tokens
    reached = [{row.index(token) for row in tokens.tolist() if token in row} for token in range(21)]
    model.config.eos_token_id = max(range(21), key=lambda token: len(reached[token]))
    system = system_of(model)
    together = ask(system, batch_size=30)
    assert len(set(together.chain.lengths.tolist())) > 2
    for size in (1, 7):
        batched = ask(system, batch_size=size)
        assert torch.equal(batched.tokens, together.tokens)
        assert torch.equal(batched.lengths, together.lengths)
        assert torch.equal(batched.chain.mask, together.chain.mask)
        assert torch.equal(batched.chain.stop, together.chain.stop)
        assert torch.equal(batched.correct, together.correct)
        torch.testing.assert_close(batched.chain.latents, together.chain.latents, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_may_be_twice_as_long_as_the_right_answer(kind: str) -> None:
    problems = TASK.sample("test", np.arange(30))
    answers = answer(system_of(model_of(kind)), TASK, problems, FORMAT, batch_size=30)
    assert answers.chain.mask.shape[1] <= 2 * TASK.answer_length
    assert answers.tokens.shape == answers.chain.mask.shape


def test_answers_are_graded_on_the_tokens_that_were_given() -> None:
    problems = TASK.sample("test", np.arange(4))
    tokens = TASK.answers(problems)
    tokens[2, 0] = END
    system = replace(system_of(model_of("coupled")), speaker=Separate(decode=lambda *_: tokens, end_ids=(END,)))
    answers = answer(system, TASK, problems, FORMAT, batch_size=4)
    assert answers.correct.tolist() == [True, True, False, True]
    assert answers.select([2, 3]).correct.tolist() == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_loaded_as_the_system_it_makes(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again) is type(model)
    assert not again.training
    assert again.dtype == torch.float32
    named = {"pair": ["mine", "mine, nearest row"]}
    assert [system.name for system in catalogue.systems(again, stage="mine", max_answer=4)] == named.get(kind, ["mine"])
    expected = {"pair": ["jepa-reasoner", "jepa-reasoner, nearest row"]}
    assert [system.name for system in stage_systems(again, "mine", TASK.traits, 4)] == expected.get(kind, ["mine"])
