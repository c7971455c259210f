"""The models in training: an encoder that makes latents out of an explicit chain, and a decoder that must use them.

With the encoder it is stage 1, without it stage 2, where the latents come from the label store; see
docs/methods/latent_sft.md.

Axes: B batch, T tokens, N latents and M supervised tokens of all rows together, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.generic import ModelOutput

from unspoken.backbone.around import AroundDecoder, evaluate_frozen, from_config
from unspoken.backbone.attention import attention_mask
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.masks import causal, induction, supervision
from unspoken.methods.rows import Rows
from unspoken.places import at
from unspoken.reasoning.latents import Noise, Readout
from unspoken.reasoning.superposition import (
    Head,
    distribution,
    embedding_table,
    mix,
    readout_of,
    rows_at_once,
    superpose,
)


@dataclass
class LatentSFTOutput(ModelOutput):
    """Outputs of the decoder at supervised positions; the loss turns them into scores, a piece at a time."""

    before_targets: Tensor | None = None  # ``[M, D]``, the output before each supervised token, row by row
    before_slots: Tensor | None = None  # ``[N, D]``, the output before each latent, in the order of the slots
    summaries: Tensor | None = None  # ``[N, D]``, the encoder's output at each slot, in the same order; stage 1 alone
    head: Head | None = None  # what turns them into scores; it is never trained


class AdaptedRow(nn.Module):
    """A row kept apart from a table with low-rank adapters, as the table's next row would move.

    It has a column of the first factor to itself and shares the second factor with the table. Where the table scales
    its rows when they are read, the row given here is scaled already, and what its adapter adds is too.
    """

    def __init__(self, table: lora.Embedding) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple: the adapters belong to the encoder
        (self.adapter,) = table.lora_embedding_A
        first = table.lora_embedding_A[self.adapter]
        self.column = nn.Parameter(first.new_zeros(len(first), 1))

    def forward(self, row: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """The row with what its adapter adds."""
        table = self._table[0]
        added = table.scaling[self.adapter] * (table.lora_embedding_B[self.adapter] @ self.column)[:, 0]
        scale = table._get_embed_scale()
        return row + (added if scale is None else added * scale.to(added.dtype))


class LatentSFTModel(AroundDecoder):
    """Encoder and decoder of one shape, started from one base model.

    Table and head of the decoder never change, so that a latent means the same in every stage. The encoder's extra
    token is one vector of its own (the published code adds a row to the encoder's table instead, which learns the same:
    see `AdaptedRow`).
    """

    config_class = LatentSFTConfig
    config: LatentSFTConfig

    def __init__(self, config: LatentSFTConfig) -> None:
        super().__init__(config)
        how: Any = {"attn_implementation": config._attn_implementation}
        self.decoder: PreTrainedModel = from_config(AutoModelForCausalLM, self._inner_config, **how)
        if config.has_encoder:
            self.encoder: PreTrainedModel = from_config(AutoModel, self._inner_config, **how)
            self.compress = nn.Parameter(torch.zeros(embedding_table(self.decoder).shape[-1]))
        self.post_init()

    @torch.no_grad()
    def start_from(self, base: PreTrainedModel) -> None:
        """Copy a causal language model into both halves; the extra token starts as the mean row of the table."""
        self.decoder.load_state_dict(base.state_dict())
        if not self.config.has_encoder:
            return
        self.encoder.load_state_dict(base.base_model.state_dict())
        self.compress.copy_(embedding_table(base).mean(dim=0))

    def train_only(self, *, encoder: bool, decoder: bool) -> None:
        """Set which half learns."""
        if self.config.has_encoder:
            self.encoder.requires_grad_(encoder)
            self.compress.requires_grad_(encoder)
        self.decoder.requires_grad_(decoder)
        stack = {id(parameter) for parameter in self.decoder.base_model.parameters()}
        for parameter in self.decoder.parameters():
            if id(parameter) not in stack:
                parameter.requires_grad_(False)
        self.decoder.get_input_embeddings().requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> LatentSFTModel:
        """As in torch, but a half that does not learn stays in evaluation mode: its dropout would blur latents."""
        super().train(mode)
        if mode:
            evaluate_frozen(self.decoder)
            if self.config.has_encoder:
                evaluate_frozen(self.encoder)
        return self

    def adapt_extra_row(self) -> None:
        """Where the encoder's table has adapters, train the row of the extra token through them too, in place."""
        table = self.encoder.get_input_embeddings() if self.config.has_encoder else None
        if isinstance(table, lora.Embedding):
            self.compress.requires_grad_(False)
            parametrize.register_parametrization(self, "compress", AdaptedRow(table))

    def summaries(self, rows: Rows) -> Float[Tensor, "N D"]:
        """The encoder's output at every slot: each sees the prompt and all text before it, and no other slot."""
        inputs = self.encoder.get_input_embeddings()(rows.ids)
        inputs = torch.where(rows.slots[..., None], self.compress.to(inputs.dtype), inputs)
        mod = induction(rows) if self.config.latent_shape.induction_mask else causal(rows)
        hidden_BTD = _hidden(self.encoder, inputs, attention_mask(mod, rows.position, self.encoder), rows.position)
        return at(hidden_BTD, rows.slots_at)

    def latents(self, rows: Rows) -> Float[Tensor, "N D"]:
        """The decoder's input at every slot."""
        return self._made_of(self.summaries(rows))

    def _made_of(self, summaries: Float[Tensor, "N D"], noise: Noise | None = None) -> Float[Tensor, "N D"]:
        """Latents that the encoder's outputs stand for: the mixtures of the labels that `labels` makes of them."""
        shape = self.config.latent_shape
        return self._latents_of(summaries, shape.readout, temperature=shape.temperature, noise=noise)

    def _latents_of(
        self,
        outputs: Float[Tensor, "N D"],
        readout: Readout,
        *,
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> Float[Tensor, "N D"]:
        """Superpositions that outputs of a stack stand for, or the outputs themselves without a vocabulary step."""
        shape = self.config.latent_shape
        if shape.latent == "hidden":
            return outputs
        return superpose(
            outputs,
            readout_of(self.decoder, readout),
            embedding_table(self.decoder),
            top_k=shape.top_k,
            temperature=temperature,
            noise=noise if self.training else None,
        )

    def labels(self, rows: Rows) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The labels of stage 2, row by row.

        Yields:
            Weights and ids ``[N, K]`` of a row, or ``[N, D]`` and None without a vocabulary step.
        """
        shape, summaries, lengths = self.config.latent_shape, self.summaries(rows), list(rows.latents)
        if shape.latent == "hidden":
            yield from ((vectors, None) for vectors in summaries.split(lengths))
            return
        readout = readout_of(self.decoder, shape.readout)
        # Full labels over a large vocabulary are too large to exist for all rows at once: weights, ids and scores.
        fits = shape.top_k is not None or len(summaries) <= rows_at_once(4 * len(readout))
        for group in [lengths] if fits else [[length] for length in lengths]:
            group_summaries, summaries = summaries[: sum(group)], summaries[sum(group) :]
            weights, ids = distribution(group_summaries, readout, shape.top_k, shape.temperature)
            yield from zip(weights.split(group), ids.split(group), strict=True)

    def forward(
        self,
        decoder: Rows,
        encoder: Rows | None = None,
        weights: Float[Tensor, "N K"] | None = None,
        ids: Tensor | None = None,
        noise: Noise | None = None,
        own: Bool[Tensor, " N"] | None = None,
        rollout_passes: int = 1,
    ) -> LatentSFTOutput:
        """Predict chunks, end and answer from the latents alone (stage 1), or latents, end and answer (stage 2).

        Args:
            decoder: of `rows.decoder_rows` in stage 1, of `rows.compact_rows` in stage 2.
            encoder: of `rows.encoder_rows`; stage 1 makes the latents here.
            weights, ids: stage 2's latents in the order of the slots; with ids None, ``weights`` are the vectors.
            noise: on the latents of stage 1, in training mode alone.
            own: slots of stage 2 that read the decoder's own latents, as in a rollout, and not the given ones.
            rollout_passes: passes without gradients that compute those latents. After n passes, the first n consecutive
                own latents of a row equal those of a rollout; later ones follow a given latent.

        Raises:
            ValueError: encoder and decoder rows do not hold the same number of slots, or there are not as many
                given latents as slots.
        """
        summaries = None
        if encoder is not None:
            if encoder.latents != decoder.latents:
                raise ValueError("encoder and decoder rows hold different numbers of latents; use the same spans")
            summaries = self.summaries(encoder)
            shape, stack = self.config.latent_shape, self.decoder.base_model
            latents_ND = self._made_of(summaries, noise)
            mod = supervision(decoder, shape.chunk_sees) if shape.supervision_mask else causal(decoder)
            mask: Any = attention_mask(mod, decoder.position, stack)
            position: Tensor | None = decoder.position
        else:
            assert weights is not None
            if len(weights) != (slots := sum(decoder.latents)):
                raise ValueError(f"{len(weights)} latents for {slots} slots; take the labels of the same problems")
            latents_ND = weights if ids is None else mix(weights, ids, embedding_table(self.decoder))
            mask, position = None, None  # rows are padded on the right, which no earlier token sees
        inputs_BTD = self.decoder.get_input_embeddings()(decoder.ids)

        def hidden_after(latents_ND: Tensor) -> Tensor:
            flat = inputs_BTD.flatten(0, 1).index_copy(0, decoder.slots_at, latents_ND.to(inputs_BTD.dtype))
            return _hidden(self.decoder.base_model, flat.view_as(inputs_BTD), mask, position)

        if own is not None:
            given_ND = latents_ND
            for _ in range(rollout_passes):
                with torch.no_grad():
                    # At temperature 1, as when the decoder answers: the shape's is in the labels that it learns.
                    fed_ND = self._latents_of(at(hidden_after(latents_ND), decoder.slots_at - 1), "head")
                latents_ND = torch.where(own[:, None], fed_ND.to(given_ND.dtype), given_ND)
        hidden_BTD = hidden_after(latents_ND)
        # Every row begins with its prompt, so each of these has an output before it.
        return LatentSFTOutput(
            before_targets=at(hidden_BTD, decoder.targets_at - 1),
            before_slots=at(hidden_BTD, decoder.slots_at - 1),
            summaries=summaries,
            head=readout_of(self.decoder, "head"),
        )


def _hidden(stack: PreTrainedModel, inputs_BTD: Tensor, mask: Any, position: Tensor | None) -> Tensor:
    return stack(
        inputs_embeds=inputs_BTD, attention_mask=mask, position_ids=position, use_cache=False
    ).last_hidden_state


AutoConfig.register(LatentSFTConfig.model_type, LatentSFTConfig)
AutoModel.register(LatentSFTConfig, LatentSFTModel)
