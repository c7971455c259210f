"""Masks of our own for any transformers model, with the sliding windows of its layers.

transformers passes a mask of four axes unchanged to every layer, so a layer with a sliding window would see the full
row. Here each kind of layer gets a mask of its own.

Axes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedConfig, PreTrainedModel

# (batch, head, query, key) -> may it be seen; the form that FlexAttention takes.
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Mask = Tensor | BlockMask


def dense(mod: MaskMod, positions: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """A predicate as a tensor, true where a query (third axis) may see a key (last axis)."""
    batch, width = positions.shape
    b = torch.arange(batch, device=positions.device)
    t = torch.arange(width, device=positions.device)
    return mod(b[:, None, None, None], b.new_zeros(()), t[:, None], t).expand(batch, 1, width, width)


def attention_mask(mod: MaskMod, positions: Int[Tensor, "B T"], model: PreTrainedModel) -> Mask | dict[str, Mask]:
    """A predicate in the form that a model's attention takes.

    Args:
        mod: who may see whom.
        positions: position ids, on the device of the model. A sliding window is measured in position ids; tokens with
            the same position id count once.
        model: any transformers model.

    Returns:
        "sdpa": bool ``[B, 1, T, T]``. "eager": the same, as numbers that are added to the scores. "flex_attention": a
        block mask. For a model with several kinds of layers, one of these by the kind's name.

    Raises:
        ValueError: another kind of attention.
    """
    implementation = model.config._attn_implementation
    if implementation not in ("eager", "sdpa", "flex_attention"):
        raise ValueError(
            f"attention {implementation!r} of {type(model).__name__} takes no mask of our own; load the model with "
            "attn_implementation 'sdpa', 'eager' or 'flex_attention'"
        )
    config = model.config.get_text_config()
    masks = {kind: _formed(_within(mod, positions, kind, config), positions, model) for kind in _kinds(config)}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _kinds(config: PreTrainedConfig) -> list[str]:
    """The kinds of layers, by the names in ``config.layer_types``."""
    named = getattr(config, "layer_types", None)
    if named:
        return list(dict.fromkeys(named))
    return ["full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"]


def _within(mod: MaskMod, positions: Tensor, kind: str, config: PreTrainedConfig) -> MaskMod:
    """A predicate for layers of one kind."""
    if kind != "sliding_attention":
        return mod
    window: int = config.sliding_window
    return lambda b, h, q, kv: mod(b, h, q, kv) & (positions[b, q] - positions[b, kv] < window)


def _formed(mod: MaskMod, positions: Tensor, model: PreTrainedModel) -> Mask:
    implementation = model.config._attn_implementation
    if implementation == "flex_attention":
        batch, width = positions.shape
        return create_block_mask(mod, batch, None, width, width, device=positions.device)
    allowed = dense(mod, positions)
    if implementation == "sdpa":
        return allowed
    hidden = torch.finfo(model.dtype).min
    return torch.zeros(allowed.shape, dtype=model.dtype, device=allowed.device).masked_fill(~allowed, hidden)
