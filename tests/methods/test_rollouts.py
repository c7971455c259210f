"""The stretch of a row that is read as the model's own latents, from numbers that are drawn by hand."""

from __future__ import annotations

import pytest
import torch

from unspoken.methods.rollouts import random_spans

ABLE = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0]], dtype=torch.bool)  # five places that can be latents
JUST_BELOW_ONE = 1 - 2**-24  # the largest number that is drawn


@pytest.mark.parametrize(
    ("longest", "draws", "places"),
    [
        (3, (0.0, 0.0), [1]),
        (3, (JUST_BELOW_ONE, 0.0), [1, 2, 4]),
        (3, (JUST_BELOW_ONE, JUST_BELOW_ONE), [4, 5, 6]),
        (3, (0.0, JUST_BELOW_ONE), [6]),
        (3, (0.34, 0.5), [4, 5]),  # two, in the third of four places
        (3, (0.33, 0.5), [4]),  # one, in the third of five
        (1, (JUST_BELOW_ONE, 0.2), [2]),
        (9, (JUST_BELOW_ONE, JUST_BELOW_ONE), [1, 2, 4, 5, 6]),  # cut to those that the row has
    ],
)
def test_length_and_place_are_the_draws(
    longest: int, draws: tuple[float, float], places: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([draws]))
    assert random_spans(ABLE, longest)[0].nonzero().flatten().tolist() == places


def test_every_row_draws_for_itself_and_every_length_and_place_comes() -> None:
    torch.manual_seed(0)
    seen = random_spans(torch.ones(2000, 4, dtype=torch.bool), 2)
    rows, counts = seen.unique(dim=0, return_counts=True)
    # One of four places, or two of three pairs of neighbours: half of the rows each.
    assert len(rows) == 7
    lengths = rows.sum(dim=1)
    assert lengths.tolist().count(1) == 4
    assert counts[lengths == 1] / 2000 == pytest.approx([1 / 8] * 4, abs=0.03)
    assert counts[lengths == 2] / 2000 == pytest.approx([1 / 6] * 3, abs=0.03)
