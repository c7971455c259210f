"""Measures of superposition on distributions made by hand, and against plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unspoken.analysis.superposition import (
    Parallelism,
    average_by_step,
    distinct,
    ecr,
    entropy,
    exit_rate,
    global_parallelism,
)
from unspoken.chain import StopReason

EPSILON = 1e-12


def distributions_of(steps: int, vocabulary: int) -> Tensor:
    return torch.randn(steps, vocabulary, dtype=torch.float64).mul(2).softmax(dim=-1)


# --- entropy ---------------------------------------------------------------------------------------------------------


def test_entropy_of_uniform_weights_is_the_log_of_their_number_and_of_one_token_is_zero() -> None:
    weights = torch.stack([torch.full((8,), 1 / 8), F.one_hot(torch.tensor(3), 8).float()])
    torch.testing.assert_close(entropy(weights), torch.tensor([math.log(8), 0.0]))


def test_entropy_is_in_nats_and_keeps_the_leading_axes() -> None:
    weights = torch.tensor([[[0.5, 0.25, 0.25]], [[0.9, 0.1, 0.0]]], dtype=torch.float64)
    expected = [[1.5 * math.log(2)], [-0.9 * math.log(0.9) - 0.1 * math.log(0.1)]]
    torch.testing.assert_close(entropy(weights), torch.tensor(expected, dtype=torch.float64))


def test_the_average_by_step_counts_only_chains_that_get_there() -> None:
    values = [torch.tensor([4.0, 2.0, 1.0]), torch.tensor([]), torch.tensor([2.0]), torch.tensor([0.0, 4.0])]
    mean, counts = average_by_step(values)
    assert mean.tolist() == [2.0, 3.0, 1.0]
    assert counts.tolist() == [3, 2, 1]
    assert [numbers.tolist() for numbers in average_by_step(values[:1])] == [[4.0, 2.0, 1.0], [1, 1, 1]]


def test_an_average_needs_a_chain() -> None:
    with pytest.raises(ValueError, match="no chain to average"):
        average_by_step([])


# --- exit rate -------------------------------------------------------------------------------------------------------


def test_the_exit_rate_leaves_out_rows_that_had_no_choice() -> None:
    stop = torch.tensor([StopReason.END, StopReason.CAP, StopReason.FIXED, StopReason.END, StopReason.END])
    assert exit_rate(stop) == 0.75


def test_the_exit_rate_of_no_free_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no free row"):
        exit_rate(torch.tensor([StopReason.FIXED]))


# --- effective compression rate --------------------------------------------------------------------------------------


def test_ecr_by_hand() -> None:
    # Spans of five tokens for two steps: [0, 2) and [2, 5).
    distribution = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05], [0.05, 0.1, 0.15, 0.3, 0.4]])
    rates = ecr([distribution], [[0, 4, 4, 4, 0]], top=(1, 4, 5))
    # K = 1: token 0 of the first span, token 4 twice in the second. K = 4 leaves out 4 at first and 0 later.
    assert rates[1].tolist() == [1.5]
    assert rates[4].tolist() == [1.5]
    assert rates[5].tolist() == [2.5]


@pytest.mark.parametrize(("steps", "length"), [(1, 7), (3, 7), (4, 4), (5, 13), (6, 4), (7, 0)])
def test_ecr_is_that_of_a_plain_loop(steps: int, length: int) -> None:
    vocabulary, top = 30, (1, 3, 10, 29)
    distribution = distributions_of(steps, vocabulary)
    chain = torch.randint(vocabulary, (length,)).tolist()
    rates = ecr([distribution], [chain], top=top)
    for most_likely in top:
        covered = 0
        for step in range(steps):
            leading = np.argsort(-distribution[step].numpy())[:most_likely].tolist()
            span = chain[math.floor(step * length / steps) : math.floor((step + 1) * length / steps)]
            covered += sum(token in leading for token in span)
        assert rates[most_likely].tolist() == [pytest.approx(covered / steps)]


def test_ecr_grows_with_k_up_to_tokens_a_step() -> None:
    samples = [distributions_of(steps, 40) for steps in (1, 3, 5)]
    chains = [torch.randint(40, (11,)).tolist() for _ in samples]
    rates = ecr(samples, chains, top=(5, 10, 20, 40, 1000))
    table = np.stack([rates[most_likely] for most_likely in (5, 10, 20, 40, 1000)])
    assert (np.diff(table, axis=0) >= 0).all()
    np.testing.assert_allclose(table[3], [11, 11 / 3, 11 / 5])
    np.testing.assert_allclose(table[4], table[3])


def test_explicit_chain_of_thought_has_a_rate_of_one() -> None:
    chain = [3, 1, 4, 1, 5]
    rates = ecr([F.one_hot(torch.tensor(chain), 10).float()], [chain], top=(1,))
    assert rates[1].tolist() == [1.0]


def test_a_sample_without_steps_has_no_rate() -> None:
    samples = [torch.full((2, 4), 0.25), torch.zeros(0, 4), torch.full((1, 4), 0.25)]
    rates = ecr(samples, [[0, 1], [2, 3], [1, 2, 3]], top=(4,))
    assert rates[4].tolist() == [1.0, 3.0]


def test_the_published_values_of_k_are_the_default() -> None:
    assert list(ecr([torch.full((1, 4), 0.25)], [[0]])) == [50, 100, 150, 200, 250, 300]


def test_ecr_refuses_labels_that_were_cut_to_a_few_tokens() -> None:
    cut = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    assert ecr([cut], [[0, 1]], top=(2,))[2].shape == (1,)
    with pytest.raises(ValueError, match="fewer than 3 possible tokens"):
        ecr([cut], [[0, 1]], top=(2, 3))
    # Of a whole vocabulary nothing was cut, though some of its tokens are impossible.
    assert ecr([cut], [[0, 3]], top=(4,))[4].tolist() == [1.0]


@pytest.mark.parametrize(
    ("chains", "top", "message"),
    [
        ([], (1,), "1 distributions but 0 chains"),
        ([[0]], (), "at least one K"),
        ([[0]], (0, 1), "each 1 or more"),
        ([[0, 4]], (1,), "chain of sample 0 has token ids 0 to 4"),
        ([[-1, 2]], (1,), "token ids -1 to 2"),
    ],
)
def test_ecr_refuses_what_does_not_fit(chains: list[list[int]], top: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ecr([torch.full((1, 4), 0.25)], chains, top=top)


# --- global parallelism ----------------------------------------------------------------------------------------------


def of_one_step(weights: list[float], chains: list[list[int]]) -> Parallelism:
    """With one latent every matching is the same, so all that counts is the mass of each chain's tokens."""
    references = [torch.randn(1, 4) for _ in chains]
    distribution = torch.tensor([weights], dtype=torch.float64)
    return global_parallelism(distribution, torch.randn(1, 4), chains, references, seed=0)


