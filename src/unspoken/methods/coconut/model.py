"""The training pass of Coconut: latents one after another, then all text at once (arXiv 2412.06769, section 3).

Axes: B batch, P prompt tokens, N latents, M tokens behind the latents, T = P + N + M, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.utils.generic import ModelOutput

from unspoken.backbone.around import Around


@dataclass
class CoconutOutput(ModelOutput):
    """What was thought and what would be said.

    Attributes:
        logits: ``[B, M, V]``, scores of the token behind each token of the text.
        latents: ``[B, N, D]``; they mean something where the row has a latent.
    """

    logits: Tensor | None = None
    latents: Tensor | None = None


class CoconutModel(Around):
    """A causal language model that learns to think in its own hidden states.

    It adds no weight: ``decoder`` is what a finished stage publishes.

    Args:
        config: of any decoder-only causal language model.
    """

    base_model_prefix = "decoder"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        how: Any = {"attn_implementation": config._attn_implementation}
        self.decoder: PreTrainedModel = AutoModelForCausalLM.from_config(config, **how)
        self.post_init()

    def start_from(self, base: PreTrainedModel) -> None:
        """Copy the weights of a causal language model of the same shape."""
        self.decoder.load_state_dict(base.state_dict(), strict=True)

    def forward(
        self,
        input_ids: Int[Tensor, "B P"],
        attention_mask: Int[Tensor, "B P"],
        latent_mask: Bool[Tensor, "B N"],
        text_ids: Int[Tensor, "B M"],
        text_mask: Int[Tensor, "B M"],
    ) -> CoconutOutput:
        """Think, then read the text.

        The output at the last prompt token is the first latent, the output at a latent is the next one. So N latents
        take N short passes over one key-value cache, and the pass over the text takes the last latent along. Gradients
        flow through the latents and through the cache.

        Args:
            input_ids, attention_mask: prompts, padded on the left so that all rows think at the same time.
            latent_mask: true where a row has a latent, from the left. Rows with fewer latents have a hole behind them,
                which no attention sees and no position counts.
            text_ids, text_mask: what stands behind the latents, padded on the right.

        Raises:
            ValueError: activation checkpointing is on; the library then drops the cache without which a latent would
                not see the prompt.
        """
        if self.training and self.is_activation_checkpointing:
            raise ValueError(
                "activation checkpointing is on, but it drops the key-value cache in which Coconut keeps its latents; "
                "turn activation_checkpointing off"
            )
        embed = self.decoder.get_input_embeddings()
        mask_BT = torch.cat([attention_mask, latent_mask.to(attention_mask.dtype), text_mask], dim=1)
        positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.decoder.config)

        def advance(part: PreTrainedModel, new_BTD: Tensor) -> Any:
            begin = cache.get_seq_length()
            end = begin + new_BTD.shape[1]
            return part(
                inputs_embeds=new_BTD,
                attention_mask=mask_BT[:, :end],
                position_ids=positions_BT[:, begin:end],
                past_key_values=cache,
                use_cache=True,
            )

        new_BTD = embed(input_ids)
        latents = [new_BTD[:, :0]]
        for _ in range(latent_mask.shape[1]):
            hidden_BTD = advance(self.decoder.base_model, new_BTD).last_hidden_state
            new_BTD = hidden_BTD[:, -1:].to(new_BTD.dtype)
            latents.append(new_BTD)
        outputs = advance(self.decoder, torch.cat([new_BTD, embed(text_ids)], dim=1))
        return CoconutOutput(logits=outputs.logits[:, -text_ids.shape[1] :], latents=torch.cat(latents, dim=1))
