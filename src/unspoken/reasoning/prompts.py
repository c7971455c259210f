"""Prompts, and chains that are given after them, as what a decoder reads first.

Axes: B batch, T prompt tokens, N latent steps, D latent width.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.chain import LatentChain, real_last


def prompt_inputs(
    inputs: Float[Tensor, "B T D"], attention_mask: Tensor | None, given: LatentChain | None
) -> tuple[Tensor, list[int]]:
    """Prompts and given chains as vectors ``[B, T + N, D]``, and how many columns of each row are real: its last ones.

    Waits for the device once.

    Raises:
        ValueError: padding on the right of a prompt.
    """
    if attention_mask is None and given is None:
        return inputs, [inputs.shape[1]] * len(inputs)
    mask = torch.ones_like(inputs[:, :, 0]).bool() if attention_mask is None else attention_mask.bool()
    # A method may have put a marker after the padding.
    gap = (mask[:, :-1] & ~mask[:, 1:]).any() | ~mask[:, -1].all()
    if given is not None:
        # Some models look their inputs up in the table, what a mask hides too.
        latents = torch.where(given.mask[..., None], given.latents.to(inputs.dtype), inputs[:, :1])
        inputs, mask = torch.cat([inputs, latents], dim=1), torch.cat([mask, given.mask], dim=1)
    misplaced, *lengths = torch.cat([gap.long()[None], mask.sum(dim=1)]).tolist()
    if misplaced:
        raise ValueError("prompts must be padded on the left: a row of attention_mask has a zero after a one")
    if given is not None:
        # What follows must come right after the last latent: windows, biases of distance and recurrent states count
        # columns, whatever a mask hides.
        inputs = inputs.gather(1, real_last(mask)[:, :, None].expand_as(inputs))
    return inputs, lengths


def prompt_key(tokens: Sequence[int]) -> int:
    """A number that stands for a prompt, the same in every process."""
    return zlib.crc32(np.asarray(tokens, dtype=np.int64).tobytes())


def prompt_keys(input_ids: Int[Tensor, "B T"], attention_mask: Tensor | None) -> list[int]:
    """`prompt_key` of every row without its padding; waits for the device."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    pairs = zip(input_ids.tolist(), mask.tolist(), strict=True)
    return [prompt_key([token for token, real in zip(*pair, strict=True) if real]) for pair in pairs]
