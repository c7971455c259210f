"""Picking tokens and moving small numbers without making the host wait for the device.

Axes: B batch, R some of its rows, N places in an answer, M tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.placement import moved

# Chooses tokens ``[R, N]`` of an answer: of their scores ``[R, N, V]``, the indices ``[R]`` of their rows in the batch,
# and the place of the first of them in the answer.
Sample = Callable[[Tensor, Tensor, int], Tensor]

FREE = -1  # no token: the model chooses its own


def draw(weights: Float[Tensor, "*B V"], generator: torch.Generator | None = None) -> Int[Tensor, "*B"]:
    """One entry of each row, with probability proportional to its weight.

    The draw is that of ``torch.multinomial`` for one sample, to the bit, without its look at the weights: a division by
    exponential noise and an arg-max. The noise is made where its generator is: a seed means the same on every device.

    Args:
        generator: on any device; torch's own of the weights' device by default.
    """
    source = weights.device if generator is None else generator.device
    noise = torch.empty_like(weights, device=source).exponential_(generator=generator)
    return (weights / noise.to(weights.device, non_blocking=True)).argmax(dim=-1)


def generator_of(name: str) -> torch.Generator:
    """A generator on the CPU that belongs to a name."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1)


def upload(numbers: Sequence[Any], device: torch.device) -> Int[Tensor, "*B"]:
    """Whole numbers, nested as they are, on a device."""
    # By NumPy, which reads lists several times as fast as torch does.
    tensor = torch.from_numpy(np.asarray(numbers, dtype=np.int64))
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Sampler:
    """Turns scores into tokens: the arg-max, or a draw at a temperature.

    A draw is made where its generator is, so a seed means the same on every device.

    Args:
        temperature: 0 picks the most likely token.
        generator: of the draws.
        top_p: draws are from the most likely tokens that have this probability together (nucleus sampling,
            arXiv 1904.09751); 1 keeps all.

    Raises:
        ValueError: a negative temperature, or a ``top_p`` that is not in (0, 1].
    """

    def __init__(self, temperature: float = 0.0, generator: torch.Generator | None = None, top_p: float = 1.0) -> None:
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}; it cannot be negative (0 picks the most likely token)")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}; it is above 0 and at most 1 (1 draws from all tokens)")
        self.temperature = temperature
        self.generator = generator
        self.top_p = top_p

    def __call__(self, scores: Float[Tensor, "R N V"], *_where: object) -> Int[Tensor, "R N"]:
        """Tokens of a batch, wherever they stand."""
        if self.temperature == 0:
            return scores.argmax(dim=-1)
        weights = torch.softmax(scores.float() / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, ids = weights.sort(dim=-1, descending=True)
            # A token stays as long as those before it have less than top_p; the first one always does.
            kept = ordered.cumsum(dim=-1) - ordered < self.top_p
            weights = torch.zeros_like(weights).scatter(-1, ids, ordered * kept)
        return draw(weights, self.generator)


class ForcedTokens:
    """The most likely tokens, overruled wherever one is given.

    Args:
        tokens: ``[B, M]``, `FREE` where the model chooses; beyond them it chooses too.
    """

    def __init__(self, tokens: Int[Tensor, "B M"]) -> None:
        self.tokens = tokens

    def __call__(self, scores: Float[Tensor, "R N V"], rows: Int[Tensor, " R"], first: int) -> Int[Tensor, "R N"]:
        """Tokens of some rows."""
        own = scores.argmax(dim=-1)
        self.tokens = moved(self.tokens, scores.device)  # by the first call, for all of them
        given = self.tokens[rows, first : first + own.shape[1]]
        given = F.pad(given, (0, own.shape[1] - given.shape[1]), value=FREE)
        return torch.where(given == FREE, own, given)
