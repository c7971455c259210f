"""Soft Thinking's filters, noise and cold stop, and the identities of their specification."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CAP, CausalConformance, left_padded
from settings_checks import check_defaults, check_ranges
from tiny_models import FAMILIES, prompts, tiny_language_model
from tiny_words import TEXT_FORMAT
from torch import Tensor

from unspoken.chain import StopReason
from unspoken.methods.soft_thinking import SoftThinking
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.engine import LatentStep, StopRule, rollout
from unspoken.reasoning.soft_steps import Filter, SoftReasoner, entropy, row_draws
from unspoken.reasoning.system import System
from unspoken.serving.batch import Batch, Progress
from unspoken.serving.systems import Served

ENDS = {"unspoken": 3, "llama": 7, "qwen2": 11, "gpt2": 4}  # a token that random weights choose early, late and never
ROWS = [row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]


def settings(family: str, **how: Any) -> LatentGenerationConfig:
    return LatentGenerationConfig(open_ids=(2,), end_ids=(ENDS[family], 6), **{"max_latents": CAP, **how})


def soft(family: str = "unspoken", attention: str = "eager", top_k: int | None = 10, **how: Any) -> SoftReasoner:
    model = tiny_language_model(family, attention)
    given = {"filter": Filter(), **how}
    return SoftReasoner(model=model, settings=settings(family, top_k=top_k), **given)


def system_of(way: SoftThinking, family: str = "llama") -> System:
    """A model with explicit chains that thinks softly; no text is read."""
    model = tiny_language_model(family)
    how = settings(family, top_k=1)
    how.attach(model)
    return way.applied(replace(causal_lm_system(model, how, name=family, max_tokens=3), text_format=TEXT_FORMAT))


@pytest.fixture(params=[*product(FAMILIES, ("eager",)), ("llama", "sdpa")], ids="-".join)
def reasoner(request: pytest.FixtureRequest) -> SoftReasoner:
    return soft(*request.param)


class TestConformance(CausalConformance):
    """As it is by default."""


@pytest.mark.parametrize("family", FAMILIES)
def test_without_choices_it_is_the_superposition_of_the_library(family: str) -> None:
    mine = soft(family)
    theirs = CausalLMReasoner(model=mine.model, settings=mine.settings)
    one, two = (rollout(each, prompts(), None, StopRule(max_latents=CAP)) for each in (mine, theirs))
    assert torch.equal(one.mask, two.mask)
    torch.testing.assert_close(one.latents, two.latents, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_token_or_no_temperature_is_the_likeliest_token() -> None:
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    for cold in (soft(top_k=1), replace(soft(), settings=settings("unspoken", temperature=1e-4))):
        step = cold.step(hidden)
        token = cold.logits(hidden).argmax(dim=-1)
        assert step.support_ids is not None and torch.equal(step.support_ids[:, 0], token)
        torch.testing.assert_close(step.latent, cold.embed_prompt(token[:, None])[:, 0])


def test_filters_follow_one_another() -> None:
    given = torch.tensor([[0.5, 0.05, 0.25, 0.2]])
    for filter_, expected in (
        (Filter(), [0.5, 0.25, 0.2, 0.05]),
        (Filter(top_k=2), [2 / 3, 1 / 3]),
        (Filter(top_p=0.7), [2 / 3, 1 / 3, 0, 0]),
        (Filter(top_p=0.4), [1.0, 0, 0, 0]),
        (Filter(min_p=0.45), [2 / 3, 1 / 3, 0, 0]),
        # Of three tokens, the first two have reached 0.75 of their sum.
        (Filter(top_k=3, top_p=0.75), [2 / 3, 1 / 3, 0]),
    ):
        weights, ids = filter_(given)
        torch.testing.assert_close(weights, torch.tensor([expected]))
        assert ids[0].tolist() == [0, 2, 3, 1][: len(expected)]
    with pytest.raises(ValueError, match=r"top_p 0\.0"):
        Filter(top_p=0.0)


def steps(how: SoftReasoner, logits: Tensor, rows: int, seed: int = 0) -> LatentStep:
    """Steps of many prompts with the same scores."""

    class Fixed(SoftReasoner):
        def logits(self, hidden: Tensor) -> Tensor:
            return logits.expand(len(hidden), -1)

    fixed = Fixed(**{**vars(how), "seed": seed})
    return fixed.random_step(torch.zeros(rows, 16), [(row, 0) for row in range(rows)])


@torch.no_grad()
def test_gumbel_noise_draws_tokens_when_cold_and_nothing_when_hot() -> None:
    logits = torch.linspace(0, 3, 20)
    expected = F.softmax(logits, dim=-1)
    cold = steps(soft(top_k=None, mixture_noise="gumbel", level=1e-3), logits, 4000)
    assert cold.support_ids is not None and cold.support_weights is not None
    assert float(cold.support_weights[:, 0].mean()) > 0.99
    found = torch.bincount(cold.support_ids[:, 0], minlength=20) / 4000
    assert (found - expected).abs().max() < 4 * math.sqrt(0.25 / 4000)
    hot = steps(soft(top_k=5, mixture_noise="gumbel", level=1e4), logits, 50)
    torch.testing.assert_close(hot.support_weights, torch.full((50, 5), 0.2), rtol=0, atol=2e-3)


@torch.no_grad()
def test_dirichlet_noise_keeps_the_mean() -> None:
    logits = torch.linspace(0, 3, 20)
    step = steps(soft(top_k=None, mixture_noise="dirichlet", level=5.0), logits, 4000)
    assert step.support_ids is not None and step.support_weights is not None
    mean = torch.zeros(4000, 20).scatter(1, step.support_ids, step.support_weights).mean(dim=0)
    expected = F.softmax(logits, dim=-1)
    assert (mean - expected).abs().max() < 0.01
    torch.testing.assert_close(step.support_weights.sum(dim=1), torch.ones(4000))


@pytest.mark.parametrize("noise", ["gumbel", "dirichlet"])
def test_noise_depends_on_seed_and_prompt_and_not_on_the_batch(noise: Any) -> None:
    way = SoftThinking(noise=noise, noise_level=1.0, top_k=5)
    system = system_of(way)
    together = system.respond(*left_padded(ROWS))
    for row, prompt in enumerate(ROWS):
        alone = system.respond(prompt[None])
        length = int(alone.chain.lengths[0])
        assert length == int(together.chain.lengths[row])
        torch.testing.assert_close(
            together.chain.latents[row, :length], alone.chain.latents[0, :length], rtol=1e-4, atol=2e-5
        )
    other = system_of(replace(way, seed=1)).respond(*left_padded(ROWS))
    assert not torch.equal(other.chain.mask, together.chain.mask) or not torch.allclose(
        other.chain.latents, together.chain.latents
    )
    served, batch, made = Served(system=system), Batch(system.reasoner), dict[int, list[Progress]]()
    for row, prompt in enumerate(ROWS):
        made[row] = []
        job = served.job(prompt.tolist(), 3)
        job.report = made[row].append
        batch.join([job])
        batch.step()
    while batch.rows:
        batch.step()
    for row, progress in made.items():
        assert progress[-1].latents == int(together.chain.lengths[row])


def test_draws_are_the_row_s_own() -> None:
    keys = [(7, 0), (7, 1), (8, 0)]
    drawn = row_draws(keys, 0, lambda source, _: source.gumbel(size=3))
    again = row_draws(keys[1:2], 0, lambda source, _: source.gumbel(size=3))
    assert torch.equal(drawn[1], again[0])
    assert len({tuple(row.tolist()) for row in drawn}) == 3
    assert not torch.equal(drawn, row_draws(keys, 1, lambda source, _: source.gumbel(size=3)))
    assert np.isfinite(drawn.numpy()).all()


@torch.no_grad()
def test_the_entropy_is_that_of_the_distribution_without_filter() -> None:
    given = F.softmax(torch.randn(4, 20, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(entropy(given), torch.distributions.Categorical(probs=given).entropy())
    torch.testing.assert_close(entropy(torch.full((1, 20), 0.05)), torch.tensor([math.log(20)]))
    hidden = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    narrow = soft(filter=Filter(top_k=1))
    between = float(entropy(F.softmax(narrow.logits(hidden), dim=-1)).median())
    certain = replace(narrow, certain_below=between + 1e-4).step(hidden).certain
    assert certain is not None and 0 < int(certain.sum()) < 6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cold_stop_closes_a_chain_that_has_been_certain_for_long(family: str) -> None:
    free = system_of(SoftThinking(), family).respond(*left_padded(ROWS))
    never = system_of(SoftThinking(entropy_threshold=1e-9, patience=1), family).respond(*left_padded(ROWS))
    assert torch.equal(never.chain.mask, free.chain.mask)
    at_once = system_of(SoftThinking(entropy_threshold=100.0, patience=3), family).respond(*left_padded(ROWS))
    # The step that exhausts the patience is replaced by the end marker.
    assert at_once.chain.lengths.tolist() == [min(2, int(length)) for length in free.chain.lengths]
    for stop, length, before in zip(at_once.chain.stop, at_once.chain.lengths, free.chain.lengths, strict=True):
        ended = int(before) < 3 and free.chain.stop.tolist().count(StopReason.END) > 0
        assert stop == StopReason.CERTAIN or (ended and int(length) == int(before))


@pytest.mark.parametrize(
    "wrong", [{"noise_level": 0.0}, {"patience": 0}, {"entropy_threshold": -1.0}, {"seed": -1}], ids=str
)
def test_numbers_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="the level is positive, patience at least 1"):
        SoftThinking(**wrong)


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(SoftThinking, "methods/soft_thinking.md")


def test_settings_end_where_they_say() -> None:
    counts: dict[str, Any] = {"patience": ([1], [0]), "seed": ([0], [-1])}
    check_ranges(SoftThinking, {**counts, "noise_level": ([1e-6], [0.0]), "entropy_threshold": ([0.0], [-0.01])})
    check_ranges(Filter, {"top_k": ([1], [0]), "top_p": ([1e-6, 1.0], [0.0, 1.01]), "min_p": ([0.0], [-0.01, 1.0])})
