"""The encoder's latents of known explicit chains."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unspoken.chain import LatentChain
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import LatentShape
from unspoken.methods.rows import Rows, decoder_rows, encoder_rows
from unspoken.placement import CPU, moved
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import Spans


def stage_one_batch(spans: Sequence[Spans], prompt_format: PromptFormat, shape: LatentShape) -> dict[str, Rows]:
    """Rows of encoder and decoder for the same problems."""
    pad, markers = prompt_format.tokenizer.pad_token_id, prompt_format.markers
    return {
        "encoder": encoder_rows(spans, markers, rate=shape.rate, pad_id=pad),
        "decoder": decoder_rows(spans, markers, rate=shape.rate, pad_id=pad, positions=shape.positions),
    }


@torch.no_grad()
def gold_chain(model: LatentSFTModel, prompt_format: PromptFormat, spans: Sequence[Spans]) -> LatentChain:
    """The encoder's latents of right chains.

    The encoder has read the right chain, so the accuracy of answers from its latents is an upper bound (section 5.4).
    """
    shape = model.config.latent_shape
    rows = encoder_rows(spans, prompt_format.markers, rate=shape.rate, pad_id=prompt_format.tokenizer.pad_token_id)
    latents = moved(model.latents(moved(rows, model.device)), CPU)
    counts = rows.slots.sum(dim=1)
    mask = torch.arange(int(counts.max()))[None] < counts[:, None]
    packed = latents.new_zeros((*mask.shape, latents.shape[-1])).masked_scatter(mask[..., None], latents)
    return LatentChain(latents=packed, mask=mask, stop=torch.zeros_like(counts))
