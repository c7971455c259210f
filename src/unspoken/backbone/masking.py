"""Attention masks that are made without reading the values of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, masking_utils

_KINDS = {"sdpa": masking_utils.sdpa_mask, "eager": masking_utils.eager_mask}


@contextmanager
def masks_unread() -> Iterator[None]:
    """Inside, the host reads no values of masks, positions or tokens, since each reading waits for the device.

    transformers reads a padding mask to drop one of all ones, positions to detect rows of several sequences, and tokens
    to warn of padding without a mask. Our rows hold one sequence, and have no mask only where none is needed, see
    `unspoken.places.padding_mask`.
    """
    with ExitStack() as stack:
        stack.enter_context(_replaced(masking_utils, "find_packed_sequence_indices", lambda _: None))
        stack.enter_context(_replaced(PreTrainedModel, "warn_if_padding_and_no_attention_mask", lambda *_: None))
        for kind, make in _KINDS.items():
            masking_utils.ALL_MASK_ATTENTION_FUNCTIONS[kind] = partial(_always, make)
            stack.callback(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.pop, kind)
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _always(make: Callable[..., Any], *args: Any, attention_mask: Tensor | None = None, **how: Any) -> Tensor | None:
    """A mask of every padding mask, also of one of all ones."""
    if attention_mask is not None:
        how |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = make(*args, attention_mask=attention_mask, **how)
    return mask
