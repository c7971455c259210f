"""Coconut as it answers: a fixed number of hidden states, then the rest in tokens."""

from __future__ import annotations

from transformers import PreTrainedModel

from unspoken.methods.coconut.model import CoconutModel
from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.system import System


def systems(model: PreTrainedModel, *, stage: str, max_answer: int) -> list[System]:
    """The system of a stage in training or finished; nothing if the model is another method's."""
    decoder = model.decoder if isinstance(model, CoconutModel) else model
    settings = LatentGenerationConfig.recorded(decoder)
    if settings is None or settings.feed != "hidden" or not settings.fixed:
        return []
    replaced = settings.max_latents
    return [causal_lm_system(decoder, settings, name=stage, max_tokens=max_answer, replaced=replaced)]
