"""Attention masks that are made without a look at the padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask


@contextmanager
def masks_unread() -> Iterator[None]:
    """Inside, an "sdpa" mask is made of every padding mask.

    The library first looks whether anything is padding, to leave a mask of all ones out, and that makes the host wait
    for the device once a pass. What needs no padding mask is better given none, see `unspoken.places.padding_mask`.
    """
    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = _made
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]


def _made(*args: Any, attention_mask: Tensor | None = None, **how: Any) -> Tensor | None:
    if attention_mask is not None:
        how |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **how)
    return mask
