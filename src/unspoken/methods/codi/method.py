"""CODI as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.codi.stages import Codi
from unspoken.methods.defaults import TrainingFacts
from unspoken.methods.method import Method, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class CodiMethod(Method):
    """See `unspoken.methods.codi`."""

    name: ClassVar[str] = "codi"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Codi,)
    untrained: ClassVar[Objective | None] = Codi()

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """One stage, from the model itself. Without its last step a chain of one step would be empty."""
        if not facts.steps:
            return {}
        objective = {"kind": "codi", "last_step": facts.steps == 1}
        return {"codi": [{"name": "codi", "objective": objective, "epochs": 8}]}

    def register(self) -> None:
        """The causal language model with its projection."""
        import unspoken.methods.codi.model  # noqa: F401

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        from unspoken.methods.codi.systems import systems

        return systems(model, stage=stage, max_answer=max_answer)
