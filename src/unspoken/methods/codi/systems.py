"""CODI as it answers: a fixed number of projected hidden states, then the answer with the same stack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.backbone.checks import Needs, require
from unspoken.backbone.vocabulary import scores
from unspoken.methods.codi.model import CodiForCausalLM
from unspoken.methods.codi.stages import ANSWERING
from unspoken.reasoning.engine import LatentStep, StopRule
from unspoken.reasoning.flops import multiplied
from unspoken.reasoning.speakers import SameStack, ends_and_pad
from unspoken.reasoning.superposition import readout_of
from unspoken.reasoning.system import System


@dataclass(frozen=True, kw_only=True)
class CodiReasoner:
    """Feeds back projected hidden states. It names no end of its own: chains have a fixed number of steps.

    Raises:
        ValueError: the latents would be wrong around the model's decoder.
    """

    model: CodiForCausalLM

    def __post_init__(self) -> None:
        require(self.model.decoder, Needs(method="CODI", properties=ANSWERING))

    @property
    def stack(self) -> PreTrainedModel:
        """The decoder without its head."""
        stack: PreTrainedModel = self.model.decoder.base_model
        return stack

    def embed_prompt(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Rows of the input table."""
        embedded: Tensor = self.model.get_input_embeddings()(input_ids)
        return embedded

    def logits(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Scores of the next token."""
        return scores(hidden, readout_of(self.model.decoder, "head")).float()

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """Project."""
        latent = self.model.latent(hidden)
        never = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        return LatentStep(latent=latent, next_input=latent, done=never)


def system(model: CodiForCausalLM, *, name: str, max_tokens: int) -> System:
    """The student path of a model.

    Raises:
        ValueError: as `CodiReasoner`, or nothing is named that could end an answer.
    """
    config = model.config
    ends, pad = ends_and_pad(model.generation_config)
    return System(
        name=name,
        model=model,
        reasoner=CodiReasoner(model=model),
        speaker=SameStack(marker=tuple(config.end_ids or ()), end_ids=ends, pad_id=pad),
        opening=tuple(config.open_ids or ()),
        stop=StopRule(max_latents=config.latents, fixed=True),
        max_tokens=max_tokens,
        chain_kind="hidden" if model.projection is None else "latent",
        table_size=model.decoder.get_output_embeddings().weight.numel(),
        scorings=0,
        step_flops=0 if model.projection is None else 2 * multiplied(model.projection),
    )


def systems(model: PreTrainedModel, *, stage: str, max_answer: int) -> list[System]:
    """The system of a stage in training or finished; nothing if the model is another method's."""
    return [system(model, name=stage, max_tokens=max_answer)] if isinstance(model, CodiForCausalLM) else []