def effective(scores: list[float]) -> float:
    """Exp of the entropy of a softmax."""
    weights = np.exp(np.array(scores) - max(scores))
    weights = weights / weights.sum()
    return math.exp(-sum(weight * math.log(weight) for weight in weights if weight > 0))


def orthogonal(steps: int) -> Tensor:
    return torch.eye(max(steps, 4))[:steps]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_latents_that_favour_no_chain_give_m(count: int) -> None:
    distribution = torch.full((4, 60), 1 / 60)
    chains = torch.arange(8 * count).reshape(count, 8).tolist()
    references = [torch.randn(4, 6) for _ in chains]
    found = global_parallelism(distribution, torch.randn(4, 6), chains, references, seed=0)
    assert found.chains == count
    assert found.n_eff == pytest.approx(count)
    assert found.n_naive == pytest.approx(count)
    assert found.n_eff_v1 == pytest.approx(count)
    assert found.ratio == pytest.approx(1)
    assert found.top2 == pytest.approx(1)
    assert found.top2_v1 == pytest.approx(1)


def test_latents_that_are_one_chain_give_one() -> None:
    distribution = F.one_hot(torch.tensor([5, 2, 7]), 10).float()
    latents = orthogonal(3)
    found = global_parallelism(distribution, latents, [[5, 2, 7], [1, 3, 4], [6, 8, 9]], [latents] * 3, seed=0)
    assert found.n_eff == pytest.approx(1)
    assert found.n_eff_v1 == pytest.approx(1)
    assert found.top2 == pytest.approx(0, abs=1e-9)
    # A random matching misses the one chain in part, but still cannot favour the others.
    assert found.n_naive > 1.01
    assert found.ratio < 1


def test_with_one_step_the_weights_are_the_masses() -> None:
    found = of_one_step([0.6, 0.3, 0.1], [[0], [1]])
    assert found.n_eff == pytest.approx((2 / 3) ** (-2 / 3) * (1 / 3) ** (-1 / 3))
    assert found.n_naive == pytest.approx(found.n_eff)
    assert found.n_eff_v1 == pytest.approx(found.n_eff)
    assert found.top2 == pytest.approx(0.5)


def test_top2_compares_the_runner_up_and_not_the_last() -> None:
    assert of_one_step([0.1, 0.5, 0.4], [[0], [1], [2]]).top2 == pytest.approx(0.8)


