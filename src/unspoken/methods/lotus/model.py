"""The model of LOTUS: a causal language model with a learned row to which every latent adds its own output.

Axes: B batch, P prompt tokens, N latents, M tokens after the latents, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.utils.generic import ModelOutput

from unspoken.backbone.vocabulary import embedding_table
from unspoken.methods.latent_model import LatentModel, LatentReasoner
from unspoken.methods.latent_pass import block_pass
from unspoken.methods.lotus.configuration import LotusConfig
from unspoken.methods.lotus.stages import Lotus
from unspoken.reasoning.block import allow_rollback


@dataclass
class LotusOutput(ModelOutput):
    """Outputs of the last pass.

    Attributes:
        logits: ``[B, M, V]``, scores of the token after each token of the text.
        latent_logits: ``[B, N, V]``, scores of the token that each latent stands for, by the output before the latent.
        latents: ``[B, N, D]``.
    """

    logits: Tensor | None = None
    latent_logits: Tensor | None = None
    latents: Tensor | None = None


class LotusForCausalLM(LatentModel):
    """A causal language model that loops over a fixed number of latents before it answers.

    Raises:
        ValueError: a layer of the decoder keeps a recurrent state, and latents are refined.
    """

    title: ClassVar[str] = Lotus.title
    config_class = LotusConfig
    config: LotusConfig

    def __init__(self, config: LotusConfig) -> None:
        super().__init__(config)
        if config.iterations:
            allow_rollback(DynamicCache(config=self.decoder.config), type(self.decoder).__name__)
        table: Any = self.decoder.get_input_embeddings()
        self.latent_row = nn.Parameter(table.weight.new_zeros(table.weight.shape[1]))
        self.post_init()

    def start_from(self, base: PreTrainedModel) -> None:
        """Copy the weights of a causal language model of the same shape, or of another stage.

        The latent row of a language model is at first that of the open marker.
        """
        if isinstance(base, LotusForCausalLM):
            self.load_state_dict(base.state_dict())
            return
        super().start_from(base)
        assert self.config.open_ids, "an open marker has at least one token"
        with torch.no_grad():
            self.latent_row.copy_(embedding_table(self.decoder)[self.config.open_ids[-1]])

    def latent(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """The latent row and the output, or the output alone."""
        return hidden + self.latent_row.to(hidden.dtype) if self.config.add_row else hidden

    def reasoner(self) -> LotusReasoner:
        """Guesses and refines."""
        return LotusReasoner(model=self)

    def forward(
        self,
        input_ids: Int[Tensor, "B P"],
        attention_mask: Int[Tensor, "B P"],
        latent_mask: Bool[Tensor, "B N"],
        text_ids: Int[Tensor, "B M"],
        text_mask: Int[Tensor, "B M"],
    ) -> LotusOutput:
        """Loop over the latents, then read the text, see `unspoken.methods.latent_pass.block_pass`.

        Args:
            input_ids, attention_mask: prompts, padded on the left.
            latent_mask: true everywhere; its width is the number of latents.
            text_ids, text_mask: what follows the latents, padded on the right.
        """
        outputs, chains = block_pass(
            self.decoder,
            *(input_ids, attention_mask, latent_mask, text_ids, text_mask),
            guess=self.latent_row,
            iterations=self.config.iterations,
            latent_of=self.latent,
            shift=0,
            reread=1,
        )
        text = text_ids.shape[1]
        before = outputs.logits.shape[1] - text - latent_mask.shape[1] - 1
        return LotusOutput(
            logits=outputs.logits[:, -text:],
            latent_logits=outputs.logits[:, before : -text - 1],
            latents=chains[-1],
        )


@dataclass(frozen=True, kw_only=True)
class LotusReasoner(LatentReasoner):
    """Guesses every latent with the latent row and adds to it what came out there, again and again."""

    shift: ClassVar[int] = 0
    model: LotusForCausalLM

    @property
    def iterations(self) -> int:
        """Passes over all latents after the first one."""
        return self.model.config.iterations

    def guess(self, count: int) -> Float[Tensor, "N D"]:
        """The latent row, everywhere."""
        return self.model.latent_row.expand(count, -1)


AutoConfig.register(LotusConfig.model_type, LotusConfig)
AutoModelForCausalLM.register(LotusConfig, LotusForCausalLM)
