"""Picking tokens and moving small numbers without making the host wait for the device.

Axes: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


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


def upload(numbers: Sequence[Any], device: torch.device) -> Int[Tensor, "*B"]:
    """Whole numbers, nested as they are, on a device."""
    return torch.tensor(numbers, dtype=torch.long, pin_memory=device.type == "cuda").to(device, non_blocking=True)
