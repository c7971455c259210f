"""Latents that are refined together, on sums that can be done by hand and against the chain that is written in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conformance import CLOSE, left_padded
from tiny_models import PAD, prompts, tiny_language_model, tiny_recurrent_model
from torch import Tensor
from transformers.cache_utils import DynamicCache

from unspoken.chain import StopReason
from unspoken.reasoning.block import allow_rollback, refined
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import Decoder, LatentStep, StopRule, respond, rollout
from unspoken.reasoning.row import AnswerDecoding, Row
from unspoken.reasoning.static import StaticSteps

ROWS = [prompt[start:] for prompt, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]
LATENTS = 4


class Sums:
    """A stack whose output is the sum of all inputs so far; it forgets the last positions as `refined` expects."""

    def __init__(self, latents: int) -> None:
        self.kept, self.latents, self.widths = torch.zeros(1, 0, 1), latents, list[int]()

    def __call__(self, new: Tensor) -> Tensor:
        self.widths.append(new.shape[1])
        every = torch.cat([self.kept, new], dim=1)
        self.kept = every[:, : -self.latents]
        return every.cumsum(dim=1)[:, -new.shape[1] :]


def sums(iterations: int, **how: Any) -> tuple[list[float], list[list[float]], list[int]]:
    """What the last pass reads, the latents of every pass, and how many positions each pass read."""
    read = Sums(LATENTS)
    prompt, guess = torch.tensor([[[2.0], [-1.0]]]), torch.zeros(1, LATENTS, 1)
    new, chains = refined(read, prompt, guess, iterations, lambda outputs: outputs, **how)
    return new.flatten().tolist(), [chain.flatten().tolist() for chain in chains], read.widths


@pytest.mark.parametrize("how", [{}, {"shift": 1}])
def test_a_latent_is_the_sum_before_it_after_as_many_passes(how: dict[str, int]) -> None:
    # One after another: 1, then 1 + 1, then 1 + 1 + 2, ... Each pass makes one more of them right.
    passes = [[0.0] * 4, [1.0, 1, 1, 1], [1.0, 2, 3, 4], [1.0, 2, 4, 7], [1.0, 2, 4, 8]]
    for iterations in range(5):
        new, chains, widths = sums(iterations, **how)
        assert chains == passes[: iterations + 1]
        # The prompt is read by the first pass, or by the last one where nothing is refined.
        assert new == ([2.0, -1.0] if iterations == 0 else []) + passes[iterations]
        assert widths == [6, 4, 4, 4][:iterations]


def test_a_latent_may_be_made_of_its_own_output() -> None:
    new, chains, widths = sums(3, shift=0)
    assert chains == [[0.0] * 4, [1.0, 1, 1, 1], [2.0, 3, 4, 5], [3.0, 6, 10, 15]]
    assert (new, widths) == (chains[-1], [6, 4, 4])


@dataclass(frozen=True, kw_only=True)
class Block(CausalLMReasoner):
    """Hidden states that are refined together, out of guesses of ones."""

    iterations: int
    shift: int = 1

    def guess(self, count: int) -> Tensor:
        return torch.ones(count, 16)


def reasoners(family: str, iterations: int, **settings: Any) -> tuple[Block, CausalLMReasoner]:
    model = tiny_language_model(family, **settings)
    how = LatentGenerationConfig(open_ids=(2,), end_ids=(7, 14), feed="hidden", fixed=True)
    return Block(model=model, settings=how, iterations=iterations), CausalLMReasoner(model=model, settings=how)


DECODING = AnswerDecoding(marker=(7, 14), max_tokens=4, end_ids=(1,), pad_id=PAD)
STOP = StopRule(max_latents=LATENTS, fixed=True)


@pytest.mark.parametrize("family", ["unspoken", "gpt2"])
def test_enough_passes_write_the_sequential_chain_and_its_answer(family: str) -> None:
    together, in_turn = reasoners(family, LATENTS)
    for batch in ((prompts(), None), left_padded(ROWS)):
        expected, tokens = respond(in_turn, *batch, STOP, DECODING)
        chain, answers = respond(together, *batch, STOP, DECODING)
        torch.testing.assert_close(chain.latents, expected.latents, **CLOSE)
        assert torch.equal(chain.mask, expected.mask)
        assert torch.equal(chain.stop, expected.stop)
        assert torch.equal(answers, tokens)
        # Without an answer the chain is the same.
        torch.testing.assert_close(rollout(together, *batch, STOP).latents, expected.latents, **CLOSE)


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_fewer_passes_write_as_many_of_its_latents(iterations: int) -> None:
    together, in_turn = reasoners("unspoken", iterations)
    chain, expected = (rollout(method, *left_padded(ROWS), STOP) for method in (together, in_turn))
    torch.testing.assert_close(chain.latents[:, :iterations], expected.latents[:, :iterations], **CLOSE)
    assert (chain.latents - expected.latents)[:, iterations:].abs().amax(dim=(1, 2)).min() > 1e-2
    if iterations == 0:
        assert torch.equal(chain.latents, torch.ones(6, LATENTS, 16))
    assert chain.lengths.tolist() == [LATENTS] * 6


@pytest.mark.parametrize("decoding", [None, DECODING])
def test_an_end_that_a_step_returns_does_not_count(decoding: AnswerDecoding | None) -> None:
    together, _ = reasoners("unspoken", 2)
    free = StopRule(max_latents=LATENTS)
    every = replace(together, settings=replace(together.settings, end_ids=(3, 14)))
    hidden = together.stack(prompts()).last_hidden_state[:, -1]
    assert bool(every.step(hidden).done.any())
    chain, _ = respond(every, prompts(), None, free, decoding)
    assert chain.lengths.tolist() == [LATENTS] * 6
    assert chain.stop.tolist() == [StopReason.CAP] * 6


def test_passes_read_the_prompt_once_and_then_latents_alone() -> None:
    together, _ = reasoners("unspoken", 2)
    widths, seen = [], []
    together.stack.register_forward_pre_hook(
        lambda _module, _args, how: widths.append(how["inputs_embeds"].shape[1]), with_kwargs=True
    )

    def watch(step: LatentStep, index: int) -> LatentStep:
        seen.append((index, len(step.latent)))
        return step

    respond(together, prompts(), None, STOP, DECODING, intervene=watch)
    # Twice the latents are refined; the last pass reads them with the marker's first token after it.
    assert widths[:3] == [5 + LATENTS, LATENTS, LATENTS]
    assert set(widths[3:]) == {1}
    assert seen == [(slot, 6) for _ in range(3) for slot in range(LATENTS)]


def test_what_a_hook_changes_in_any_pass_is_read_by_the_next_one() -> None:
    together, in_turn = reasoners("unspoken", LATENTS)

    def double(step: LatentStep, index: int) -> LatentStep:
        return replace(step, latent=2 * step.latent, next_input=2 * step.next_input) if index == 1 else step

    chain, expected = (rollout(method, prompts(), None, STOP, double) for method in (together, in_turn))
    torch.testing.assert_close(chain.latents, expected.latents, **CLOSE)


def test_no_latents_are_no_passes() -> None:
    together, in_turn = reasoners("unspoken", 2)
    none = StopRule(max_latents=0, fixed=True)
    (chain, answers), (_, tokens) = (respond(one, prompts(), None, none, DECODING) for one in (together, in_turn))
    assert torch.equal(answers, tokens)
    assert chain.lengths.tolist() == [0] * 6


def test_one_latent_is_refined_too() -> None:
    together, in_turn = reasoners("unspoken", 1)
    chain, expected = (
        rollout(one, prompts(), None, StopRule(max_latents=1, fixed=True)) for one in (together, in_turn)
    )
    torch.testing.assert_close(chain.latents, expected.latents, **CLOSE)


@torch.no_grad()
def test_the_first_step_takes_all_passes_and_what_follows_the_chain_is_read_next() -> None:
    together, _ = reasoners("unspoken", 2)
    rows = [Row(max_latents=LATENTS, fixed=True, decoding=DECODING) for _ in range(6)]
    running = Decoder(together, rows, together.embed_prompt(prompts()), [5] * 6)
    assert len(running.step()) == LATENTS
    assert running.columns == 5 + LATENTS
    marker = together.embed_prompt(torch.tensor([[7]]))
    torch.testing.assert_close(running.inputs, marker.expand(6, -1, -1))


def windowed() -> dict[str, Any]:
    return {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}


def test_a_window_goes_back_and_a_recurrent_state_does_not() -> None:
    together, in_turn = reasoners("qwen2", LATENTS, **windowed())
    expected = rollout(in_turn, prompts(), None, STOP)
    torch.testing.assert_close(rollout(together, prompts(), None, STOP).latents, expected.latents, **CLOSE)
    recurrent = tiny_recurrent_model()
    with pytest.raises(ValueError, match=r"^Name has layers with a recurrent state, .*choose a model with attention"):
        allow_rollback(DynamicCache(config=recurrent.config), "Name")
    allow_rollback(DynamicCache(config=together.stack.config), "Name")


def test_steps_of_fixed_shape_are_left_out_where_latents_are_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Watched(StaticSteps):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(1)

    monkeypatch.setattr("unspoken.reasoning.engine.StaticSteps", Watched)
    # A cache of constant size cannot go back; without passes nothing has to.
    for iterations, fixed_shapes in ((0, 1), (1, 0), (2, 0)):
        together, _ = reasoners("llama", iterations)
        made.clear()
        chain, tokens = respond(together, prompts(), None, STOP, DECODING, static=True)
        assert len(made) == fixed_shapes
        expected, answers = respond(together, prompts(), None, STOP, DECODING)
        torch.testing.assert_close(chain.latents, expected.latents, **CLOSE)
        assert torch.equal(tokens, answers)
