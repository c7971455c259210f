"""Pauses as a model answers: one pass reads them all, then the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.chain import LatentChain, StopReason
from unspoken.methods.pause.configuration import PauseSettings
from unspoken.placement import moved
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.engine import LatentStep, Reasoner, chain_of
from unspoken.reasoning.speakers import Request, SameStack
from unspoken.reasoning.system import System


@dataclass(frozen=True, kw_only=True)
class PauseReasoner(CausalLMReasoner):
    """Every step is the same row of the table, whatever the stack has computed.

    Attributes:
        token: of that row.
    """

    token: int

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """The row of the pause."""
        ids = torch.full((len(hidden), 1), self.token, device=hidden.device)
        row = self.embed_prompt(ids)[:, 0]
        return LatentStep(latent=row, next_input=row, done=torch.zeros_like(ids[:, 0], dtype=torch.bool))


@dataclass(frozen=True, kw_only=True)
class AllAtOnce(SameStack):
    """The chain depends on nothing, so it is given whole and read in one pass with the prompt."""

    def respond(self, reasoner: Reasoner, request: Request) -> tuple[LatentChain, Int[Tensor, "B M"]]:
        """The chain and the answer."""
        if request.chain is None and request.stop.max_latents:
            request = replace(request, chain=_written(reasoner, request))
        return super().respond(reasoner, request)


def _written(reasoner: Reasoner, request: Request) -> LatentChain:
    """The chain that the engine would write step by step."""
    hidden = reasoner.embed_prompt(request.input_ids[:, -1:].to(reasoner.stack.device))[:, 0]
    steps = [reasoner.step(hidden) for _ in range(request.stop.max_latents)]
    if request.intervene is not None:
        steps = [request.intervene(step, number) for number, step in enumerate(steps)]
    mask = torch.ones((len(hidden), len(steps)), dtype=torch.bool, device=hidden.device)
    chain = chain_of(steps, mask, torch.full_like(mask[:, 0], StopReason.FIXED, dtype=torch.long))
    return moved(chain, request.input_ids.device)


def system(model: PreTrainedModel, settings: PauseSettings, *, name: str, max_tokens: int) -> System:
    """A model that pauses before it answers.

    Raises:
        ValueError: as `causal_lm_system`.
    """
    chain = LatentGenerationConfig(
        open_ids=settings.open_ids, end_ids=settings.end_ids, top_k=1, max_latents=settings.pauses, fixed=True
    )
    written = causal_lm_system(model, chain, name=name, max_tokens=max_tokens)
    assert isinstance(written.speaker, SameStack)
    speaker = AllAtOnce(marker=settings.end_ids, end_ids=written.speaker.end_ids, pad_id=written.speaker.pad_id)
    return replace(
        written,
        reasoner=PauseReasoner(model=model, settings=chain, token=settings.token),
        speaker=speaker,
        chain_kind="latent",
        parallel_chain=True,
        scorings=0,
    )


def systems(model: PreTrainedModel, *, stage: str, max_answer: int) -> list[System]:
    """The system of a stage in training or finished; nothing if the model is another method's."""
    settings = PauseSettings.recorded(model)
    return [] if settings is None else [system(model, settings, name=stage, max_tokens=max_answer)]
