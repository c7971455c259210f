"""The training pass of Coconut: latents one after another, then all text at once (arXiv 2412.06769, section 3).

Axes: B batch, P prompt tokens, N latents, M tokens after the latents, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from unspoken.backbone.around import Around, from_config
from unspoken.methods.latent_pass import latent_pass


@dataclass
class CoconutOutput(ModelOutput):
    """Latents and scores.

    Attributes:
        logits: ``[B, M, V]``, scores of the token after each token of the text.
        latents: ``[B, N, D]``; they mean something where the row has a latent.
    """

    logits: Tensor | None = None
    latents: Tensor | None = None


class CoconutModel(Around):
    """A causal language model that learns to reason in its own hidden states.

    It adds no weight: ``decoder`` is what a finished stage publishes.

    Args:
        config: of any decoder-only causal language model.
    """

    base_model_prefix = "decoder"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        how: Any = {"attn_implementation": config._attn_implementation}
        self.decoder: PreTrainedModel = from_config(AutoModelForCausalLM, config, **how)
        self.post_init()

    def start_from(self, base: PreTrainedModel) -> None:
        """Copy the weights of a causal language model of the same shape."""
        self.decoder.load_state_dict(base.state_dict())

    def forward(
        self,
        input_ids: Int[Tensor, "B P"],
        attention_mask: Int[Tensor, "B P"],
        latent_mask: Bool[Tensor, "B N"],
        text_ids: Int[Tensor, "B M"],
        text_mask: Int[Tensor, "B M"],
    ) -> CoconutOutput:
        """Write the latents, then read the text, see `unspoken.methods.latent_pass.latent_pass`.

        Args:
            input_ids, attention_mask: prompts, padded on the left so that all rows write latents at the same time.
            latent_mask: true where a row has a latent, from the left.
            text_ids, text_mask: what follows the latents, padded on the right.
        """
        outputs, latents = latent_pass(self.decoder, input_ids, attention_mask, latent_mask, text_ids, text_mask)
        return CoconutOutput(logits=outputs.logits[:, -text_ids.shape[1] :], latents=latents)
