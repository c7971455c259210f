"""PCCoT as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.defaults import TrainingFacts
from unspoken.methods.method import Method, Objective
from unspoken.methods.pccot.stages import Pccot

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class PccotMethod(Method):
    """See `unspoken.methods.pccot`."""

    name: ClassVar[str] = "pccot"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Pccot,)
    untrained: ClassVar[Objective | None] = Pccot()

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """One stage, from the model itself. Without its last step a chain of one step would be empty."""
        if not facts.steps:
            return {}
        objective = {"kind": "pccot", "projection": {}, "last_step": facts.steps == 1}
        return {"pccot": [{"name": "pccot", "objective": objective, "epochs": 8}]}

    def register(self) -> None:
        """The causal language model with its latent row."""
        import unspoken.methods.pccot.model  # noqa: F401

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """See `unspoken.methods.pccot.systems.systems`."""
        from unspoken.methods.pccot.systems import systems

        return systems(model, stage=stage, max_answer=max_answer)
