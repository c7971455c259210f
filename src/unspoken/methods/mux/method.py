"""MUX as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.defaults import TrainingFacts, on_codi
from unspoken.methods.method import Method, Objective
from unspoken.methods.mux.stages import Mux

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class MuxMethod(Method):
    """See `unspoken.methods.mux`."""

    name: ClassVar[str] = "mux"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Mux,)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """One stage, on CODI, from the model itself."""
        return on_codi(facts, Mux.kind)

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """None of its own: a finished model is its carrier's, and so is one in training."""
        return []