def test_every_occurrence_of_a_token_counts() -> None:
    found = of_one_step([0.2, 0.4, 0.4], [[0, 0], [1]])
    assert found.n_eff == pytest.approx(2)
    assert of_one_step([0.2, 0.4, 0.4], [[0], [1]]).n_eff < 1.95


def test_a_token_beyond_the_hundred_most_likely_supports_nothing() -> None:
    weights = torch.linspace(2, 1, 150, dtype=torch.float64)
    weights = (weights / weights.sum()).tolist()
    assert of_one_step(weights, [[0], [99]]).n_eff > 1.9
    assert of_one_step(weights, [[0], [100]]).n_eff == pytest.approx(1)


def test_an_empty_span_contributes_the_floor() -> None:
    # The first of the two spans of a chain of one token is empty.
    distribution = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.4, 0.4]], dtype=torch.float64)
    latents = orthogonal(2)
    found = global_parallelism(distribution, latents, [[1], [0, 1]], [latents] * 2, seed=0)
    scores = [(math.log(EPSILON) + math.log(0.4)) / 2, (math.log(0.5) + math.log(0.4)) / 2]
    assert found.n_eff_v1 == pytest.approx(effective(scores))
    assert found.top2_v1 == pytest.approx(math.exp(scores[0] - scores[1]))


def test_latents_in_another_order_are_matched_to_their_spans() -> None:
    # The first chain is thought backwards: step 0 holds its second token.
    distribution = torch.tensor([[0.1, 0.8, 0.05, 0.05], [0.8, 0.1, 0.05, 0.05]], dtype=torch.float64)
    latents = orthogonal(2)
    found = global_parallelism(distribution, latents, [[0, 1], [2, 3]], [latents.flip(0), latents], seed=0)
    assert found.n_eff == pytest.approx(effective([math.log(0.8), math.log(0.05)]))
    assert found.n_eff_v1 == pytest.approx(effective([math.log(0.1), math.log(0.05)]))
    assert found.top2 == pytest.approx(0.05 / 0.8)
    assert found.top2_v1 == pytest.approx(0.5)


def test_an_earlier_step_takes_the_nearest_span_from_a_later_one() -> None:
    # Both steps are nearest to reference 1; the first takes it although the second needs it more.
    latents = torch.tensor([[0.5, 1.0], [0.0, 1.0]])
    reference = torch.eye(2)
    distribution = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.3, 0.1, 0.2, 0.4]], dtype=torch.float64)
    found = global_parallelism(distribution, latents, [[0, 1], [2, 2]], [reference, reference], seed=0)
    assert found.n_eff == pytest.approx(effective([(math.log(0.6) + math.log(0.3)) / 2, math.log(0.2)]))
    assert found.n_eff_v1 == pytest.approx(effective([math.log(0.1), math.log(0.2)]))


