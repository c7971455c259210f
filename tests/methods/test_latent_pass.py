"""Rows of prompts, latents and text as a batch, and what is supervised in them, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from unspoken.methods.latent_pass import CachedReading, blocks_of, text_loss, with_text_places

ROWS: Any = [((3, 4, 5), 2, (9,), (21, 22)), ((6,), 1, (9, 10), (21,)), ((7, 8), 0, (9,), (21, 22, 1))]


def test_a_batch_by_hand() -> None:
    batch = blocks_of(ROWS, 0)
    assert batch["input_ids"].tolist() == [[3, 4, 5], [0, 0, 6], [0, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert batch["latent_mask"].int().tolist() == [[1, 1], [1, 0], [0, 0]]
    assert batch["text_ids"].tolist() == [[9, 21, 22, 0], [9, 10, 21, 0], [9, 21, 22, 1]]
    assert batch["text_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["target_mask"].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 1, 1]]
    with pytest.raises(ValueError, match="the batch is empty"):
        blocks_of([], 0)


def test_places_and_loss_by_hand() -> None:
    batch = with_text_places(blocks_of(ROWS, 0))
    assert batch["targets"].tolist() == [21, 22, 21, 21, 22, 1]
    # Outputs before the targets, in rows of four.
    assert batch["places"].tolist() == [0, 1, 5, 8, 9, 10]
    # All scores are equal over 25 tokens, but for one output that is certain of its target.
    logits = torch.zeros(3, 4, 25)
    logits[1, 1, 21] = 100.0
    assert text_loss(logits, batch).item() == pytest.approx(5 / 6 * math.log(25))


def test_positions_count_real_tokens_alone() -> None:
    """Columns are read a few at a time; those that were forgotten are read again."""
    seen = []

    class Stack:
        config = None
        training = True
        is_activation_checkpointing = False

        def __call__(self, **given: Any) -> None:
            seen.append((given["attention_mask"].shape[1], given["position_ids"].tolist(), given["use_cache"]))

    class Cache:
        def __init__(self, config: Any = None) -> None:
            self.forgotten: list[int] = []

        def crop(self, length: int) -> None:
            self.forgotten.append(length)

    stack: Any = Stack()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unspoken.methods.latent_pass.DynamicCache", Cache)
        patch.setattr("unspoken.methods.latent_pass.require_filled", lambda *_: seen.append("checked"))
        reading: Any = CachedReading(stack, torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 1]]))
        reading(stack, torch.zeros(2, 3, 1))
        reading(stack, torch.zeros(2, 2, 1))
        reading.go_back(2)
        reading(stack, torch.zeros(2, 1, 1))
    assert reading.cache.forgotten == [-2]
    assert seen == [
        (3, [[0, 0, 0], [0, 1, 2]], True),
        "checked",
        (5, [[1, 2], [2, 3]], True),
        (4, [[1], [2]], True),
    ]
