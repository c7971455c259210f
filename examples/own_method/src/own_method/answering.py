"""A model that hesitates as it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.backbone.checks import require
from unspoken.backbone.vocabulary import head_of, scores
from unspoken.reasoning.engine import LatentStep, StopRule
from unspoken.reasoning.speakers import SameStack, ends_and_pad
from unspoken.reasoning.system import System


@dataclass(frozen=True, kw_only=True)
class HesitatingReasoner:
    """Every step of its chain is the row of the marker, whatever the model says.

    Attributes:
        model: a causal language model.
        token_id: the token.
    """

    model: PreTrainedModel
    token_id: int

    def __post_init__(self) -> None:
        require(self.model, "explicit chains")

    @property
    def stack(self) -> PreTrainedModel:
        """The model without its head."""
        stack: PreTrainedModel = self.model.base_model
        return stack

    def embed_prompt(self, input_ids: Tensor) -> Tensor:
        """Rows of the input table."""
        embedded: Tensor = self.model.get_input_embeddings()(input_ids)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token."""
        return scores(hidden, head_of(self.model)).float()

    @property
    def iterations(self) -> int:
        """0: the chain depends on nothing, so that it is read in one pass with the prompt as it was guessed."""
        return 0

    @property
    def shift(self) -> int:
        """1: a step follows the output before it, as in any chain that could be refined."""
        return 1

    def guess(self, count: int) -> Tensor:
        """The row of the marker, everywhere."""
        return self.embed_prompt(torch.full((count, 1), self.token_id, device=self.stack.device))[:, 0]

    def step(self, hidden: Tensor) -> LatentStep:
        """Hesitate."""
        ids = torch.full((len(hidden), 1), self.token_id, device=hidden.device)
        row = self.embed_prompt(ids)[:, 0]
        never = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        return LatentStep(latent=row, next_input=row, done=never)


def systems(model: PreTrainedModel, *, stage: str, max_answer: int) -> list[System]:
    """The model as it was trained to answer; nothing if it is another method's."""
    settings: dict[str, Any] | None = getattr(getattr(model, "generation_config", None), "hesitation", None)
    if settings is None:
        return []
    ends, pad = ends_and_pad(model.generation_config)
    return [
        System(
            name=stage,
            model=model,
            reasoner=HesitatingReasoner(model=model, token_id=settings["token_id"]),
            speaker=SameStack(marker=tuple(settings["end_ids"]), end_ids=ends, pad_id=pad),
            stop=StopRule(max_latents=settings["times"], fixed=True),
            max_tokens=max_answer,
            chain_kind="latent",
            table_size=model.get_output_embeddings().weight.numel(),
            scorings=0,
        )
    ]
