"""Drawing without a look at the weights."""

from __future__ import annotations

import pytest
import torch

from unspoken.reasoning.picking import Sampler, draw, upload


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_draw_is_that_of_multinomial(dtype: torch.dtype) -> None:
    weights = (4 * torch.randn(50, 30)).softmax(dim=-1).to(dtype)
    for seed in range(5):
        ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
        for _ in range(3):
            assert torch.equal(draw(weights, ours), torch.multinomial(weights, 1, generator=theirs)[:, 0])
    torch.manual_seed(3)
    drawn = draw(weights.view(5, 10, 30))
    torch.manual_seed(3)
    assert torch.equal(drawn.flatten(), torch.multinomial(weights, 1)[:, 0])


def test_numbers_keep_their_shape() -> None:
    moved = upload([[1, 2], [3, 4]], torch.device("cpu"))
    assert moved.dtype == torch.long
    assert moved.tolist() == [[1, 2], [3, 4]]
    assert upload([[]], torch.device("cpu")).shape == (1, 0)


def test_a_nucleus_is_drawn_from_alone() -> None:
    weights = torch.tensor([0.5, 0.25, 0.15, 0.1])
    scores = weights.log().expand(4000, 1, -1)
    for top_p, kept in ((1e-6, 1), (0.5, 1), (0.51, 2), (0.8, 3), (1.0, 4)):
        tokens = Sampler(1.0, torch.Generator().manual_seed(0), top_p)(scores).flatten()
        shares = torch.bincount(tokens, minlength=4) / len(tokens)
        expected = weights[:kept] / weights[:kept].sum()
        assert shares[kept:].sum() == 0
        assert (shares[:kept] - expected).abs().max() < 0.03
    with pytest.raises(ValueError, match="top_p is 0"):
        Sampler(1.0, top_p=0.0)
