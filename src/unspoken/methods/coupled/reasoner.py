"""Explicit chain of thought as the special case of a chain in which every step is one token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.backbone.checks import require
from unspoken.backbone.vocabulary import head_of, scores
from unspoken.chain import LatentChain
from unspoken.reasoning.engine import LatentStep


@dataclass(frozen=True, kw_only=True)
class CoupledReasoner:
    """Greedy decoding of any causal language model, through the shared engine.

    Attributes:
        model: a transformers model with a head.
        end_id: the token that ends the chain.
        pad_id: fills rows after their end.

    Raises:
        ValueError: a model around which the chain would be wrong.
    """

    model: PreTrainedModel
    end_id: int
    pad_id: int

    def __post_init__(self) -> None:
        require(self.model, "explicit chains")

    @property
    def stack(self) -> PreTrainedModel:
        """The model without its head."""
        stack: PreTrainedModel = self.model.base_model
        return stack

    def embed_prompt(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Rows of the input table."""
        embedded: Tensor = self.model.get_input_embeddings()(input_ids)
        return embedded

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """Commit to the most likely token; its table row is the step's latent."""
        token_B = scores(hidden, head_of(self.model)).argmax(dim=-1)
        row_BD = self.model.get_input_embeddings()(token_B)
        return LatentStep(
            latent=row_BD,
            next_input=row_BD,
            done=token_B == self.end_id,
            support_ids=token_B[:, None],
            support_weights=torch.ones_like(token_B[:, None], dtype=row_BD.dtype),
        )

    def speak(self, chain: LatentChain) -> Int[Tensor, "B N"]:
        """The tokens of the chain, which are also the answer."""
        if chain.support_ids is None:
            raise ValueError("this chain has no tokens: it was not written by a coupled model")
        return torch.where(chain.mask, chain.support_ids[:, :, 0], self.pad_id)
