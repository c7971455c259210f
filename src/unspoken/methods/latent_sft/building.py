"""Models of Latent-SFT's stages, what they read, and what a row costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from unspoken.chain import LatentChain
from unspoken.methods.cost import Lengths, RowCost, Scores, StackPass
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import LatentShape
from unspoken.methods.method import Context
from unspoken.methods.rows import Rows, decoder_rows, encoder_rows
from unspoken.placement import CPU, moved
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import Spans


def generation_of(shape: LatentShape, context: Context) -> LatentGenerationConfig:
    """How a model reasons in latents of a shape.

    At temperature 1, whatever the shape's is: the labels have that one in them, and the student learns what they are.
    """
    return context.generation(top_k=shape.top_k, feed=shape.latent)


def halves_of(base: PreTrainedModel, shape: LatentShape, context: Context, *, has_encoder: bool) -> LatentSFTModel:
    """Encoder and decoder, or the decoder alone, with the weights of a causal language model."""
    config = LatentSFTConfig(
        base_config=base.config,
        shape=asdict(shape),
        open_ids=list(context.markers.open),
        end_ids=list(context.markers.end),
        has_encoder=has_encoder,
    )
    model = LatentSFTModel._from_config(config, attn_implementation=context.attention)
    model.start_from(base)
    return model


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

    The encoder has read the right chain, so the accuracy of answers from its latents is an upper bound
    (docs/methods/latent_sft.md, open point 25).
    """
    shape = model.config.latent_shape
    rows = encoder_rows(spans, prompt_format.markers, rate=shape.rate, pad_id=prompt_format.tokenizer.pad_token_id)
    latents = moved(model.latents(moved(rows, model.device)), CPU)
    counts = rows.slots.sum(dim=1)
    mask = torch.arange(int(counts.max()))[None] < counts[:, None]
    packed = latents.new_zeros((*mask.shape, latents.shape[-1])).masked_scatter(mask[..., None], latents)
    return LatentChain(latents=packed, mask=mask, stop=torch.zeros_like(counts))


def stage1_cost(model: Any, lengths: Lengths, shape: LatentShape, *, taught: bool) -> RowCost:
    """Of stage 1; ``taught`` if the encoder learns."""
    latents, answered = _latents(lengths, shape), lengths.end + lengths.answer
    encoder = lengths.prompt + lengths.chain + latents + lengths.end
    after_first = max(0.0, lengths.chain - shape.rate)  # the first chunk is left out
    decoder = lengths.prompt + latents + answered + after_first
    head = model.decoder.get_output_embeddings().weight
    return RowCost(
        tokens=encoder + decoder,
        passes=(
            StackPass(stack=model.encoder, positions=encoder, has_gradient=taught),
            StackPass(stack=model.decoder.base_model, positions=decoder),
        ),
        scores=(
            *_read_out(head, shape, latents, has_gradient=taught),
            Scores(head=head, supervised=answered + after_first, pieces=True),
        ),
    )


def labels_cost(model: Any, lengths: Lengths, shape: LatentShape) -> RowCost:
    """Of writing labels."""
    latents = _latents(lengths, shape)
    encoder = lengths.prompt + lengths.chain + latents + lengths.end
    return RowCost(
        tokens=encoder,
        passes=(StackPass(stack=model.encoder, positions=encoder, has_gradient=False),),
        scores=_read_out(model.decoder.get_output_embeddings().weight, shape, latents, has_gradient=False),
    )


def stage2_cost(model: Any, lengths: Lengths, shape: LatentShape, *, rollout_passes: int) -> RowCost:
    """Of stage 2; ``rollout_passes`` compute the decoder's own latents without a gradient."""
    latents, answered = _latents(lengths, shape), lengths.end + lengths.answer
    tokens = lengths.prompt + latents + answered
    head = model.decoder.get_output_embeddings().weight
    supervised = (answered,) if shape.latent == "hidden" else (answered, float(latents))
    stack = model.decoder.base_model
    return RowCost(
        tokens=tokens,
        passes=(StackPass(stack=stack, positions=tokens),)
        + rollout_passes * (StackPass(stack=stack, positions=tokens, has_gradient=False),),
        scores=tuple(Scores(head=head, supervised=count, pieces=True) for count in supervised)
        + rollout_passes * _read_out(head, shape, latents, has_gradient=False),
    )


def _latents(lengths: Lengths, shape: LatentShape) -> int:
    return math.ceil(lengths.chain / shape.rate)


def _read_out(head: Any, shape: LatentShape, latents: float, *, has_gradient: bool) -> tuple[Scores, ...]:
    """Superpositions: scores of every latent at once, or of the whole vocabulary a piece at a time, mixed too."""
    if shape.latent == "hidden":
        return ()
    all_entries = shape.top_k is None
    return (
        Scores(
            head=head,
            supervised=float(latents),
            has_gradient=has_gradient,
            products=1 + all_entries,
            pieces=all_entries,
        ),
    )
