"""The record of the silent part: rows are selected, stacked and altered without mixing them up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unspoken.chain import LatentChain, StopReason, pack


def chain(rows: int, steps: int, *, seed: int = 0, width: int = 4, support: bool = True) -> LatentChain:
    """A random chain; row b has ``1 + b % steps`` real steps."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(steps)[None] < 1 + torch.arange(rows)[:, None] % steps
    return LatentChain(
        latents=torch.randn(rows, steps, width, generator=generator) * mask[..., None],
        mask=mask,
        stop=torch.arange(rows) % 3,
        support_ids=torch.randint(0, 9, (rows, steps, 2), generator=generator) if support else None,
        support_weights=torch.rand(rows, steps, 2, generator=generator) if support else None,
    )


def naive_pack(values: Tensor, mask: Tensor, length: int) -> tuple[list[list[Tensor]], list[list[bool]]]:
    """Row by row, in plain Python."""
    packed, real = [], []
    for row, keep in zip(values, mask, strict=True):
        kept = [value for value, chosen in zip(row, keep, strict=True) if chosen][:length]
        packed.append(kept + [torch.zeros_like(row[0])] * (length - len(kept)))
        real.append([True] * len(kept) + [False] * (length - len(kept)))
    return packed, real


@given(data=st.data(), rows=st.integers(1, 4), width=st.integers(1, 7), inner=st.sampled_from([(), (3,), (2, 2)]))
@settings(max_examples=60, deadline=None)
def test_packing_moves_the_selected_positions_left_in_order(
    data: st.DataObject, rows: int, width: int, inner: tuple[int, ...]
) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))
    mask = torch.tensor(bits).view(rows, width)
    size = rows * width * int(torch.tensor(inner).prod())
    values = torch.arange(1, size + 1).view(rows, width, *inner).float()
    length = data.draw(st.one_of(st.none(), st.integers(0, width)))
    packed, real = pack(values, mask, length)
    expected, expected_mask = naive_pack(values, mask, int(mask.sum(dim=1).max()) if length is None else length)
    assert real.tolist() == expected_mask
    assert packed.tolist() == [[value.tolist() for value in row] for row in expected]


def test_packing_keeps_the_type_of_the_values() -> None:
    values = torch.tensor([[5, 6, 7]])
    packed, _ = pack(values, torch.tensor([[False, True, True]]))
    assert packed.dtype == values.dtype
    assert packed.tolist() == [[6, 7]]


def test_packing_may_ask_for_more_room_than_the_rows_had() -> None:
    packed, mask = pack(torch.tensor([[5, 6]]), torch.tensor([[False, True]]), length=4)
    assert packed.tolist() == [[6, 0, 0, 0]]
    assert mask.tolist() == [[True, False, False, False]]


def test_gradients_flow_through_packing_to_the_selected_positions_alone() -> None:
    values = torch.ones(1, 3, 2, requires_grad=True)
    packed, _ = pack(values, torch.tensor([[True, False, True]]), length=3)
    packed.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[[1, 1], [0, 0], [1, 1]]]


def test_lengths_count_real_steps() -> None:
    assert chain(5, 3).lengths.tolist() == [1, 2, 3, 1, 2]
    assert len(chain(5, 3)) == 5


def test_selecting_rows_takes_everything_about_them_in_the_given_order() -> None:
    whole = chain(5, 3)
    part = whole.select(torch.tensor([4, 0, 4]))
    for new, old in enumerate([4, 0, 4]):
        assert torch.equal(part.latents[new], whole.latents[old])
        assert torch.equal(part.mask[new], whole.mask[old])
        assert part.stop[new] == whole.stop[old]
        assert part.support_ids is not None
        assert whole.support_ids is not None
        assert torch.equal(part.support_ids[new], whole.support_ids[old])


def test_selecting_works_by_mask_and_without_distributions() -> None:
    whole = chain(4, 3, support=False)
    part = whole.select(torch.tensor([False, True, False, True]))
    assert torch.equal(part.latents, whole.latents[[1, 3]])
    assert part.support_ids is None
    assert part.support_weights is None


@pytest.mark.parametrize("support", [True, False])
def test_stacking_pads_short_chains_and_keeps_every_row(support: bool) -> None:
    parts = [chain(2, 3, seed=1, support=support), chain(3, 5, seed=2, support=support), chain(1, 1, support=support)]
    whole = LatentChain.concatenate(parts)
    assert whole.latents.shape == (6, 5, 4)
    row = 0
    for part in parts:
        for index in range(len(part)):
            steps = part.mask.shape[1]
            assert torch.equal(whole.latents[row, :steps], part.latents[index])
            assert torch.equal(whole.mask[row, :steps], part.mask[index])
            assert not whole.latents[row, steps:].any()
            assert not whole.mask[row, steps:].any()
            assert whole.stop[row] == part.stop[index]
            if support:
                assert torch.equal(whole.support_ids[row, :steps], part.support_ids[index])  # type: ignore[index]
                assert torch.equal(whole.support_weights[row, :steps], part.support_weights[index])  # type: ignore[index]
            row += 1
    assert (whole.support_ids is None) == (not support)


def test_stacking_one_chain_changes_nothing() -> None:
    one = chain(3, 4)
    assert torch.equal(LatentChain.concatenate([one]).latents, one.latents)


def test_selecting_undoes_stacking() -> None:
    first, second = chain(2, 4, seed=1), chain(3, 4, seed=2)
    again = LatentChain.concatenate([first, second]).select(torch.arange(2, 5))
    assert torch.equal(again.latents, second.latents)
    assert torch.equal(again.stop, second.stop)


def test_stacking_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="empty list"):
        LatentChain.concatenate([])
    with pytest.raises(ValueError, match="different width"):
        LatentChain.concatenate([chain(1, 2, width=4), chain(1, 2, width=6)])
    with pytest.raises(ValueError, match="different width or kind"):
        LatentChain.concatenate([chain(1, 2), chain(1, 2, support=False)])


def test_other_vectors_drop_the_distributions_and_keep_the_rest() -> None:
    whole = chain(3, 4)
    altered = whole.with_latents(torch.zeros_like(whole.latents))
    assert altered.support_ids is None
    assert altered.support_weights is None
    assert torch.equal(altered.mask, whole.mask)
    assert torch.equal(altered.stop, whole.stop)
    assert not altered.latents.any()


def test_other_vectors_may_bring_their_own_mask() -> None:
    whole = chain(3, 4)
    longer = whole.with_latents(torch.ones(3, 6, 4), torch.ones(3, 6, dtype=torch.bool))
    assert longer.lengths.tolist() == [6, 6, 6]


def test_stop_reasons_are_small_numbers_with_names() -> None:
    assert [StopReason(value).name for value in range(4)] == ["END", "FIXED", "CAP", "CERTAIN"]
