"""Pause and filler tokens as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.defaults import TrainingFacts
from unspoken.methods.method import Method, Objective
from unspoken.methods.pause.stages import Pause

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class PauseMethod(Method):
    """See `unspoken.methods.pause`."""

    name: ClassVar[str] = "pause"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Pause,)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """One stage of pauses in place of a chain; with adapters, weight decay would shrink frozen rows."""
        stage = {"name": "pause", "objective": {"kind": "pause"}, "epochs": 3, "optimizer": {"weight_decay": 0.0}}
        return {"pause": [stage]}

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """See `unspoken.methods.pause.systems.systems`."""
        from unspoken.methods.pause.systems import systems

        return systems(model, stage=stage, max_answer=max_answer)
