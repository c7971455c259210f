"""The model of PCCoT: a causal language model with a learned row that stands in for latents not known yet.

Axes: B batch, P prompt tokens, N latents, M tokens after the latents, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache

from unspoken.backbone.vocabulary import embedding_table
from unspoken.methods.latent_model import LatentReasoner
from unspoken.methods.latent_pass import block_pass
from unspoken.methods.pccot.configuration import PccotConfig
from unspoken.methods.pccot.stages import Pccot
from unspoken.methods.self_distilled import SelfDistilledModel
from unspoken.reasoning.block import allow_rollback


class PccotForCausalLM(SelfDistilledModel):
    """A causal language model that guesses a fixed number of hidden states and refines them before it answers.

    Raises:
        ValueError: a layer of the decoder keeps a recurrent state, and latents are refined.
    """

    title: ClassVar[str] = Pccot.title
    config_class = PccotConfig
    config: PccotConfig

    def __init__(self, config: PccotConfig) -> None:
        super().__init__(config)
        if config.iterations:
            allow_rollback(DynamicCache(config=self.decoder.config), type(self.decoder).__name__)
        table: Any = self.decoder.get_input_embeddings()
        self.latent_row = nn.Parameter(table.weight.new_zeros(table.weight.shape[1]))

    def start_from(self, base: PreTrainedModel) -> None:
        """Copy the weights of a causal language model of the same shape; the latent row is the mean of its rows."""
        super().start_from(base)
        with torch.no_grad():
            self.latent_row.copy_(embedding_table(self.decoder).mean(dim=0))

    def student(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        latent_mask: Tensor,
        text_ids: Tensor,
        text_mask: Tensor,
        *,
        cut_gradient: bool = False,
    ) -> tuple[Any, Tensor, Tensor | None]:
        """Guess the latents, refine them and read the text with those of the last pass.

        Args:
            cut_gradient: latents are made of outputs through which no gradient flows.
        """
        outputs, chains = block_pass(
            self.decoder,
            *(input_ids, attention_mask, latent_mask, text_ids, text_mask),
            guess=self.latent_row,
            iterations=self.config.iterations,
            latent_of=self.latent,
            cut_gradient=cut_gradient,
            output_hidden_states=True,
        )
        return outputs, chains[-1], _residual(chains)

    def reasoner(self) -> PccotReasoner:
        """Guesses and refines."""
        return PccotReasoner(model=self)


@dataclass(frozen=True, kw_only=True)
class PccotReasoner(LatentReasoner):
    """Guesses every latent with the latent row and refines all of them together."""

    shift: ClassVar[int] = 1
    model: PccotForCausalLM

    @property
    def iterations(self) -> int:
        """Passes over all latents after the first one."""
        return self.model.config.iterations

    def guess(self, count: int) -> Float[Tensor, "N D"]:
        """The latent row, everywhere."""
        return self.model.latent_row.expand(count, -1)


@torch.no_grad()
def _residual(chains: list[Tensor]) -> Tensor | None:
    """Norm of the last change of the latents over their norm, mean over the rows; None if they never change."""
    if len(chains) == 1:
        return None
    before, after = (latents_BND.float().flatten(1) for latents_BND in chains[-2:])
    return ((after - before).norm(dim=1) / after.norm(dim=1)).mean()


AutoConfig.register(PccotConfig.model_type, PccotConfig)
AutoModelForCausalLM.register(PccotConfig, PccotForCausalLM)
