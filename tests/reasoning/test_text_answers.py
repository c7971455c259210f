"""Answers to texts: in batches, from chains that go on, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conformance import CLOSE
from tiny_models import END, prompts, tiny_pair
from tiny_words import TASK, TEXT_FORMAT, tiny_word_system
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.methods import catalogue
from unspoken.reasoning import text_answers
from unspoken.reasoning.engine import LatentStep, StopRule
from unspoken.reasoning.picking import ForcedTokens, Sampler
from unspoken.reasoning.system import Answer, System
from unspoken.reasoning.text_answers import Cost, answer_prompts, beginning
from unspoken.tasks.prompt_format import TextFormat

QUESTIONS = [problem.question for problem in TASK.sample("test", range(5))]


def test_a_cost_in_words() -> None:
    cost = Cost(latent_steps=1, tokens=2, passes=3.4, flops=42_500_000.0)
    assert str(cost) == "1 latent step, 2 tokens, 3 passes, 42.5 MFLOP"
    assert str(replace(cost, latent_steps=0, tokens=1, passes=0.6)) == "0 latent steps, 1 token, 1 pass, 42.5 MFLOP"


def test_a_cost_is_the_system_s_account_of_each_answer() -> None:
    system = tiny_word_system()
    for text, answer in zip(QUESTIONS, system.answer(QUESTIONS), strict=True):
        steps, tokens = len(answer.chain), len(answer.tokens)
        assert (answer.cost.latent_steps, answer.cost.tokens) == (steps, tokens)
        # The marker that opens the chain, the chain, the one that closes it, and the answer.
        assert answer.cost.passes == system.markers + steps + tokens
        alone = system.respond(torch.tensor([system.texts.prompt(text)]))
        flops = system.flops(torch.tensor([len(system.texts.prompt(text))]), alone)
        assert answer.cost.flops == pytest.approx(float(flops[0]))
        assert (str(answer), answer.text) == (answer.text, system.texts.decode(answer.tokens))


def test_at_most_64_texts_are_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    system, sizes, respond = replace(tiny_word_system(max_latents=0), max_tokens=1), list[int](), System.respond

    def watched(self: System, input_ids: Tensor, *args: Any, **how: Any) -> Answer:
        sizes.append(len(input_ids))
        return respond(self, input_ids, *args, **how)

    monkeypatch.setattr(System, "respond", watched)
    assert len(answer_prompts(system, [(3, 4)] * 130, None, None, None)) == 130
    assert sizes == [64, 64, 2]


def test_batches_take_their_own_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    system = tiny_word_system(fixed=True)
    chains = [answer.chain.truncate(row) for row, answer in enumerate(system.answer(QUESTIONS))]
    expected = [system.answer(text, chain) for text, chain in zip(QUESTIONS, chains, strict=True)]
    monkeypatch.setattr(text_answers, "_AT_ONCE", 2)
    found = system.answer(QUESTIONS, chains)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
    assert [len(answer.chain) for answer in found] == [0, 1, 2, 3, 4]
    assert [answer.cost.latent_steps for answer in found] == [0, 1, 2, 3, 4]
    # Prompts that are tokens already are answered from a chain as it is, too.
    asked = [system.texts.prompt(text) for text in QUESTIONS]
    again = answer_prompts(system, asked, chains, None, None)
    assert [(answer.tokens, len(answer.chain)) for answer in again] == [
        (answer.tokens, row) for row, answer in enumerate(expected)
    ]


# --- chains that go on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"top_k": 5}, {"top_k": 1}, {"feed": "hidden"}])
def test_a_chain_that_goes_on_from_its_own_beginning_is_itself(settings: dict[str, Any]) -> None:
    system = tiny_word_system(fixed=True, **settings)
    own = system.answer(QUESTIONS)
    for steps in (0, 1, 3, 6):
        beginnings = [answer.chain.truncate(steps) for answer in own]
        for before, again in zip(own, system.answer(QUESTIONS, beginnings, continue_chain=True), strict=True):
            assert again.tokens == before.tokens
            assert again.cost == before.cost
            torch.testing.assert_close(again.chain.record.latents, before.chain.record.latents, **CLOSE)
    # Of different length in one batch.
    several = [answer.chain.truncate(steps) for steps, answer in enumerate(own)]
    assert [answer.tokens for answer in system.answer(QUESTIONS, several, continue_chain=True)] == [
        one.tokens for one in own
    ]


def test_a_given_latent_is_fed_at_the_multiple_at_which_the_method_feeds_its_own() -> None:
    # Latents of length 0.04, fed three times as long.
    own = torch.full((1, 16), 0.01)
    step = LatentStep(latent=own, next_input=3 * own, done=torch.tensor([False]))
    mask = torch.ones(1, 1, dtype=torch.bool)
    given = LatentChain(latents=torch.full((1, 1, 16), 5.0), mask=mask, stop=torch.zeros(1).long())
    changed = beginning(tiny_word_system(feed="hidden"), given)(step, 0)
    torch.testing.assert_close(changed.latent, torch.full((1, 16), 5.0))
    torch.testing.assert_close(changed.next_input, torch.full((1, 16), 15.0))


def test_given_steps_come_first_and_never_end_a_chain_of_mixtures() -> None:
    system = tiny_word_system()
    own = system.answer(QUESTIONS)
    # The end marker itself as the first step: the chain goes on all the same.
    end = system.speaker.marker[0]
    changed = [answer.chain.truncate(0) for answer in own]
    begun = tiny_word_system(fixed=True).answer(QUESTIONS)
    changed = [answer.chain.truncate(1).edit(0, {end: 1.0, 8: 3.0}) for answer in begun]
    found = system.answer(QUESTIONS, changed, continue_chain=True)
    for given, answer in zip(changed, found, strict=True):
        assert len(answer.chain) >= 1
        torch.testing.assert_close(answer.chain.record.latents[0, 0], given.record.latents[0, 0])
        assert answer.chain.steps()[0].tokens == given.steps()[0].tokens
        support = answer.chain.record.support_weights
        assert support is not None and support.shape[-1] == 5


def test_a_given_mixture_may_have_more_entries_than_the_model_s() -> None:
    system = tiny_word_system(top_k=2, fixed=True)
    wide = system.answer(QUESTIONS[0]).chain.truncate(1).edit(0, dict.fromkeys(range(8, 12), 1.0))
    answer = system.answer(QUESTIONS[0], wide, continue_chain=True)
    weights, ids = answer.chain.record.support_weights, answer.chain.record.support_ids
    assert weights is not None and ids is not None and weights.shape == (1, 6, 4)
    assert (ids[0, 0].tolist(), weights[0, 0].tolist()) == ([8, 9, 10, 11], [0.25] * 4)
    assert ((weights[0, 1:] > 0).sum(dim=1) <= 2).all()
    torch.testing.assert_close(weights[0].sum(dim=1), torch.ones(6))


def test_a_row_that_is_an_end_ends_the_chain_of_a_reasoner() -> None:
    pair = tiny_pair()
    (system, _) = catalogue.systems(pair, stage="pair", max_answer=8)
    whole = system.respond(prompts(), stop=StopRule(max_latents=4, fixed=True)).chain
    assert system.targets is not None
    given = whole.latents[:, :2].clone()
    rows = torch.nn.functional.normalize(system.targets.target_table, dim=-1)
    given[:3, 1] = rows[END]  # these end with their second step
    given[3, 1] = 0.0  # a latent of zeros points at nothing
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[5, 1] = False
    chain = LatentChain(latents=given * mask[..., None], mask=mask, stop=torch.zeros(6, dtype=torch.long))
    found = system.respond(prompts(), stop=StopRule(max_latents=4), intervene=beginning(system, chain)).chain
    assert found.lengths[:3].tolist() == [2] * 3
    assert found.stop[:3].tolist() == [StopReason.END] * 3
    assert (found.lengths[3:] > 2).any()
    torch.testing.assert_close(found.latents[:, :2][mask], given[mask])
    # What the model writes after its own beginning is what it would have written.
    free = system.respond(prompts(), stop=StopRule(max_latents=4)).chain
    for row in (4, 5):
        length = int(free.lengths[row])
        torch.testing.assert_close(found.latents[row, :length], free.latents[row, :length], **CLOSE)


def test_forced_tokens_are_those_of_their_text_however_many_there_are() -> None:
    system = tiny_word_system()
    forced = torch.arange(70)[:, None] % 8 + 8
    answers = system.answer([QUESTIONS[0]] * 70, sample=ForcedTokens(forced), max_tokens=3)
    assert [answer.tokens[0] for answer in answers] == forced[:, 0].tolist()


def test_what_does_not_belong_together_is_refused() -> None:
    system = tiny_word_system()
    chain = system.answer(QUESTIONS[0]).chain
    with pytest.raises(ValueError, match="2 chains for 1 texts; give each text one"):
        system.answer(QUESTIONS[:1], [chain, chain])
    (talker, _) = catalogue.systems(tiny_pair(), stage="pair", max_answer=4)
    talker = replace(talker, text_format=TEXT_FORMAT)
    with pytest.raises(ValueError, match="so an empty chain has no answer"):
        talker.answer(QUESTIONS[0], chain.truncate(0))


def test_the_same_text_is_answered_the_same_way_unless_drawn() -> None:
    system = tiny_word_system()
    samplers = [Sampler(4.0, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    drawn = [[answer.tokens for answer in system.answer(QUESTIONS, sample=one)] for one in samplers]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(len(answer.tokens) for answer in system.answer(QUESTIONS, max_tokens=1)) == 1


def test_a_conversation_is_instructed_where_word_problems_were_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    system, instructions = tiny_word_system(), list[bool]()
    prompt = system.texts.prompt(QUESTIONS[0])

    def chat(_: TextFormat, turns: Any, *, instructed: bool = True) -> tuple[int, ...]:
        assert turns == [{"role": "user", "content": "again?"}]
        instructions.append(instructed)
        return prompt

    monkeypatch.setattr(TextFormat, "chat", chat)
    bare = replace(system, text_format=replace(TEXT_FORMAT, trained_on=None))
    for one in (system, bare):
        answer = one.chat([{"role": "user", "content": "again?"}])
        assert answer.tokens == system.answer(QUESTIONS[0]).tokens
    assert instructions == [True, False]
    assert len(system.chat([{"role": "user", "content": "again?"}], max_tokens=1).tokens) == 1
