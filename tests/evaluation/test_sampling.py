"""Noisy chains: what is drawn at a step, and noise that belongs to a row alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conformance import left_padded
from tiny_models import tiny_language_model
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system
from torch.overrides import TorchFunctionMode

from unspoken.chain import LatentChain
from unspoken.evaluation import sampling
from unspoken.evaluation.answering import Graded, answer
from unspoken.evaluation.sampling import NoisyReasoner, draw, draws_differ
from unspoken.methods.soft_thinking import SoftThinking
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.system import System

PROBLEMS = TASK.sample("test", range(5))


def sources(count: int, first: int = 0) -> tuple[torch.Generator, ...]:
    return tuple(torch.Generator().manual_seed(first + index) for index in range(count))


# --- one step --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_explicit_chain_is_sampled_from_the_model_its_end_included() -> None:
    model, hidden = tiny_language_model("llama"), torch.randn(1, 16)
    chances = model.get_output_embeddings()(hidden)[0].softmax(dim=-1)
    end = int(chances.topk(2).indices[1])
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(end,), top_k=1)
    latent_step = NoisyReasoner(model=model, settings=settings, generators=sources(4000)).step(hidden.expand(4000, 16))
    assert (
        latent_step.support_ids is not None
        and latent_step.support_weights is not None
        and latent_step.recorded is not None
    )
    drawn = latent_step.support_ids[:, 0]
    torch.testing.assert_close(torch.bincount(drawn, minlength=20) / 4000, chances, rtol=0, atol=0.03)
    assert 0 < int(latent_step.done.sum()) < 4000
    assert torch.equal(latent_step.done, drawn == end)
    assert torch.equal(latent_step.recorded, drawn != end)
    assert torch.equal(latent_step.next_input, model.get_input_embeddings()(drawn))
    assert latent_step.support_weights.unique().tolist() == [1.0]


@torch.no_grad()
def test_nine_of_ten_draws_are_of_the_likelier_token_and_none_of_those_without_a_chance() -> None:
    model, hidden = tiny_language_model("llama"), torch.eye(16)[:1]
    rows = model.get_output_embeddings().weight
    rows[:, 0] = -1e4
    rows[5, 0], rows[6, 0] = math.log(0.9), math.log(0.1)
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(3,), top_k=1)
    drawn = NoisyReasoner(model=model, settings=settings, generators=sources(4000)).step(hidden.expand(4000, 16))
    assert drawn.support_ids is not None
    tokens, counts = drawn.support_ids.unique(return_counts=True)
    assert tokens.tolist() == [5, 6]
    assert abs(int(counts[0]) - 3600) < 60  # three standard deviations


@torch.no_grad()
def test_a_superposition_keeps_its_tokens_and_its_stop_and_never_leans_to_the_end() -> None:
    system = tiny_word_system("llama")
    hidden = torch.randn(64, 16)
    scores = system.reasoner.logits(hidden)
    # The end is what some rows most likely say, and the second choice of others.
    end = int(scores.argmax(dim=-1).mode().values)
    settings = replace(system.reasoner.settings, end_ids=(end,))
    clean = CausalLMReasoner(model=system.model, settings=settings).step(hidden)
    noisy = NoisyReasoner(model=system.model, settings=settings, generators=sources(64)).step(hidden)
    assert clean.support_ids is not None and noisy.support_ids is not None
    assert clean.support_weights is not None and noisy.support_weights is not None
    assert 0 < int(clean.done.sum()) < 64
    assert torch.equal(noisy.done, clean.done)
    assert torch.equal(noisy.support_ids, clean.support_ids)
    going = ~clean.done
    assert (noisy.support_weights - clean.support_weights)[going].abs().sum(dim=-1).min() > 1e-4
    torch.testing.assert_close(noisy.support_weights.sum(dim=-1), torch.ones(64))
    heaviest = noisy.support_ids.gather(1, noisy.support_weights.argmax(dim=-1, keepdim=True))[:, 0]
    assert (clean.support_ids[going, 1:] == end).any()
    assert (heaviest != clean.support_ids[:, 0])[going].any()
    assert not (heaviest == end)[going].any()


class Sent(TorchFunctionMode):
    """Whether the host waits for what it sends to a device, copy by copy."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[bool] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.to and not isinstance(args[1], torch.dtype):
            self.waits.append(not (kwargs or {}).get("non_blocking", False))
        return function(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 5])
def test_what_is_drawn_on_the_host_is_sent_without_waiting(top_k: int) -> None:
    system = tiny_word_system("llama", top_k=top_k)
    noisy = NoisyReasoner(model=system.model, settings=system.reasoner.settings, generators=sources(3))
    hidden = torch.randn(3, 16)
    with Sent() as sent:
        noisy.step(hidden)
    assert sent.waits and not any(sent.waits)


