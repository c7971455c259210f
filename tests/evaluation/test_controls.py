"""Each control removes what its name says and keeps the rest."""

import pytest
import torch

from unspoken.chain import LatentChain
from unspoken.evaluation.controls import CONTROLS


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
