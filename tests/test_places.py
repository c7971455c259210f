"""Places are what a boolean index would take, and a causal model without the mask of right padding is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host_waits import HostWaits
from tiny_models import FAMILIES, PAD, VOCABULARY, tiny_language_model, tiny_pair, tiny_reasoner
from torch import Tensor

from unspoken.backbone.masking import masks_unread
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.jepa_reasoner.stages import SST, TalkerLoss
from unspoken.places import at, padding_mask, places_of

LENGTHS = [7, 3, 5]


def batch_of(side: str) -> dict[str, Any]:
    """Three rows of unlike length; the second half of each is its answer."""
    width = max(LENGTHS)
    columns, lengths = torch.arange(width), torch.tensor(LENGTHS)[:, None]
    first = width - lengths if side == "left" else torch.zeros_like(lengths)
    real = (columns >= first) & (columns < first + lengths)
    ids = torch.randint(3, VOCABULARY, real.shape, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": torch.where(real, ids, PAD),
        "attention_mask": real.long(),
        "answer_mask": real & (columns - first >= lengths // 2),
    }


def learned(model: Any, objective: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Loss, terms and gradients."""
    model.zero_grad()
    torch.manual_seed(0)
    loss, terms = objective.loss(model, batch)
    loss.backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach(), **terms, **{name: grad.clone() for name, grad in grads.items()}}


def test_places_are_the_index_of_a_mask() -> None:
    values, mask = torch.randn(4, 6, 3), torch.rand(4, 6) > 0.5
    assert torch.equal(at(values, places_of(mask)), values[mask])
    assert places_of(torch.zeros(2, 3, dtype=torch.bool)).tolist() == []


@pytest.mark.parametrize(
    ("rows", "needed"),
    [([[1, 1, 1]], False), ([[1, 1, 0], [1, 0, 0]], False), ([[0, 1, 1], [1, 1, 1]], True), ([[1, 0, 1]], True)],
)
def test_only_padding_on_the_right_needs_no_mask(rows: list[list[int]], needed: bool) -> None:
    mask = torch.tensor(rows)
    found = padding_mask(mask)
    assert found is mask if needed else found is None


MODELS: dict[str, Any] = {
    "all": (tiny_language_model, NextToken()),
    "answer": (tiny_language_model, NextToken(positions="answer")),
    "sst": (tiny_reasoner, SST(positions="all")),
    "own": (tiny_reasoner, SST(rollout_latents=2)),
    "talker": (lambda family, attention: tiny_pair("mono", family, attention), TalkerLoss()),
    "two-way": (lambda family, attention: tiny_pair("mono", family, attention, is_causal=False), TalkerLoss()),
    "dual": (lambda family, attention: tiny_pair("dual", family, attention), TalkerLoss()),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_collated_batch_teaches_the_same_to_the_last_bit(name: str, family: str, side: str) -> None:
    build, objective = MODELS[name]
    model, batch = build(family, "eager").train(), batch_of(side)
    collated = objective.with_places(batch)
    assert (collated["attention_mask"] is None) == (side == "right")
    expected = learned(model, objective, batch)
    found = learned(model, objective, collated)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_masks_made_unread_are_the_same_masks(name: str, family: str, side: str) -> None:
    build, objective = MODELS[name]
    model, batch = build(family, "sdpa").train(), objective.with_places(batch_of(side))
    expected = learned(model, objective, batch)
    with masks_unread(), HostWaits() as waits:
        found = learned(model, objective, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert dict(waits.sites) == {}
