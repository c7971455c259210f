"""Pauses as a model answers: one pass reads them all, then the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.methods.pause.configuration import PauseSettings
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.engine import LatentStep
from unspoken.reasoning.system import System


@dataclass(frozen=True, kw_only=True)
class PauseReasoner(CausalLMReasoner):
    """Every step is the same row of the table, whatever the stack has computed.

    Attributes:
        token: of that row.
    """

    shift: ClassVar[int] = 1
    token: int

    @property
    def iterations(self) -> int:
        """0: pause embeddings are constant, so the initial guess is final and one pass reads prompt and pauses."""
        return 0

    def guess(self, count: int) -> Float[Tensor, "N D"]:
        """The row of the pause, everywhere."""
        ids = torch.full((count,), self.token, device=self.stack.device)
        return self.embed_prompt(ids[:, None])[:, 0]

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """The row of the pause."""
        row = self.guess(len(hidden))
        never = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        return LatentStep(latent=row, next_input=row, done=never)


def system(model: PreTrainedModel, settings: PauseSettings, *, name: str, max_tokens: int) -> System:
    """A model that pauses before it answers.

    Raises:
        ValueError: as `causal_lm_system`.
    """
    chain = LatentGenerationConfig(
        open_ids=settings.open_ids, end_ids=settings.end_ids, top_k=1, max_latents=settings.pauses, fixed=True
    )
    written = causal_lm_system(model, chain, name=name, max_tokens=max_tokens)
    return replace(
        written,
        reasoner=PauseReasoner(model=model, settings=chain, token=settings.token),
        chain_kind="latent",
        scorings=0,
    )


def systems(model: PreTrainedModel, *, stage: str, max_answer: int) -> list[System]:
    """The system of a stage in training or finished; nothing if the model is another method's."""
    settings = PauseSettings.recorded(model)
    return [] if settings is None else [system(model, settings, name=stage, max_tokens=max_answer)]
