"""CoLaR as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.colar.reasoning import ThinkingSpeed
from unspoken.methods.colar.stages import Colar
from unspoken.methods.defaults import COT, TrainingFacts
from unspoken.methods.method import Method, Objective
from unspoken.methods.reasoning import Reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class ColarMethod(Method):
    """See `unspoken.methods.colar`."""

    name: ClassVar[str] = "colar"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Colar,)
    reasonings: ClassVar[tuple[type[Reasoning], ...]] = (ThinkingSpeed,)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """Explicit chains, then compressed ones."""
        if not facts.steps:
            return {}
        return {"colar": [COT, {"name": "colar", "start": "cot", "objective": {"kind": "colar"}, "epochs": 5}]}

    def register(self) -> None:
        """The causal language model with its latent head."""
        import unspoken.methods.colar.model  # noqa: F401

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        from unspoken.methods.colar.systems import systems

        return systems(model, stage=stage, max_answer=max_answer)
