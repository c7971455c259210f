"""The model of CODI: latents one after another, each a projected hidden state."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from unspoken.methods.codi.configuration import CodiConfig
from unspoken.methods.codi.stages import Codi
from unspoken.methods.latent_pass import latent_pass
from unspoken.methods.self_distilled import SelfDistilledModel


class CodiForCausalLM(SelfDistilledModel):
    """A causal language model that writes a fixed number of projected hidden states before it answers."""

    title: ClassVar[str] = Codi.title
    config_class = CodiConfig
    config: CodiConfig

    def student(
        self, input_ids: Tensor, attention_mask: Tensor, latent_mask: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> tuple[Any, Tensor, None]:
        """See `unspoken.methods.latent_pass.latent_pass`."""
        blocks = (input_ids, attention_mask, latent_mask, text_ids, text_mask)
        return *latent_pass(self.decoder, *blocks, latent_of=self.latent, output_hidden_states=True), None


AutoConfig.register(CodiConfig.model_type, CodiConfig)
AutoModelForCausalLM.register(CodiConfig, CodiForCausalLM)
