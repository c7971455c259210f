"""Every kind of stage answers problems the same way, and answers do not depend on how they are batched."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import END, PAD, enliven, tiny_config
from tiny_strings import TASK as STRINGS
from tiny_strings import planted, right_symbols, string_view
from tiny_words import PROMPT_FORMAT, tiny_word_system
from tiny_words import TASK as WORDS
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.backbone import UnspokenForCausalLM
from unspoken.chain import LatentChain
from unspoken.evaluation.answering import answer
from unspoken.evaluation.seeds import stage_systems
from unspoken.methods import catalogue
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.loading import load_model
from unspoken.reasoning.speakers import Separate
from unspoken.reasoning.system import Answer, System
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


# --- what counts, and what can be given ------------------------------------------------------------------------------


@pytest.mark.parametrize("replaced", [0, 2])
def test_what_comes_after_the_fixed_steps_counts_of_every_system(replaced: int) -> None:
    # Strings have four symbols, of which the first two are steps; row n has a wrong symbol at place n.
    tokens = right_symbols(5)
    for row in range(4):
        tokens[row, row] = PAD
    graded = string_view(planted(lambda *_: tokens[:, replaced:], replaced=replaced), 5).graded
    assert graded.correct.tolist() == [True, True, False, False, True]
    assert graded.outcomes.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]
    hits = np.ones((5, 4)) - np.eye(5, 4)
    hits[:, :replaced] = 0.0
    assert graded.hits.tolist() == hits.tolist()
    assert graded.select([4, 0]).hits.tolist() == hits[[4, 0]].tolist()
    assert STRINGS.traits.fixed_steps == 2


def test_an_answer_may_be_begun_by_force_and_made_from_given_prompts_and_chains() -> None:
    system, problems = tiny_word_system(), WORDS.sample("test", range(5))
    ask = partial(answer, system, WORDS, problems, PROMPT_FORMAT, batch_size=2)
    free, boxed = ask(), ask(boxed=True)
    ids, mask = WORDS.prompts(problems, PROMPT_FORMAT)
    forced = system.respond(ids, mask, forced=PROMPT_FORMAT.box)
    assert torch.equal(boxed.tokens, forced.tokens)
    assert not torch.equal(boxed.tokens, free.tokens)
    # Prompts in another order, with chains that go with them.
    turned = ask(prompts=(ids.flip(0), mask.flip(0)))
    assert torch.equal(turned.tokens.flip(0), free.tokens)
    # Of no steps, which is another chain than its own.
    nothing = free.chain.with_latents(free.chain.latents, torch.zeros_like(free.chain.mask))
    for chain in (nothing, free.chain):
        given = ask(chain=chain)
        assert torch.equal(given.tokens, system.respond(ids, mask, chain=chain).tokens)
    assert torch.equal(given.tokens, free.tokens)


def test_the_start_of_a_boxed_answer_is_graded_with_it() -> None:
    problems = WORDS.sample("test", range(3))
    rows = [[*PROMPT_FORMAT.encode(f"{problem.answer}}}")] for problem in problems]
    width = max(len(row) for row in rows)
    end = int(PROMPT_FORMAT.tokenizer.eos_token_id)
    tokens = torch.tensor([row + [end] * (width - len(row)) for row in rows])

    class Written(System):
        def respond(self, input_ids: Tensor, *_: Any, **how: Any) -> Answer:
            steps = torch.zeros(len(input_ids), 0, 16)
            chain = LatentChain(latents=steps, mask=steps[..., 0].bool(), stop=torch.zeros(len(input_ids)).long())
            return Answer(chain=chain, tokens=tokens, lengths=torch.full((len(input_ids),), width))

    system = Written(**vars(tiny_word_system()))
    for boxed in (True, False):
        graded = answer(system, WORDS, problems, PROMPT_FORMAT, batch_size=3, boxed=boxed)
        assert graded.correct.tolist() == [boxed] * 3
        assert graded.per_symbol is None
