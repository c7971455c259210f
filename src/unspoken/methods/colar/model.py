"""The model of CoLaR: a causal language model that reads compressed steps, and a head that predicts the next one.

Axes: B batch, T positions, R tokens of a group at most, P predicted latents, S supervised tokens, D width,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from unspoken.backbone.around import AroundDecoder
from unspoken.backbone.vocabulary import embedding_table, scores
from unspoken.methods.colar.configuration import ColarConfig
from unspoken.methods.self_distilled import LatentAnswerOutput
from unspoken.places import at
from unspoken.reasoning.speakers import ends_and_pad
from unspoken.reasoning.superposition import readout_of


@dataclass
class ColarOutput(ModelOutput):
    """What is learned from.

    Attributes:
        logits: ``[S, V]``, scores of each supervised token.
        mean, log_deviation: ``[P, D]`` of the Gaussian over each next group, in units of the table's deviation.
        groups: ``[P, D]``, these groups, in the same units and without a gradient.
    """

    logits: Tensor | None = None
    mean: Tensor | None = None
    log_deviation: Tensor | None = None
    groups: Tensor | None = None


class LatentHead(nn.Module):
    """``f = LN(W_2 gelu(W_1 h))``, ``mu = W_m f``, ``log sigma = W_s f``."""

    def __init__(self, width: int, inner: int, *, deterministic: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner), nn.LayerNorm(inner))
        self.mean = nn.Linear(inner, width)
        self.log_deviation = None if deterministic else nn.Linear(inner, width)

    def forward(self, hidden: Float[Tensor, "*B D"]) -> tuple[Tensor, Tensor | None]:
        """Mean and logarithm of the standard deviation ``[*B, D]``; no deviation where the head has none."""
        features = self.features(hidden)
        return self.mean(features), None if self.log_deviation is None else self.log_deviation(features)


class ColarForCausalLM(AroundDecoder, GenerationMixin):
    """A causal language model that writes compressed steps until its own head says the end marker."""

    config_class = ColarConfig
    config: ColarConfig

    def __init__(self, config: ColarConfig) -> None:
        super().__init__(config)
        how: Any = {"attn_implementation": config._attn_implementation}
        self.decoder: PreTrainedModel = AutoModelForCausalLM.from_config(self._inner_config, **how)
        table: Any = self.decoder.get_input_embeddings()
        width = int(table.weight.shape[1])
        self.head = LatentHead(width, config.head_width or width, deterministic=config.deterministic)
        # The standard deviation of the table, in whose units latents are predicted.
        self.register_buffer("scale", torch.ones(()))
        self.scale: Tensor
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head of the decoder."""
        head: nn.Module = self.decoder.get_output_embeddings()
        return head

    @torch.no_grad()
    def start_from(self, base: PreTrainedModel) -> None:
        """Copy a causal language model, whose table and scores do not change any more, and measure its table."""
        self.decoder.load_state_dict(base.state_dict(), strict=True)
        self.scale.copy_(embedding_table(base).float().std())
        stack = {id(parameter) for parameter in self.decoder.base_model.parameters()}
        for parameter in self.decoder.parameters():
            parameter.requires_grad_(id(parameter) in stack)
        self.decoder.get_input_embeddings().requires_grad_(False)

    def compressed(self, ids: Int[Tensor, "*B R"], members: Bool[Tensor, "*B R"]) -> Float[Tensor, "*B D"]:
        """The rows of each group's tokens, added up and divided by the root of their number, or by the number."""
        rows = self.decoder.get_input_embeddings()(ids) * members[..., None]
        count = members.sum(dim=-1, keepdim=True).clamp(min=1).to(rows.dtype)
        return rows.sum(dim=-2) / (count.sqrt() if self.config.root_mean else count)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "B P"],
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int = 16,
        compression: int | None = None,
        return_chain: bool = False,
    ) -> Tensor | LatentAnswerOutput:
        """Write the latents, then the most likely answer.

        Args:
            input_ids, attention_mask: prompts without speed and open marker, padded on the left.
            max_new_tokens: cap of the answer.
            compression: tokens that a latent stands for; as the folder records it by default.
            return_chain: also return the chain.

        Returns:
            ``[B, P + M]``: prompt, speed, both markers and answer, padded after its end; or `LatentAnswerOutput`.

        Raises:
            ValueError: as `unspoken.methods.colar.systems.system` and `unspoken.reasoning.system.System.respond`.
        """
        from unspoken.methods.colar.systems import system

        mine = system(self, name="colar", max_tokens=max_new_tokens, compression=compression)
        answer = mine.respond(input_ids, attention_mask)
        between = torch.tensor([*mine.opening, *mine.speaker.marker], device=input_ids.device)
        tokens = answer.filled(ends_and_pad(self.generation_config)[1])
        sequences = torch.cat([input_ids, between.expand(len(input_ids), -1), tokens], dim=1)
        return LatentAnswerOutput(sequences=sequences, chain=answer.chain) if return_chain else sequences

    def forward(
        self,
        ids: Int[Tensor, "B T R"],
        members: Bool[Tensor, "B T R"],
        attention_mask: Tensor | None,
        before_targets: Int[Tensor, " S"],
        before_groups: Int[Tensor, " P"],
    ) -> ColarOutput:
        """One pass over rows with compressed chains.

        Args:
            ids, members: the tokens of each position, of which those with a member count; padded on the right.
            attention_mask: ``[B, T]``, or None.
            before_targets, before_groups: places of the outputs that predict a token or the next group.
        """
        inputs = self.compressed(ids, members)
        stack: Any = self.decoder.base_model
        # A copy, because some models scale what they are given in place.
        hidden = stack(inputs_embeds=inputs.clone(), attention_mask=attention_mask, use_cache=False).last_hidden_state
        mean, log_deviation = self.head(at(hidden, before_groups))
        return ColarOutput(
            logits=scores(at(hidden, before_targets), readout_of(self.decoder, "head")),
            mean=mean,
            log_deviation=log_deviation,
            groups=at(inputs, before_groups + 1).detach() / self.scale,
        )


AutoConfig.register(ColarConfig.model_type, ColarConfig)
AutoModelForCausalLM.register(ColarConfig, ColarForCausalLM)
