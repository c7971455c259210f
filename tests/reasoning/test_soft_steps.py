"""Steps of Soft Thinking: what a filter keeps, noise that belongs to a row, and certainty."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from settings_checks import check_ranges
from tiny_models import tiny_language_model
from torch import Tensor

from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.reasoning.engine import LatentStep
from unspoken.reasoning.soft_steps import Filter, SoftReasoner, entropy, row_draws
from unspoken.reasoning.superposition import embedding_table


def soft(top_k: int | None = 10, *, temperature: float = 1.0, **how: Any) -> SoftReasoner:
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(3, 6), top_k=top_k, temperature=temperature)
    return SoftReasoner(model=tiny_language_model("unspoken"), settings=settings, **{"filter": Filter(), **how})


@torch.no_grad()
def test_one_token_or_no_temperature_is_the_likeliest_token() -> None:
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    for cold in (soft(top_k=1), soft(temperature=1e-4)):
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
    with pytest.raises(ValueError, match=r"top_p is 0\.0"):
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


def test_a_filter_keeps_what_reaches_its_bounds_and_no_more() -> None:
    check_ranges(Filter, {"top_k": ([1], [0]), "top_p": ([1e-6, 1.0], [0.0, 1.01]), "min_p": ([0.0], [-0.01, 1.0])})
    given = torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    # The first two have 0.75 together, and the second is half as likely as the first.
    for filter_, kept in ((Filter(top_p=0.75), 2), (Filter(top_p=0.76), 3), (Filter(min_p=0.5), 2), (Filter(), 4)):
        assert int((filter_(given)[0] > 0).sum()) == kept, filter_
    # No more entries than there are.
    assert Filter(top_k=9)(given)[0].shape == (1, 4)


@torch.no_grad()
def test_a_step_without_noise_by_hand() -> None:
    # Probabilities 0.4, 0.3, 0.2 and 0.1 of four tokens at temperature 1; at 1/2 they are squared first.
    logits = torch.full((20,), -math.inf).index_copy(0, torch.tensor([3, 9, 5, 7]), torch.tensor([4, 3, 2, 1.0]).log())
    how = soft(top_k=2, filter=Filter(top_k=3))
    step = steps(how, logits, 2)
    assert step.support_ids is not None and step.support_weights is not None and step.certain is not None
    assert step.support_ids.tolist() == [[3, 9]] * 2
    torch.testing.assert_close(step.support_weights, torch.tensor([[4 / 7, 3 / 7]] * 2))
    table = embedding_table(how.model)
    torch.testing.assert_close(step.latent[0], (4 * table[3] + 3 * table[9]) / 7)
    assert torch.equal(step.latent, step.next_input)
    # Token 3 begins the end marker: a step at which it is heaviest is not part of the chain.
    assert (step.done.tolist(), step.recorded.tolist()) == ([True] * 2, [False] * 2)  # type: ignore[union-attr]
    other = steps(soft(top_k=2), logits.roll(1), 1)
    assert (other.done.tolist(), other.recorded.tolist()) == ([False], [True])  # type: ignore[union-attr]
    squared = steps(soft(top_k=2, temperature=0.5), logits, 1)
    torch.testing.assert_close(squared.support_weights, torch.tensor([[16 / 25, 9 / 25]]))
    # The entropy is that of all four, and a step is certain below the threshold, not at it.
    nats = -sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1))
    for threshold, certain in ((nats + 1e-4, True), (nats - 1e-4, False), (0.0, False)):
        assert steps(soft(certain_below=threshold), logits, 1).certain.tolist() == [certain]  # type: ignore[union-attr]

    sure = torch.full((20,), -math.inf).index_fill(0, torch.tensor([4]), 0.0)
    assert steps(soft(certain_below=0.0), sure, 1).certain.tolist() == [False]  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 5])
def test_noise_of_a_row_by_hand(seed: int) -> None:
    logits = torch.full((20,), -math.inf).index_copy(0, torch.tensor([4, 9, 5]), torch.tensor([5, 3, 2.0]).log())
    weights, ids = np.array([0.5, 0.3, 0.2]), np.array([4, 9, 5])
    kept = {"filter": Filter(top_k=3)}
    gumbel = steps(soft(top_k=None, mixture_noise="gumbel", level=0.25, **kept), logits, 3, seed)
    dirichlet = steps(soft(top_k=None, mixture_noise="dirichlet", level=20.0, **kept), logits, 3, seed)
    for row in range(3):
        # Gumbel: softmax of (log w + G) / level. Dirichlet: gamma variables of shape w * level over their sum.
        noisy = np.exp((np.log(weights) + np.random.default_rng([seed, row, 0]).gumbel(size=3)) / 0.25)
        gamma = np.random.default_rng([seed, row, 0]).standard_gamma(20.0 * weights)
        for step, drawn in ((gumbel, noisy), (dirichlet, gamma)):
            order = np.argsort(-drawn)
            assert step.support_ids is not None and step.support_weights is not None
            assert step.support_ids[row].tolist() == ids[order].tolist()
            expected = torch.from_numpy((drawn / drawn.sum())[order]).float()
            torch.testing.assert_close(step.support_weights[row], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_concentration_too_small_to_draw_from_leaves_the_likeliest_token() -> None:
    # Every gamma variable of such a shape is zero.
    step = steps(soft(top_k=None, mixture_noise="dirichlet", level=1e-30), torch.linspace(3, 0, 20), 2)
    assert step.support_ids is not None and step.support_weights is not None
    assert step.support_ids[:, 0].tolist() == [0, 0]
    assert step.support_weights.tolist() == [[1.0, *[0.0] * 19]] * 2
