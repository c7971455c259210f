"""What the auxiliary decoder of SIM-CoT reads and learns.

Axes: P supervised tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unspoken import distributed
from unspoken.methods.carrier import Steps
from unspoken.places import at, places_of

_NOTHING = {"step_ids": (0, 1), "step_places": (0,), "step_targets": (0,), "step_numbers": (0,)}


def step_targets(
    steps: Sequence[Steps], units: Sequence[int], answers: Sequence[tuple[int, ...]], *, end_id: int, pad_id: int
) -> dict[str, Any]:
    """The tokens that the latents of a batch spell.

    Args:
        steps: of each row, those that its latents stand for. Where these are more than the latents can spell, the last
            latents spell all that are left.
        units: of each row, steps that its latents can spell.
        answers: of each row, what latents spell for which it has no step; empty for nothing.
        end_id: ends a step.

    Returns:
        What `SimCotModel.read` is given besides the latents; and the supervised tokens with the numbers of their steps.
    """
    spelled: list[torch.Tensor] = []
    for row, count, answer in zip(steps, units, answers, strict=True):
        merged = [*row[: count - 1], sum(row[count - 1 :], ())] if len(row) > count > 0 else [*row[:count]]
        filled = [*merged, *[answer] * (count - len(merged))]
        ended = [(*step, end_id) if step and step[-1] != end_id else step for step in filled]
        spelled += [torch.tensor(step, dtype=torch.long) for step in [*ended, *[()] * (max(units) - count)]]
    if not spelled:  # every row was read at a stage without latents
        return {name: torch.zeros(shape, dtype=torch.long) for name, shape in _NOTHING.items()}
    ids = pad_sequence(spelled, batch_first=True, padding_value=pad_id)
    real = pad_sequence([torch.ones(len(step), dtype=torch.bool) for step in spelled], batch_first=True)
    places = places_of(real)
    numbers = torch.arange(len(ids))[:, None].expand_as(ids) % max(units)
    return {
        "step_ids": ids,
        "step_places": places,
        "step_targets": at(ids, places),
        "step_numbers": at(numbers, places),
    }


def spelling_loss(scores: Tensor, added: dict[str, Tensor], units: int) -> Tensor:
    """Mean over the numbers of steps of the mean over the tokens of that step, of all ranks, in nats.

    Args:
        scores: ``[P, V]``, of `SimCotModel.read`.
        added: of `step_targets`.
        units: steps that the latents of a row can spell.
    """
    losses_P = F.cross_entropy(scores.float(), added["step_targets"], reduction="none")
    number_P = added["step_numbers"]
    counts = distributed.step_total(tokens_of_steps(number_P, units), "numbers", number_P.device)
    mean = (losses_P / counts[number_P]).sum() / (counts > 0).sum().clamp(min=1)
    # Ranks and micro-batches are averaged, and each has a part of the sum.
    return mean * distributed.pieces()


def tokens_of_steps(number_P: Tensor, units: int) -> Tensor:
    """Supervised tokens ``[units]`` of each number of a step."""
    # In contrast to `bincount` it does not wait for the device.
    ones_P = torch.ones(len(number_P), device=number_P.device)
    return ones_P.new_zeros(units).index_add(0, number_P, ones_P)
