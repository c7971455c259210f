"""Wrong tokens are as many as asked for, at random places, and as likely as each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unspoken.evaluation.forcing import corrupted

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
