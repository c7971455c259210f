"""Each control removes what its name says and keeps the rest."""

from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_pair
from tiny_words import table_rows, tiny_word_system, word_view

from unspoken.chain import LatentChain
from unspoken.evaluation.controls import CONTROLS, altered_chains
from unspoken.methods import catalogue


@pytest.fixture
def chain():
    lengths = torch.tensor([4, 2, 3, 4, 1, 4])
    mask = torch.arange(4)[None] < lengths[:, None]
    latents = torch.nn.functional.normalize(torch.randn(6, 4, 8), dim=-1) * mask[..., None]
    return LatentChain(latents=latents, mask=mask, stop=torch.arange(6) % 3)


def altered(chain, name):
    return CONTROLS[name](chain, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(CONTROLS))
def test_a_control_changes_the_chain_and_not_its_shape(chain, name):
    other = altered(chain, name)
    assert other.latents.shape == chain.latents.shape
    assert not torch.equal(other.latents, chain.latents)


def test_zero_and_no_chain_hold_nothing(chain):
    assert not altered(chain, "zero").latents.any()
    assert not altered(chain, "no chain").latents.any()
    assert altered(chain, "no chain").lengths.tolist() == [1] * 6


def test_mean_is_the_same_for_every_problem(chain):
    other = altered(chain, "mean").latents
    assert torch.allclose(other[0], other[3])
    assert torch.allclose(other[0, 0], chain.latents[:, 0].mean(dim=0))


def test_noise_keeps_norms_and_mask(chain):
    other = altered(chain, "noise")
    assert torch.allclose(other.latents.norm(dim=-1), chain.latents.norm(dim=-1), atol=1e-6)
    assert torch.equal(other.mask, chain.mask)


def test_shuffle_keeps_each_chain_its_own_vectors(chain):
    other = altered(chain, "shuffle")
    for row in range(len(chain)):
        length = int(chain.lengths[row])
        before = sorted(chain.latents[row, :length].tolist())
        assert sorted(other.latents[row, :length].tolist()) == before


def test_swap_leaves_no_chain_in_its_place(chain):
    other = altered(chain, "swap")
    for row in range(len(chain)):
        assert not torch.equal(other.latents[row], chain.latents[row])
    assert sorted(other.lengths.tolist()) == sorted(chain.lengths.tolist())


def test_truncate_keeps_the_first_half(chain):
    other = altered(chain, "truncate")
    assert torch.equal(other.latents[:, 0], chain.latents[:, 0])
    assert not other.latents[0, 2:].any()
    assert torch.equal(other.latents[0, :2], chain.latents[0, :2])


def test_truncate_rounds_half_a_chain_up_and_leaves_zeros(chain):
    latents = altered(chain, "truncate").latents
    # Of 4, 2, 3, 4, 1 and 4 steps.
    kept = [int(row.any(dim=-1).sum()) for row in latents]
    assert kept == [2, 1, 2, 2, 1, 2]
    assert torch.equal(altered(chain, "truncate").mask, chain.mask)


def test_mean_counts_the_chains_that_have_the_step(chain):
    pad = torch.nn.functional.pad
    wider = replace(chain, latents=pad(chain.latents, (0, 0, 0, 1)), mask=pad(chain.mask, (0, 1)))
    other = altered(wider, "mean").latents
    # Three chains have four steps, and none has five.
    assert torch.allclose(other[0, 3], (chain.latents[0, 3] + chain.latents[3, 3] + chain.latents[5, 3]) / 3)
    assert not other[:, 4].any()
    assert not other[~wider.mask].any()
    # Of two chains one has a third step and a fourth.
    two = chain.select(torch.tensor([0, 1]))
    assert torch.allclose(altered(two, "mean").latents[0, 2:], two.latents[0, 2:])


def test_a_swap_moves_all_chains_by_as_many_rows_drawn_anew_by_each_seed(chain):
    shifts = set()
    for seed in range(40):
        other = CONTROLS["swap"](chain, torch.Generator().manual_seed(seed))
        (shift,) = (n for n in range(6) if torch.equal(other.latents, chain.latents.roll(n, dims=0)))
        shifts.add(shift)
    assert shifts == {1, 2, 3, 4, 5}
    two = chain.select(torch.tensor([0, 1]))
    assert torch.equal(altered(two, "swap").latents, two.latents.flip(0))


def test_shuffle_draws_every_order_and_leaves_what_is_after_the_end(chain):
    rows = LatentChain(
        latents=torch.arange(4.0).expand(600, -1)[..., None],
        mask=torch.tensor([[True, True, True, False]]).expand(600, -1),
        stop=torch.zeros(600).long(),
    )
    orders = [tuple(row[:, 0].tolist()) for row in altered(rows, "shuffle").latents]
    assert {order[3] for order in orders} == {3.0}
    assert len(set(orders)) == 6
    assert min(orders.count(order) for order in set(orders)) > 60


# --- of a system -------------------------------------------------------------------------------------------------


def test_mixtures_of_rows_become_other_mixtures():
    system = tiny_word_system("unspoken")
    chain = word_view(system).graded.chain
    other = altered_chains(system, chain, 0)
    assert set(other) == {*CONTROLS, "random mixtures"} - {"noise"}
    latents, weights = other["random mixtures"].latents, chain.support_weights
    # The same weights on other rows: what a latent could be at most, by the longest row.
    assert not latents[~chain.mask].any()
    assert not torch.allclose(latents, chain.latents)
    assert latents.norm(dim=-1).max() <= weights.sum(dim=-1).max() * table_rows(system).norm(dim=-1).max() * 1.001
    # The stack that answers needs no latent at all.
    assert other["no chain"].lengths.tolist() == [0] * len(chain)


def test_hidden_states_become_noise_and_a_talker_keeps_one_latent():
    hidden = tiny_word_system(feed="hidden")
    assert set(altered_chains(hidden, word_view(hidden).graded.chain, 0)) == set(CONTROLS)
    talker, _ = catalogue.systems(tiny_pair("mono"), stage="pair", max_answer=4)
    chain = talker.respond(torch.randint(3, 20, (3, 5))).chain
    other = altered_chains(talker, chain, 0)
    assert set(other) == set(CONTROLS)
    assert other["no chain"].lengths.tolist() == [1] * 3


def test_chains_with_tokens_that_latents_are_not_made_of_become_noise():
    system = tiny_word_system("unspoken")
    chain = word_view(system).graded.chain
    assert chain.support_ids is not None
    assert set(altered_chains(replace(system, chain_kind="hidden"), chain, 0)) == set(CONTROLS)


def test_what_is_drawn_depends_on_the_seed_alone(chain):
    system = replace(tiny_word_system(), chain_kind="hidden")
    one, again, another = (altered_chains(system, chain, seed) for seed in (1, 1, 2))
    for name in one:
        assert torch.equal(one[name].latents, again[name].latents), name
    for name in ("noise", "shuffle"):
        assert not torch.equal(one[name].latents, another[name].latents), name


def test_one_chain_has_no_other_to_be_swapped_for(chain):
    system = tiny_word_system(top_k=5)
    alone = word_view(system).graded.chain.select(torch.tensor([0]))
    assert "swap" not in altered_chains(system, alone, 0)
