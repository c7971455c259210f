"""Wrong tokens are as many as asked for, at random places, and as likely as each other."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conformance import assert_same_chain
from tiny_models import PAD, prompts, tiny_language_model, tiny_pair
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.evaluation.forcing import Effect, Run, containment, corrupted, effect_of, effect_summary, forced_run
from unspoken.methods import catalogue
from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.latents import Sampling
from unspoken.reasoning.picking import FREE

TERMINALS = torch.tensor([14, 15, 16])


def terminals(rows: int, length: int) -> Tensor:
    return torch.randint(14, 17, (rows, length), generator=torch.Generator().manual_seed(1))


def test_so_many_of_the_masked_tokens_become_another_alternative() -> None:
    ids = terminals(4, 20)
    mask = torch.arange(20)[None] >= torch.tensor([0, 10, 13, 20])[:, None]
    before = ids.clone()
    for rate, wrong in ((0.0, [0, 0, 0, 0]), (0.15, [3, 2, 1, 0]), (0.5, [10, 5, 4, 0]), (1.0, [20, 10, 7, 0])):
        other = corrupted(ids, mask, rate, TERMINALS, seed=0)
        assert (other != ids).sum(dim=1).tolist() == wrong
        assert torch.equal(other[~mask], ids[~mask])
        assert torch.isin(other, TERMINALS).all()
    assert torch.equal(ids, before)


def test_higher_rates_add_to_what_is_wrong_and_seeds_choose_it() -> None:
    ids = terminals(30, 20)
    mask = torch.ones_like(ids, dtype=torch.bool)
    low, high = (corrupted(ids, mask, rate, TERMINALS, seed=0) for rate in (0.2, 0.5))
    assert torch.equal(low[low != ids], high[low != ids])
    assert torch.equal(low, corrupted(ids, mask, 0.2, TERMINALS, seed=0))
    assert not torch.equal(low, corrupted(ids, mask, 0.2, TERMINALS, seed=1))


def test_places_and_wrong_tokens_are_uniform() -> None:
    ids = torch.full((20_000, 10), 15)
    ids[:, 5:] = 3  # not one of the alternatives: each of the three may take its place
    other = corrupted(ids, torch.ones_like(ids, dtype=torch.bool), 0.3, TERMINALS, seed=0)
    places = (other != ids).double().mean(dim=0)
    torch.testing.assert_close(places, torch.full_like(places, 0.3), rtol=0, atol=0.015)
    for columns, expected in ((slice(0, 5), [0.5, 0.5]), (slice(5, 10), [1 / 3, 1 / 3, 1 / 3])):
        wrong = other[:, columns][other[:, columns] != ids[:, columns]]
        rates = wrong.unique(return_counts=True)[1] / len(wrong)
        torch.testing.assert_close(rates, torch.tensor(expected), rtol=0, atol=0.015)


@pytest.mark.parametrize(("rate", "alternatives"), [(1.5, [14, 15]), (-0.1, [14, 15]), (0.1, [14, 14])])
def test_impossible_corruption_is_refused(rate: float, alternatives: list[int]) -> None:
    ids = terminals(2, 4)
    with pytest.raises(AssertionError, match=f"cannot corrupt at rate {rate} with [12] different"):
        corrupted(ids, ids > 0, rate, torch.tensor(alternatives), seed=0)


# --- containment ----------------------------------------------------------------------------------------------------

# Everything but padding and the ends of the models below.
WORDS = torch.tensor([*range(2, 9), *range(10, 20)])


def run_of(kind: str, sampling: Sampling | None = None) -> Run:
    if kind == "superposition":
        settings = LatentGenerationConfig(open_ids=(2,), end_ids=(3,), top_k=10, max_latents=4)
        model = tiny_language_model("unspoken")
        made = causal_lm_system(model, settings, name=kind, max_tokens=6)
        return forced_run(replace(made, sampling=sampling), prompts(), fill=PAD)
    model = tiny_language_model("unspoken") if kind == "coupled" else tiny_pair(kind)
    system = catalogue.systems(model, stage=kind, max_answer=6, end_id=9, pad_id=PAD)[0]
    return forced_run(system.of_length(6), prompts(), fill=PAD)


RUNS = ["mono", "dual", "coupled", "superposition"]


@pytest.mark.parametrize("kind", RUNS)
def test_forced_tokens_are_given_and_free_ones_are_the_system_s_own(kind: str) -> None:
    run = run_of(kind)
    chain, clean = run(None)
    again, tokens = run(torch.full_like(clean, FREE))
    assert torch.equal(tokens, clean)
    assert_same_chain(again, chain)
    words = torch.full_like(clean, FREE)
    words[:, 1] = torch.where(clean[:, 1] == 5, 6, 5)
    chosen = torch.isin(clean[:, :2], WORDS).all(dim=1)
    assert chosen.any()
    tokens = run(words)[1]
    assert torch.equal(tokens[chosen, 1], words[chosen, 1])
    assert torch.equal(tokens[:, 0], clean[:, 0])


def test_where_evaluation_samples_nothing_but_forced_tokens_makes_a_difference() -> None:
    run = run_of("superposition", Sampling(temperature=2.0))
    clean = run(None)[1]
    assert torch.equal(run(torch.full_like(clean, FREE))[1], clean)
    assert torch.equal(clean, run_of("superposition")(None)[1])


@pytest.mark.parametrize(
    ("kind", "contained", "changes"),
    [("mono", True, False), ("dual", True, True), ("coupled", False, True), ("superposition", True, True)],
)
def test_wrong_tokens_reach_the_chain_of_the_coupled_model_alone(kind: str, contained: bool, changes: bool) -> None:
    run = run_of(kind)
    effect = containment(run, run(None)[1], alternatives=WORDS, rate=0.3, seed=0)
    assert effect.latents_identical is contained
    assert (effect.largest_latent_change == 0.0) is contained
    _, forced, later, changed, right_clean, right_forced = effect.counts.T
    assert forced.sum() > 3
    assert later.sum() > 3
    assert bool(changed.any()) is changes
    # What would have been given counts as right here.
    assert np.array_equal(right_clean, later)
    assert np.array_equal(right_forced, later - changed)


def test_no_force_has_no_effect() -> None:
    effect = containment(run_of("coupled"), torch.zeros(6, 6, dtype=torch.long), alternatives=WORDS, rate=0.0, seed=0)
    assert effect.latents_identical
    assert not effect.counts[:, 1:].any()
    assert effect.counts[:, 0].sum() > 10


def test_effects_are_counted_after_the_first_forced_token() -> None:
    clean = torch.tensor([[5, 6, 7, 1, 1], [5, 5, 5, 5, 8], [1, 1, 1, 1, 1]])
    right = torch.tensor([[5, 6, 9, 1, 1], [9, 5, 5, 9, 9], [1, 1, 1, 1, 1]])
    given = []

    def run(words: Tensor | None) -> tuple[LatentChain, Tensor]:
        mask = torch.ones(3, 2, dtype=torch.bool)
        latents = torch.zeros(3, 2, 4)
        tokens = clean.clone()
        if words is not None:
            given.append(words)
            latents[1, 1, 2] = -0.25
            for row in range(3):  # a free token after a forced one becomes a nine
                for position in range(5):
                    if words[row, position] != FREE:
                        tokens[row, position] = words[row, position]
                    elif (words[row, :position] != FREE).any():
                        tokens[row, position] = 9
        return LatentChain(latents=latents, mask=mask, stop=torch.zeros(3, dtype=torch.long)), tokens

    effect = containment(run, right, alternatives=torch.tensor([5, 6, 7, 8]), rate=0.4, seed=2)
    assert effect.largest_latent_change == 0.25
    assert not effect.latents_identical
    expected = []
    for row, can in enumerate(([0, 1, 2], [0, 1, 2, 3, 4], [])):
        forced = [position for position in range(5) if given[0][row, position] != FREE]
        later = [position for position in can if forced and position > forced[0] and position not in forced]
        right_clean = sum(bool(clean[row, position] == right[row, position]) for position in later)
        right_forced = sum(bool(right[row, position] == 9) for position in later)
        expected.append([len(can), len(forced), len(later), len(later), right_clean, right_forced])
    assert effect.counts.tolist() == expected
    assert [row[1] for row in expected] == [1, 2, 0]
    assert sum(row[2] for row in expected) > 0


def test_chains_without_latents_do_not_change() -> None:
    none = torch.zeros(2, 0, dtype=torch.bool)
    chain = LatentChain(latents=torch.zeros(2, 0, 4), mask=none, stop=torch.zeros(2, dtype=torch.long))
    effect = effect_of([torch.tensor([1, 2]), torch.tensor([3, 4])], chain, chain)
    assert effect.counts.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert (effect.latents_identical, effect.largest_latent_change) == (True, 0.0)


def test_the_summary_of_effects_weighs_every_symbol_alike() -> None:
    first = Effect(
        counts=np.array([[4.0, 2, 1, 1, 1, 0], [4, 2, 3, 0, 3, 3]]),
        latents_identical=True,
        largest_latent_change=0.0,
    )
    second = Effect(
        counts=np.array([[4.0, 2, 2, 2, 1, 0], [4, 0, 0, 0, 0, 0]]),
        latents_identical=False,
        largest_latent_change=0.5,
    )
    effect = effect_summary([first, second])
    assert effect["forced"]["mean"] == 6 / 16
    assert effect["later_changed"]["mean"] == 3 / 6
    assert effect["later_accuracy"]["clean"]["mean"] == 5 / 6
    assert effect["later_accuracy"]["forced"]["mean"] == 3 / 6
    assert effect["later_changed"]["low"] < 0.5 < effect["later_changed"]["high"]
    assert (effect["latents_identical"], effect["largest_latent_change"]) == (False, 0.5)
    assert json.loads(json.dumps(effect, allow_nan=False)) == effect
    nothing = Effect(counts=np.zeros((3, 6)), latents_identical=True, largest_latent_change=0.0)
    assert effect_summary([nothing])["later_changed"] is None