# --- whole chains ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 5])
def test_a_chain_is_the_same_whatever_is_beside_it(top_k: int) -> None:
    system = tiny_word_system("llama", top_k=top_k)
    prompts = [torch.tensor(PROMPT_FORMAT.prompt(problem.question)) for problem in PROBLEMS]

    def chain_of(rows: list[int], first: int = 0) -> LatentChain:
        chosen = tuple(torch.Generator().manual_seed(first + row) for row in rows)
        reasoner = NoisyReasoner(model=system.model, settings=system.reasoner.settings, generators=chosen)
        return reasoner.respond(*left_padded([prompts[row] for row in rows]), max_tokens=3)[0]

    together = chain_of([4, 0, 2, 1, 3])
    assert together.support_ids is not None
    for place, row in enumerate((4, 0, 2, 1, 3)):
        alone, steps = chain_of([row]), int(together.lengths[place])
        assert alone.support_ids is not None
        assert int(alone.lengths[0]) == steps
        assert torch.equal(alone.support_ids[0, :steps], together.support_ids[place, :steps])
        torch.testing.assert_close(alone.latents[0, :steps], together.latents[place, :steps], rtol=1e-4, atol=2e-5)
    others = chain_of([4, 0, 2, 1, 3], first=100)
    assert not torch.equal(others.mask, together.mask) or not torch.allclose(others.latents, together.latents)


def recorded(monkeypatch: pytest.MonkeyPatch, batch_size: int, seed: int) -> tuple[dict[str, list[int]], np.ndarray]:
    """The noise of each problem's draws, and which draws were right: every second noise gives the right answer."""
    noise: dict[str, list[int]] = {}

    def answer(system: System, task: Any, problems: Any, _format: Any, *, batch_size: int) -> Graded:
        rows = batch_size
        assert task is TASK
        assert isinstance(system.reasoner, NoisyReasoner)
        assert rows == len(problems) == len(system.reasoner.generators)
        sources = [source.initial_seed() for source in system.reasoner.generators]
        for problem, source in zip(problems, sources, strict=True):
            noise.setdefault(problem.key, []).append(source)
        nothing = torch.zeros(rows, 0, 16)
        chain = LatentChain(latents=nothing, mask=nothing[..., 0].bool(), stop=torch.zeros(rows).long())
        right = torch.tensor([source % 2 == 0 for source in sources])
        return Graded(chain=chain, tokens=torch.zeros(rows, 1).long(), lengths=right.long(), correct=right)

    monkeypatch.setattr(sampling, "answer", answer)
    system = tiny_word_system("llama")
    correct = draw(system, TASK, PROBLEMS, PROMPT_FORMAT, batch_size=batch_size, draws=4, seed=seed)
    return noise, correct


def test_noise_belongs_to_seed_problem_and_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    noise, correct = recorded(monkeypatch, 7, 0)
    assert list(noise) == [problem.key for problem in PROBLEMS]
    assert len({source for several in noise.values() for source in several}) == 20
    assert correct.tolist() == [[source % 2 == 0 for source in several] for several in noise.values()]
    again, _ = recorded(monkeypatch, 3, 0)
    assert again == noise
    other, _ = recorded(monkeypatch, 7, 1)
    assert not {source for several in other.values() for source in several} & {s for row in noise.values() for s in row}


# --- Soft Thinking ---------------------------------------------------------------------------------------------------


def test_soft_thinking_is_drawn_with_its_own_noise_filter_and_stop() -> None:
    system = tiny_word_system("llama", top_k=1)

    def drawn(seed: int = 0, **settings: Any) -> tuple[System, list[System]]:
        soft, used = SoftThinking(max_latents=4, **settings).applied(system), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "answer", lambda one, *given, **how: used.append(one) or answer(one, *given, **how))
            assert draw(soft, TASK, PROBLEMS, PROMPT_FORMAT, batch_size=2, draws=3, seed=seed).shape == (5, 3)
        return soft, used

    soft, used = drawn(noise="gumbel", filter_top_k=3, entropy_threshold=0.1, patience=2)
    # Nothing but the seed of the noise differs, so chains do.
    assert [replace(one, reasoner=replace(one.reasoner, seed=0)) for one in used] == [soft] * 3
    seeds = [one.reasoner.seed for one in (*used, *drawn(1, noise="gumbel")[1])]
    assert len(set(seeds)) == 6
    assert [one.reasoner.seed for one in drawn(noise="gumbel")[1]] == seeds[:3]
    chains = [answer(one, TASK, PROBLEMS, PROMPT_FORMAT, batch_size=5).chain.latents for one in used[:2]]
    assert chains[0].shape != chains[1].shape or not torch.allclose(*chains)
    assert draws_differ(soft) and draws_differ(system)
    assert not draws_differ(SoftThinking().applied(system))
