"""CODI's one stage (Shen et al., arXiv 2502.21074; details as in the published code, zhenyi4/codi at 4fd88d4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.method import Context
from unspoken.methods.self_distillation import SelfDistillation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.methods.codi.model import CodiForCausalLM
    from unspoken.methods.cost import StackPass
    from unspoken.methods.self_distilled import SelfDistilledModel


@dataclass(frozen=True, kw_only=True)
class Codi(SelfDistillation):
    """Latents are projected hidden states, one after another; the states of all layers are drawn to the teacher's.

    The published code has ``distance_weight`` 1 for GPT-2 and 20 for Llama. Without a projection the finished folder is
    a plain language model's.

    Attributes:
        separate_teacher: the states that the student is drawn to come from a pass of their own, as in the published
            code; they differ from those of the learning pass by dropout alone.
    """

    kind: ClassVar[str] = "codi"
    title: ClassVar[str] = "CODI"

    separate_teacher: bool = False

    @staticmethod
    def model_class() -> type[CodiForCausalLM]:
        from unspoken.methods.codi.model import CodiForCausalLM

        return CodiForCausalLM

    @property
    def pass_settings(self) -> dict[str, Any]:
        return {"separate_teacher": self.separate_teacher}

    def build(self, start: PreTrainedModel | None, context: Context) -> SelfDistilledModel:
        """The model; without a projection its decoder alone is published, which then records how it reasons."""
        model = super().build(start, context)
        if model.projection is None:
            context.generation(feed="hidden", max_latents=self.latents, fixed=True).attach(model.decoder)
            context.name_ends(model.decoder)
        return model

    def exported(self, model: Any) -> PreTrainedModel:
        """The model with its projection; the plain causal language model where there is none."""
        decoder: PreTrainedModel = model.decoder
        return decoder if model.projection is None else model

    def further_passes(self, stack: Any, prompt: float, teacher: float) -> Sequence[StackPass]:
        """The teacher's text once more."""
        from unspoken.methods.cost import StackPass

        return [StackPass(stack=stack, positions=teacher, has_gradient=False)] if self.separate_teacher else []

    def scored(self, prompt: float, text: float) -> float:
        """The last latent is read with the text; without latents the prompt is."""
        return text + (1 if self.latents else prompt)
