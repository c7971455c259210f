"""The Reasoner: a causal stack whose unit-norm outputs are fed back to its own first block.

Source: JEPA-Reasoner (arXiv 2512.19171), sections 3 and 4.

Axes: B batch, T tokens, N latent steps, D latent width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from unspoken.backbone.around import Around, from_config
from unspoken.backbone.folder import StrictLoading
from unspoken.backbone.vocabulary import embedding_table
from unspoken.chain import LatentChain
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.reasoning.engine import LatentStep, StopRule, rollout


@dataclass
class ReasonerOutput(ModelOutput):
    """Teacher-forced outputs: ``latents[:, t]`` predicts the row of ``target_table`` of what comes at t + 1."""

    latents: Tensor | None = None
    target_table: Tensor | None = None


class JepaReasonerPreTrainedModel(Around, StrictLoading):
    """Loading, saving and initialisation shared by the Reasoner alone and the pair."""

    config_class = JepaReasonerConfig
    config: JepaReasonerConfig
    base_model_prefix = "reasoner"
    supports_gradient_checkpointing = True

    @property
    def _inner_config(self) -> PreTrainedConfig:
        if not isinstance(self.config.backbone_config, PreTrainedConfig):
            raise ValueError("backbone_config is missing: a JEPA-Reasoner needs the configuration of its blocks")
        return self.config.backbone_config


class JepaReasonerModel(JepaReasonerPreTrainedModel):
    """The Reasoner around any decoder-only transformers model.

    The target table is a buffer: it takes no gradient and no optimiser state, and it travels with the weights, since
    the stop rule and the nearest-row read-out need it.
    """

    target_table: Tensor

    def __init__(self, config: JepaReasonerConfig) -> None:
        super().__init__(config)
        self.backbone: PreTrainedModel = from_config(
            AutoModel, self._inner_config, attn_implementation=config._attn_implementation
        )
        table = self.backbone.get_input_embeddings().weight
        # In float32 whatever the weights are: steps of 2% of a difference are lost in bfloat16.
        self.register_buffer("target_table", torch.zeros_like(table, dtype=torch.float32))
        self.post_init()

    @torch.no_grad()
    def start_target(self) -> None:
        """Copy the online table: done once, when SST starts."""
        self.target_table.copy_(self._online_table())

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """``target = momentum * target + (1 - momentum) * online``, after every optimiser step."""
        self.target_table = self.target_table.float()
        self.target_table.lerp_(self._online_table().float(), 1 - momentum)

    @property
    def _turns_rows(self) -> bool:
        """Whether the embedding changes more than the length of a row, for instance by a norm with gains."""
        return len(list(self.backbone.get_input_embeddings().parameters())) > 1

    def _online_table(self) -> Float[Tensor, "V D"]:
        """The online table; of its rows the directions alone count."""
        if self._turns_rows:
            return embedding_table(self.backbone)
        return self.backbone.get_input_embeddings().weight

    def unit_table(self) -> Float[Tensor, "V D"]:
        """The directions that latents are trained towards."""
        return F.normalize(self.target_table.float(), dim=-1)

    @property
    def scale(self) -> float | Tensor:
        """Norm at which latents (and unit tokens) enter the first block."""
        if not self.config.unit_tokens:
            return embedding_table(self.backbone).norm(dim=-1).mean()
        return self.config.latent_dim**0.5 if self.config.input_scale is None else self.config.input_scale

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | None = None,
        own: Bool[Tensor, "B T"] | None = None,
        rollout_passes: int = 1,
    ) -> ReasonerOutput:
        """One parallel pass over real tokens; latents are fed back only at the positions in ``own``.

        Args:
            input_ids, attention_mask: prompt and answer.
            own: positions that are read as the model's own latents, as in a rollout, not as their tokens.
            rollout_passes: passes without gradients that compute those latents. After n passes, the first n consecutive
                latents of a row equal those of a rollout; later ones follow a real token.
        """
        positions = None
        if attention_mask is not None:
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)

        def latents_of(embedded: Tensor) -> Tensor:
            hidden = self.backbone(
                inputs_embeds=embedded, attention_mask=attention_mask, position_ids=positions, use_cache=False
            ).last_hidden_state
            return F.normalize(hidden.float(), dim=-1)

        spoken = embedded = self.embed_prompt(input_ids)
        if own is not None:
            embedded = spoken.clone()  # some models scale their inputs in place
            for _ in range(rollout_passes):
                with torch.no_grad():
                    # The latent at t stands for what comes at t + 1.
                    fed = F.pad(latents_of(embedded) * self.scale, (0, 0, 1, -1))
                embedded = torch.where(own[..., None], fed.to(spoken.dtype), spoken)
        return ReasonerOutput(latents=latents_of(embedded), target_table=self.target_table)

    def read(self, input_ids: Int[Tensor, "B T"], attention_mask: Tensor | None = None) -> Float[Tensor, "B T D"]:
        """Latents of the teacher-forced pass: the one at t stands for the token at t + 1."""
        # The class's forward: while it trains, the instance's is wrapped in autocast, and readings are in float32.
        latents = type(self).forward(self, input_ids, attention_mask).latents
        assert latents is not None
        return latents

    @property
    def stack(self) -> PreTrainedModel:
        """The blocks that the engine runs."""
        return self.backbone

    def embed_prompt(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Table rows on the unit sphere, times the scale that looped latents get too.

        See docs/methods/jepa_reasoner.md, open point 8.
        """
        embedding = self.backbone.get_input_embeddings()
        if not self.config.unit_tokens or self._turns_rows:
            rows: Tensor = embedding(input_ids)
        else:
            rows = F.embedding(input_ids, embedding.weight)
        return F.normalize(rows, dim=-1) * self.scale if self.config.unit_tokens else rows

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """Put the output on the sphere; a chain ends when its nearest table row is end-of-sequence.

        See docs/methods/jepa_reasoner.md, open point 11.
        """
        latent_BD = F.normalize(hidden.float(), dim=-1)
        done_B = self.nearest_row(latent_BD) == self.config.end_id
        return LatentStep(latent=latent_BD, next_input=latent_BD * self.scale, done=done_B)

    def reason(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, stop: StopRule | None = None
    ) -> LatentChain:
        """Write the chain. Nothing is sampled, and no decoded token is fed back."""
        return rollout(self, input_ids, attention_mask, stop or StopRule(max_latents=self.config.max_latents))

    def nearest_row(self, latents: Tensor) -> Tensor:
        """Token id of the nearest target row by angle, ``[..., D] -> [...]``, on the device of the latents."""
        placed = latents.to(self.target_table.device).float()
        nearest: Tensor = (placed @ self.unit_table().T).argmax(dim=-1)
        return nearest.to(latents.device)

    def read_out(self, chain: LatentChain) -> Int[Tensor, "B N"]:
        """The Talker-free control: the nearest row of every latent."""
        pad = self.config.pad_token_id
        return torch.where(chain.mask, self.nearest_row(chain.latents), self.config.end_id if pad is None else pad)
