"""The model of CoLaR: a causal language model that reads compressed steps, and a head that predicts the next one.

Axes: B batch, T positions, R tokens of a group at most, P predicted latents, S supervised tokens, D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.generic import ModelOutput

from unspoken.backbone.vocabulary import embedding_table, scores
from unspoken.methods.colar.configuration import ColarConfig
from unspoken.methods.colar.stages import Colar
from unspoken.methods.latent_model import LatentModel, LatentReasoner
from unspoken.places import at
from unspoken.reasoning.engine import LatentStep, StopRule
from unspoken.reasoning.flops import multiplied
from unspoken.reasoning.soft_steps import row_draws
from unspoken.reasoning.superposition import readout_of
from unspoken.reasoning.system import System


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


class ColarForCausalLM(LatentModel):
    """A causal language model that writes compressed steps until its own head chooses the end marker."""

    title: ClassVar[str] = Colar.title
    config_class = ColarConfig
    config: ColarConfig

    def __init__(self, config: ColarConfig) -> None:
        super().__init__(config)
        table: Any = self.decoder.get_input_embeddings()
        width = int(table.weight.shape[1])
        self.latent_head = LatentHead(width, config.head_width or width, deterministic=config.deterministic)
        # The standard deviation of the table, in whose units latents are predicted.
        self.register_buffer("scale", torch.ones(()))
        self.scale: Tensor
        self.post_init()

    @torch.no_grad()
    def start_from(self, base: PreTrainedModel) -> None:
        """Copy a causal language model, whose table and scores do not change any more, and measure its table."""
        super().start_from(base)
        self.scale.copy_(embedding_table(base).float().std())
        stack = {id(parameter) for parameter in self.decoder.base_model.parameters()}
        for parameter in self.decoder.parameters():
            parameter.requires_grad_(id(parameter) in stack)
        self.decoder.get_input_embeddings().requires_grad_(False)

    def latent(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """The mean of the next group."""
        return (self.latent_head(hidden)[0] * self.scale).to(hidden.dtype)

    def reasoner(self) -> ColarReasoner:
        """How it writes its chain."""
        return ColarReasoner(model=self)

    def system(self, *, name: str, max_tokens: int, compression: int | None = None) -> System:
        """How it answers at one speed.

        Args:
            name, max_tokens: see `System`.
            compression: tokens that a latent stands for; as the folder records it by default.

        Raises:
            ValueError: the model was not trained at this speed, or as `LatentModel.system`.
        """
        speeds, speed = self.config.speed_ids or [], self.config.compression if compression is None else compression
        if not 1 <= speed <= len(speeds):
            raise ValueError(f"compression is {speed}, but {name} was trained with 1 to {len(speeds)}")
        named = speeds[speed - 1]
        return replace(
            super().system(name=name, max_tokens=max_tokens),
            opening=(*named, *(self.config.open_ids or ())),
            prefilled=len(named),
            # The end marker always follows a latent.
            stop=StopRule(max_latents=self.config.latents, min_latents=1),
            chain_kind="latent",
            scorings=1,
            step_flops=2 * multiplied(self.latent_head),
        )

    def compressed(self, ids: Int[Tensor, "*B R"], members: Bool[Tensor, "*B R"]) -> Float[Tensor, "*B D"]:
        """The rows of each group's tokens, added up and divided by the root of their number, or by the number."""
        rows = self.decoder.get_input_embeddings()(ids) * members[..., None]
        count = members.sum(dim=-1, keepdim=True).clamp(min=1).to(rows.dtype)
        return rows.sum(dim=-2) / (count.sqrt() if self.config.root_mean else count)

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
        mean, log_deviation = self.latent_head(at(hidden, before_groups))
        return ColarOutput(
            logits=scores(at(hidden, before_targets), readout_of(self.decoder, "head")),
            mean=mean,
            log_deviation=log_deviation,
            groups=at(inputs, before_groups + 1).detach() / self.scale,
        )


@dataclass(frozen=True, kw_only=True)
class ColarReasoner(LatentReasoner):
    """Feeds back the mean of the latent head, or a draw; a row is done where the likeliest token begins the end marker.

    Attributes:
        seed: of the draws; None takes the mean.
    """

    seed: int | None = None

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """The mean of the next group."""
        return self._fed(hidden, self.model.latent(hidden))

    def random_step(self, hidden: Float[Tensor, "B D"], keys: Sequence[tuple[int, int]]) -> LatentStep:
        """A draw for each row."""
        if self.seed is None:
            return self.step(hidden)
        model: Any = self.model
        mean, log_deviation = model.latent_head(hidden)
        noise = row_draws(keys, self.seed, lambda source, _: source.standard_normal(mean.shape[-1])).to(mean)
        deviation = log_deviation.exp().clamp(min=model.config.floor)
        return self._fed(hidden, ((mean + deviation * noise) * model.scale).to(hidden.dtype))

    def _fed(self, hidden: Tensor, latent: Tensor) -> LatentStep:
        done = self.logits(hidden).argmax(dim=-1) == (self.model.config.end_ids or [])[0]
        return LatentStep(latent=latent, next_input=latent, done=done, recorded=~done)


AutoConfig.register(ColarConfig.model_type, ColarConfig)
AutoModelForCausalLM.register(ColarConfig, ColarForCausalLM)
