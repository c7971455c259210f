"""CODI as it answers: a fixed number of projected hidden states, then the answer with the same stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from unspoken.methods.codi.model import CodiForCausalLM
from unspoken.methods.self_distilled import SelfDistilledReasoner
from unspoken.reasoning.system import System


@dataclass(frozen=True, kw_only=True)
class CodiReasoner(SelfDistilledReasoner):
    """Feeds back projected hidden states, one after another."""

    title: ClassVar[str] = "CODI"


def systems(model: PreTrainedModel, *, stage: str, max_answer: int) -> list[System]:
    """The system of a stage in training or finished; nothing if the model is another method's."""
    return [model.system(name=stage, max_tokens=max_answer)] if isinstance(model, CodiForCausalLM) else []
