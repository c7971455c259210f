"""Floating-point operations of running a stack of blocks.

Counted are two for every weight of a linear layer and position that goes through it, and four for every attention
channel and pair of a position and one that it sees (scores and weighted sum). Not counted are look-ups in tables,
norms, activations and softmax.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D


def multiplied(module: nn.Module) -> int:
    """Weights of a module that every position is multiplied with: of its linear layers, not of its tables."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear | Conv1D))


def attention_width(config: Any) -> int:
    """Width of the queries of all blocks together."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers * config.num_attention_heads * head)


def stack_flops(stack: Any, positions: Any, *, causal: bool = True) -> Any:
    """Floating-point operations of running positions, numbers or ``[B]``, through the blocks, each once."""
    seen = (positions + 1) / 2 if causal else positions
    return positions * (2 * multiplied(stack) + 4 * attention_width(stack.config) * seen)
