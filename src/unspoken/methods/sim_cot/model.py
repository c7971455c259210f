"""The model of SIM-CoT in training: its carrier's, and a language model that spells the latents.

Axes: B batch, N latents, U steps that the latents of a row can stand for, T tokens of a step, P supervised
tokens of steps, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.methods.carrier_model import CarrierModel


class SimCotModel(CarrierModel):
    """A carrier with an auxiliary decoder, at first a copy of the carrier's own.

    Args:
        latents_per_explicit_step: how many latents stand for one explicit step.
    """

    step_decoder: PreTrainedModel

    def __init__(self, carrier: Any, latents_per_explicit_step: int) -> None:
        super().__init__(carrier, step_decoder=copy.deepcopy(carrier.decoder))
        self.latents_per_explicit_step = latents_per_explicit_step
        table: Any = self.step_decoder.get_input_embeddings()
        head: Any = self.step_decoder.get_output_embeddings()
        # It reads rows of the carrier's table. Its own would never learn, which would stall several ranks.
        table.weight.requires_grad_(head.weight is table.weight)

    def read(self, latents: Float[Tensor, "B N D"], added: dict[str, Tensor]) -> Float[Tensor, "P V"]:
        """Scores of the tokens of the steps, each from its latents and the tokens before it, and nothing else.

        Args:
            added: ``step_ids`` ``[R, T]``, a row for each step that the latents of a row can stand for, R = B U, padded
                on the right; ``step_places`` ``[P]`` of the supervised tokens.
        """
        step_ids, size = added["step_ids"], self.latents_per_explicit_step
        if not len(step_ids):
            # The decoder runs all the same: ranks that have steps wait for gradients of its weights from all others.
            nothing = latents.new_zeros((1, size, latents.shape[-1]))
            return self.step_decoder(inputs_embeds=nothing, use_cache=False).logits[0, :0]
        steps = len(step_ids) // len(latents)
        thoughts = latents[:, : steps * size].reshape(len(step_ids), size, -1)
        words = self.get_input_embeddings()(step_ids[:, :-1])
        inputs = torch.cat([thoughts, words.to(thoughts.dtype)], dim=1)
        logits: Tensor = self.step_decoder(inputs_embeds=inputs, use_cache=False).logits
        return logits[:, size - 1 :].flatten(0, 1)[added["step_places"]]
