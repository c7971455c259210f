"""Drawing without a look at the weights."""

from __future__ import annotations

import hashlib

import pytest
import torch

from unspoken.reasoning import picking
from unspoken.reasoning.picking import FREE, ForcedTokens, Sampler, draw, generator_of, upload


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


def test_without_a_nucleus_no_token_is_too_unlikely(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first token has so much of the probability that in float32 those before the third have all of it.
    scores = torch.tensor([[[0.0, -20.0, -21.0, -22.0]]])
    monkeypatch.setattr(picking, "draw", lambda weights, _generator: (weights > 0).sum(dim=-1))
    assert Sampler(1.0)(scores).tolist() == [[4]]
    assert Sampler(1.0, top_p=0.999)(scores).tolist() == [[1]]


def test_a_temperature_divides_the_scores() -> None:
    # Weights 4/7, 2/7 and 1/7 at temperature 1 are as 16, 4 and 1 at a half.
    scores = torch.tensor([4.0, 2.0, 1.0]).log().expand(8000, 1, -1)
    for temperature, expected in ((1.0, [4, 2, 1]), (0.5, [16, 4, 1])):
        tokens = Sampler(temperature, torch.Generator().manual_seed(0))(scores).flatten()
        rates = torch.bincount(tokens, minlength=3) / 8000
        assert (rates - torch.tensor(expected) / sum(expected)).abs().max() < 0.02
    assert Sampler()(scores).unique().tolist() == [0]


def test_a_draw_by_hand() -> None:
    weights, noise = torch.tensor([[0.6, 0.3, 0.1]]), torch.empty(1, 3)
    for seed in range(20):
        noise.exponential_(generator=torch.Generator().manual_seed(seed))
        expected = (weights / noise).argmax(dim=-1)
        assert torch.equal(Sampler(1.0, torch.Generator().manual_seed(seed))(weights.log()[:, None])[:, 0], expected)


def test_a_token_is_forced_in_its_row_and_place_and_nowhere_else() -> None:
    scores = torch.nn.functional.one_hot(torch.tensor([[2, 2], [3, 3], [4, 4]]), 6).float()
    forced = ForcedTokens(torch.tensor([[FREE, 5, FREE], [0, FREE, 1], [FREE, FREE, FREE]]))
    rows = torch.tensor([0, 1, 2])
    assert FREE == -1
    assert forced(scores, rows, 0).tolist() == [[2, 5], [0, 3], [4, 4]]
    assert forced(scores, rows, 1).tolist() == [[5, 2], [3, 1], [4, 4]]
    # Beyond the given columns the model chooses.
    assert forced(scores, rows, 2).tolist() == [[2, 2], [1, 3], [4, 4]]
    assert forced(scores, rows, 7).tolist() == [[2, 2], [3, 3], [4, 4]]
    assert forced(scores[:1], torch.tensor([1]), 0).tolist() == [[0, 2]]


def test_a_generator_belongs_to_its_name() -> None:
    # The first eight bytes of the hash without their lowest bit, as a seed must be below 2 ** 63.
    expected = int.from_bytes(hashlib.sha256(b"0:key:1").digest()[:8], "little") // 2
    assert generator_of("0:key:1").initial_seed() == expected
    assert generator_of("0:key:2").initial_seed() != expected
