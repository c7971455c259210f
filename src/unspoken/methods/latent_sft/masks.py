"""Who may look at whom in Latent-SFT: induction in the encoder, supervision in the decoder.

A mask is a predicate over a few small integer vectors of a batch, in the form that FlexAttention takes:
``(batch, head, query, key) -> bool``. The same predicate gives the dense mask for the other kernels, so all of them
agree by construction. Every token sees itself, padding sees nothing else, and nothing else sees padding: no row of a
softmax is ever empty.

Source: Latent-SFT (arXiv 2510.15522), latent token induction mask and latent token supervision mask.

Axes: B batch, T tokens.
"""

from __future__ import annotations

from typing import Literal

import torch

from unspoken.backbone.attention import MaskMod
from unspoken.methods.rows import Kind, Rows


def causal(rows: Rows) -> MaskMod:
    """Every real token sees the real tokens up to itself."""
    length = rows.length
    return lambda b, _h, q, kv: torch.where(q < length[b], kv <= q, kv == q)


def induction(rows: Rows) -> MaskMod:
    """The encoder's mask of `encoder_rows`: causal, and no latent is seen by any token but itself.

    So each latent sums up the question and all the text before it, and none is made out of another.
    """
    earlier, text = causal(rows), rows.kind != Kind.LATENT
    return lambda b, h, q, kv: earlier(b, h, q, kv) & (text[b, kv] | (q == kv))


def supervision(rows: Rows, chunk_sees: Literal["none", "first_token", "prompt"] = "none") -> MaskMod:
    """The decoder's mask: chunk text sees its latent and itself, and no other token sees chunk text.

    Prompt, latents, end marker and answer see each other causally.

    Args:
        rows: of `decoder_rows`.
        chunk_sees: what chunk text sees besides; the paper's mask has "none". "first_token" gives it the first token of
            the row (pretrained models lean on it as an attention sink), "prompt" the prompt and the open marker.
    """
    earlier, chunk, text = causal(rows), rows.chunk, rows.kind == Kind.TEXT
    place_T = torch.arange(text.shape[1], device=text.device)
    besides = {
        "none": torch.zeros_like(text),
        "first_token": (place_T == 0).expand_as(text),
        "prompt": rows.kind == Kind.PROMPT,
    }[chunk_sees]
    # Text has the number of the latent that it follows; prompt, end marker and answer have none.
    return lambda b, h, q, kv: (
        earlier(b, h, q, kv) & torch.where(text[b, q], (chunk[b, q] == chunk[b, kv]) | besides[b, kv], ~text[b, kv])
    )
