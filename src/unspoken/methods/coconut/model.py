"""The training pass of Coconut: latents one after another, then all text at once (arXiv 2412.06769, section 3).

Axes: B batch, P prompt tokens, N latents, M tokens behind the latents, T = P + N + M, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.utils.generic import ModelOutput

from unspoken.backbone.around import Around
from unspoken.chain import real_last
from unspoken.reasoning.cache import require_filled


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
            latent_mask: true where a row has a latent, from the left. A row with fewer latents is moved to the right,
                so that its text follows its last latent at once: it still reads its prompt while others think already.
            text_ids, text_mask: what stands behind the latents, padded on the right.

        Raises:
            ValueError: activation checkpointing is on, or the model ignores the cache it is given: a latent would not
                see the prompt.
        """
        if self.training and self.is_activation_checkpointing:
            raise ValueError(
                "activation checkpointing is on, but it drops the key-value cache in which Coconut keeps its latents; "
                "turn activation_checkpointing off"
            )
        embed = self.decoder.get_input_embeddings()
        length, latents = input_ids.shape[1], latent_mask.shape[1]
        mask_BS = torch.cat([attention_mask, latent_mask.to(attention_mask.dtype)], dim=1)
        order_BS = real_last(mask_BS.bool())
        mask_BT = torch.cat([mask_BS.gather(1, order_BS), text_mask], dim=1)
        positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        tokens_BS = F.pad(input_ids, (0, latents)).gather(1, order_BS)
        latent_BS = order_BS >= length
        cache = DynamicCache(config=self.decoder.config)

        def advance(part: PreTrainedModel, new_BTD: Tensor, end: int) -> Any:
            begin = end - new_BTD.shape[1]
            outputs = part(
                inputs_embeds=new_BTD,
                attention_mask=mask_BT[:, :end],
                position_ids=positions_BT[:, begin:end],
                past_key_values=cache,
                use_cache=True,
            )
            if not begin:
                require_filled(cache, type(part).__name__)
            return outputs

        new_BTD = embed(tokens_BS[:, :length])
        outputs_BND = [new_BTD[:, :0]]
        for column in range(length, length + latents):
            hidden_BTD = advance(self.decoder.base_model, new_BTD, column).last_hidden_state
            new_BTD = hidden_BTD[:, -1:].to(new_BTD.dtype)
            outputs_BND.append(new_BTD)
            new_BTD = torch.where(latent_BS[:, column, None, None], new_BTD, embed(tokens_BS[:, column, None]))
        outputs = advance(self.decoder, torch.cat([new_BTD, embed(text_ids)], dim=1), mask_BT.shape[1])
        # Latents from the left again, as the mask of the caller has them.
        missing_B1 = (~latent_mask).sum(dim=1, keepdim=True)
        columns_BN = (torch.arange(latents, device=missing_B1.device) + missing_B1).clamp(max=latents - 1)
        return CoconutOutput(
            logits=outputs.logits[:, -text_ids.shape[1] :],
            latents=torch.cat(outputs_BND, dim=1).gather(1, columns_BN[:, :, None].expand(-1, -1, new_BTD.shape[-1])),
        )
