"""SIM-CoT as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.defaults import TrainingFacts, on_codi
from unspoken.methods.method import Method, Objective
from unspoken.methods.sim_cot.stages import SimCot

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class SimCotMethod(Method):
    """See `unspoken.methods.sim_cot`."""

    name: ClassVar[str] = "sim_cot"
    objectives: ClassVar[tuple[type[Objective], ...]] = (SimCot,)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """One stage, on CODI, from the model itself."""
        return on_codi(facts, SimCot.kind)

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """None of its own: a finished model is its carrier's, and so is one in training."""
        return []
