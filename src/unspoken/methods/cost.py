"""What one training row of a stage takes: passes through blocks, and scores over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from unspoken.methods.method import Context
from unspoken.reasoning.flops import attention_width, multiplied
from unspoken.reasoning.superposition import positions_at_once

_MEASURED = 64  # problems whose lengths are measured
FULL = 4  # bytes of float32: weights, gradients, optimiser state, residual stream, losses


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean numbers of tokens of a problem."""

    prompt: float  # with the open marker
    chain: float = 0.0  # of the explicit chain
    end: float = 0.0  # of the marker that ends it
    answer: float  # with its end-of-sequence token
    steps: float = 1.0  # of the explicit chain

    @property
    def total(self) -> float:
        """Tokens of a row with all of them."""
        return self.prompt + self.chain + self.end + self.answer


def measured_lengths(context: Context) -> Lengths:
    """Means over the first training problems.

    Raises:
        ValueError, OSError: the data cannot be read.
    """
    size = context.training_task.size("train")
    problems = context.training_task.sample("train", np.arange(_MEASURED if size is None else min(_MEASURED, size)))
    spans, markers = context.task.spans(problems, context.prompt_format), context.markers
    return Lengths(
        prompt=fmean(len(row.prompt) for row in spans) + len(markers.open),
        chain=fmean(len(row.chain) for row in spans),
        end=len(markers.end),
        answer=fmean(len(row.answer) for row in spans),
        steps=fmean(len(row.steps) for row in spans),
    )


@dataclass(frozen=True, kw_only=True)
class StackPass:
    """Positions of one row that go through one stack of blocks."""

    stack: Any
    positions: float
    has_gradient: bool = True  # gradients flow through, even where no weight of it is trained
    causal: bool = True
    across: float = 0.0  # positions of another stack that each one also sees

    def flops(self, *, again: bool) -> float:
        """Floating-point operations, forward and backward; ``again`` runs blocks with gradients a second time.

        Two for every weight of a linear layer and position, forward; as many backward for the gradient of the inputs,
        and as many for that of a trained weight. Attention as in `reasoning.flops.stack_flops`. Tables are looked up.
        """
        twice = self.has_gradient and again
        weights = 0
        for module in self.stack.modules():
            if isinstance(module, nn.Linear | Conv1D):
                times = 1 + twice + (self.has_gradient + module.weight.requires_grad if self.has_gradient else 0)
                weights += times * module.weight.numel()
        seen = ((self.positions + 1) / 2 if self.causal else self.positions) + self.across
        channels = 4 * attention_width(self.stack.config) * seen
        return self.positions * (2 * weights + (3 + twice if self.has_gradient else 1) * channels)

    def saved_bytes(self, width: int, *, eager: bool, checkpointing: bool) -> float:
        """Bytes a row that are kept for the backward pass, approximately.

        A block keeps the residual stream in float32 before its two norms and, in ``width`` bytes, what goes into its
        matrices: normed inputs, queries and keys before and after the rotation, values, what attention returns, and the
        feed-forward part; the scores too unless the kernel makes them again. With activation checkpointing every block
        keeps its input, and one block at a time the rest.
        """
        if not self.has_gradient:
            return 0.0
        config, layers = self.stack.config, self.stack.config.num_hidden_layers
        hidden, heads = config.hidden_size, config.num_attention_heads
        attention = attention_width(config) / layers
        keys = attention * (getattr(config, "num_key_value_heads", None) or heads) / heads
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
        gated = any(name.endswith("gate_proj") for name, _ in self.stack.named_modules())
        scores = heads * (FULL + (width if width < FULL else 0)) if eager else 0
        one = FULL * hidden + width * (hidden + 3 * attention + 3 * keys)
        block = one + scores * self.positions + FULL * hidden + width * (hidden + (4 if gated else 2) * inner)
        if self.across:
            block += one + scores * self.across
        if checkpointing:
            return self.positions * (FULL * hidden * layers + block)
        return self.positions * block * layers


@dataclass(frozen=True, kw_only=True)
class ProjectionPass(StackPass):
    """Latents of one row that are projected: two products and no attention."""

    def flops(self, *, again: bool) -> float:
        """Forward, and backward for inputs and weights."""
        return 3 * 2 * self.positions * multiplied(self.stack)

    def saved_bytes(self, width: int, *, eager: bool, checkpointing: bool) -> float:
        """Inputs of both products and of the norm, and what comes before the activation."""
        first = next(module for module in self.stack.modules() if isinstance(module, nn.Linear))
        outer, inner = first.in_features, first.out_features
        return self.positions * (width * (outer + 2 * inner) + FULL * outer)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Positions of one row that are scored over the vocabulary."""

    head: torch.Tensor  # what scores them
    made: float = 0.0  # positions whose scores the model returns; 0 where the loss makes its own
    supervised: float  # positions whose scores have a target
    has_gradient: bool = True  # gradients flow through
    products: int = 1  # with a matrix as large as the head, a position
    pieces: bool = False  # made a piece at a time, and again in the backward pass

    def flops(self, rows: int) -> float:
        """Floating-point operations of a row, ``rows`` of them at once."""
        again = self.has_gradient and self.pieces and rows * self.supervised > positions_at_once(len(self.head))
        times = 1 + again + (1 + self.head.requires_grad if self.has_gradient else 0)
        return 2 * self.head.numel() * self.products * max(self.made, self.supervised) * times

    def saved_bytes(self, rows: float, width: int) -> float:
        """Bytes of ``rows`` rows: scores, the supervised ones once more in float32, and their logarithms."""
        at_once = (
            min(rows * self.supervised, positions_at_once(len(self.head))) if self.pieces else rows * self.supervised
        )
        copies = width + (FULL if width < FULL else 0) + FULL
        return self.head.shape[0] * (width * rows * self.made + copies * at_once)


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """What one training row takes."""

    tokens: float
    passes: tuple[StackPass, ...]
    scores: tuple[Scores, ...] = ()
