"""What a stage with pauses reads and minimises.

Axes: B batch, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unspoken.places import padding_mask, places_of


def batch_of(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> dict[str, Tensor]:
    """Rows, each the tokens that are given and those that are learned, padded on the right.

    Returns:
        ``input_ids``, ``attention_mask`` and ``target_mask`` ``[B, T]``, and ``supervised``, the columns whose outputs
        have a target in any row: the model scores the vocabulary nowhere else.

    Raises:
        ValueError: an empty batch.
    """
    if not rows:
        raise ValueError("the batch is empty; give at least one row")
    ids = pad_sequence([torch.tensor([*given, *learned]) for given, learned in rows], True, padding_value=pad_id)
    begin = torch.tensor([len(given) for given, _ in rows])[:, None]
    end = begin + torch.tensor([len(learned) for _, learned in rows])[:, None]
    column = torch.arange(ids.shape[1])
    target = (column >= begin) & (column < end)
    return {
        "input_ids": ids,
        "attention_mask": (column < end).long(),
        "target_mask": target,
        "supervised": target[:, 1:].any(dim=0).nonzero()[:, 0],
    }


def with_places(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with the places of its supervised outputs and their targets."""
    chosen = batch["target_mask"][:, 1:]
    grid = chosen[:, batch["supervised"]] if "supervised" in batch else F.pad(chosen, (0, 1))
    return {
        **batch,
        "attention_mask": padding_mask(batch["attention_mask"]),
        "places": places_of(grid),
        "targets": batch["input_ids"][:, 1:][chosen],
    }
