"""PCCoT as it answers: latents that are refined together, then the answer with the same stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.methods.pccot.model import PccotForCausalLM
from unspoken.methods.self_distilled import SelfDistilledReasoner
from unspoken.reasoning.system import System


@dataclass(frozen=True, kw_only=True)
class PccotReasoner(SelfDistilledReasoner):
    """Guesses every latent with the latent row and refines all of them together."""

    title: ClassVar[str] = "PCCoT"

    model: PccotForCausalLM

    @property
    def iterations(self) -> int:
        """Passes over all latents after the first one."""
        return self.model.config.iterations

    def guess(self, count: int) -> Float[Tensor, "N D"]:
        """The latent row, everywhere."""
        return self.model.latent_row.expand(count, -1)


def systems(model: PreTrainedModel, *, stage: str, max_answer: int) -> list[System]:
    """The system of a stage in training or finished; nothing if the model is another method's."""
    return [model.system(name=stage, max_tokens=max_answer)] if isinstance(model, PccotForCausalLM) else []