def brute_force(
    distribution: Tensor, chains: list[list[int]], counts: list[int], matchings: tuple[tuple[int, ...], ...]
) -> float:
    """N_eff of given matchings, with plain loops."""
    scores = []
    for chain, count, matching in zip(chains, counts, matchings, strict=True):
        total = 0.0
        for step, span in enumerate(matching):
            row = distribution[step].tolist()
            leading = sorted(range(len(row)), key=lambda token: -row[token])[:100]
            tokens = chain[span * len(chain) // count : (span + 1) * len(chain) // count]
            total += math.log(EPSILON + sum(row[token] for token in tokens if token in leading))
        scores.append(total / count)
    return effective(scores)


def greedy(latents: Tensor, reference: Tensor) -> tuple[int, ...]:
    free, taken = list(range(len(reference))), []
    for latent in latents:
        best = max(free, key=lambda span: float(F.cosine_similarity(latent, reference[span], dim=0)))
        free.remove(best)
        taken.append(best)
    return tuple(taken)


def test_parallelism_is_that_of_plain_loops_with_a_span_for_each_reference() -> None:
    vocabulary, steps = 120, 5
    distribution, latents = distributions_of(steps, vocabulary), torch.randn(steps, 8, dtype=torch.float64)
    chains = [torch.randint(vocabulary, (length,)).tolist() for length in (11, 16, 4)]
    # Of very different lengths, which the cosine must not see.
    references = [torch.randn(count, 8, dtype=torch.float64) * torch.rand(count, 1).mul(6).exp() for count in (5, 3, 7)]
    counts = [5, 3, 5]
    found = global_parallelism(distribution, latents, chains, references, seed=0)
    matched = tuple(greedy(latents[:n], ref[:n]) for n, ref in zip(counts, references, strict=True))
    in_order = tuple(tuple(range(count)) for count in counts)
    assert found.n_eff == pytest.approx(brute_force(distribution, chains, counts, matched))
    assert found.n_eff_v1 == pytest.approx(brute_force(distribution, chains, counts, in_order))


def test_the_naive_value_is_the_mean_over_independent_one_to_one_matchings() -> None:
    distribution, latents = distributions_of(3, 20), torch.randn(3, 4)
    chains = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    every = [brute_force(distribution, chains, [3, 3], pair) for pair in product(permutations(range(3)), repeat=2)]
    references = [torch.randn(3, 4) for _ in chains]
    drawn = [global_parallelism(distribution, latents, chains, references, seed=seed).n_naive for seed in range(100)]
    # A hundred times 64 draws, so the mean is within four standard errors of the mean over all 36 pairs.
    assert np.mean(drawn) == pytest.approx(np.mean(every), abs=4 * float(np.std(every)) / math.sqrt(6400))
    assert np.std(drawn) > 0


def test_the_naive_value_is_the_mean_of_64_draws() -> None:
    # The second chain does not care about its matching; the first is matched either way round, with a known value.
    distribution = torch.tensor([[0.6, 0.1, 0.3], [0.1, 0.6, 0.3]], dtype=torch.float64)
    found = global_parallelism(distribution, orthogonal(2), [[0, 1], [2, 2]], [orthogonal(2)] * 2, seed=0)
    straight, crossed = (effective([math.log(mass), math.log(0.3)]) for mass in (0.6, 0.1))
    draws = 64 * (found.n_naive - crossed) / (straight - crossed)
    assert draws == pytest.approx(round(draws), abs=1e-6)
    assert 16 < draws < 48


def test_the_seed_decides_the_random_matchings_alone() -> None:
    distribution, latents = distributions_of(4, 20), torch.randn(4, 4)
    chains, references = [[0, 1, 2, 3], [4, 5, 6, 7]], [torch.randn(4, 4), torch.randn(4, 4)]
    one, again, other = (global_parallelism(distribution, latents, chains, references, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.n_naive != other.n_naive
    assert (one.n_eff, one.n_eff_v1, one.top2) == (other.n_eff, other.n_eff_v1, other.top2)


def test_lengths_of_latents_and_the_order_of_chains_do_not_matter() -> None:
    distribution, latents = distributions_of(5, 30), torch.randn(5, 6)
    chains = [torch.randint(30, (9,)).tolist() for _ in range(3)]
    references = [torch.randn(5, 6) for _ in chains]
    plain = global_parallelism(distribution, latents, chains, references, seed=0)
    scaled = global_parallelism(distribution, 7 * latents, chains, [0.1 * each for each in references], seed=0)
    assert scaled == plain
    turned = global_parallelism(distribution, latents, chains[::-1], references[::-1], seed=0)
    assert turned.n_eff == pytest.approx(plain.n_eff)
    assert turned.top2 == pytest.approx(plain.top2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given | {"chains": [[0]], "references": [torch.randn(2, 3)]}, "at least 2 distinct"),
        (lambda given: given | {"references": [torch.randn(2, 3)]}, "1 references for 2 chains"),
        (lambda given: given | {"latents": torch.randn(2, 3)[:1]}, "1 latents but 2 distributions"),
        (lambda given: given | {"references": [torch.randn(2, 3), torch.randn(0, 3)]}, "reference latent per chain"),
        (lambda given: given | {"chains": [[0], [9]]}, "chain 1 of the question has token ids 9 to 9"),
    ],
)
def test_parallelism_refuses_what_does_not_fit(
    change: Callable[[dict[str, object]], dict[str, object]], message: str
) -> None:
    given: dict[str, object] = {
        "distributions": torch.full((2, 5), 0.2),
        "latents": torch.randn(2, 3),
        "chains": [[0, 1], [2, 3]],
        "references": [torch.randn(2, 3), torch.randn(2, 3)],
    }
    # The check of shapes, on in tests only, would refuse a row too few before the function's own words.
    function = getattr(global_parallelism, "__wrapped__", global_parallelism)
    with pytest.raises(ValueError, match=message):
        function(**change(given), seed=0)


# --- distinct chains -------------------------------------------------------------------------------------------------


def test_distinct_chains_differ_by_more_than_case_and_space() -> None:
    chains = ["Two  plus two", " two plus\ttwo\n", "twoplus two", "TWO PLUS TWO", "2 + 2"]
    assert distinct(chains) == ["Two  plus two", "twoplus two", "2 + 2"]
    assert distinct([]) == []
