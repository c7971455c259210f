"""Floating-point operations of a stack of blocks, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from unspoken.reasoning.flops import attention_width, multiplied, stack_flops

# Of the tiny models: two blocks with four matrices of attention and two of the feed-forward part.
BLOCKS = 2 * (4 * 16 * 24 + 2 * 16 * 32)
ATTENTION = 2 * 24


def test_a_stack_costs_two_a_weight_and_four_a_channel_and_pair() -> None:
    model = tiny_language_model("unspoken")
    assert multiplied(model.base_model) == BLOCKS  # the table is looked up
    # Three positions see 1, 2 and 3.
    assert stack_flops(model.base_model, 3) == 2 * BLOCKS * 3 + 4 * ATTENTION * (1 + 2 + 3)
    assert stack_flops(model.base_model, 3, causal=False) == 2 * BLOCKS * 3 + 4 * ATTENTION * 9


def test_rows_are_counted_each_for_itself() -> None:
    stack = tiny_language_model("unspoken").base_model
    found = stack_flops(stack, torch.tensor([0.0, 1.0, 3.0]))
    assert found.tolist() == [0, 2 * BLOCKS + 4 * ATTENTION, 6 * BLOCKS + 4 * ATTENTION * 6]


@pytest.mark.parametrize(
    ("family", "settings", "weights", "width"),
    [
        # Grouped heads have fewer weights and the same scores.
        ("llama", {}, 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32), 2 * 16),
        # A head may have a width of its own.
        ("llama", {"head_dim": 6}, 2 * (2 * 16 * 24 + 2 * 16 * 12 + 3 * 16 * 32), 2 * 24),
        # GPT-2 keeps queries, keys and values in one matrix, and biases are not multiplied.
        ("gpt2", {}, 2 * (16 * 48 + 16 * 16 + 2 * 16 * 32), 2 * 16),
        ("unspoken", {"cross_attention": True}, 2 * (8 * 16 * 24 + 2 * 16 * 32), ATTENTION),
    ],
)
def test_families_by_hand(family: str, settings: dict[str, Any], weights: int, width: int) -> None:
    stack = tiny_language_model(family, **settings).base_model
    assert (multiplied(stack), attention_width(stack.config)) == (weights, width)
    assert stack_flops(stack, 1) == 2 * weights + 4 * width
