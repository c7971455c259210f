"""Coconut as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.method import Method, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class CoconutMethod(Method):
    """See `unspoken.methods.coconut`."""

    name: ClassVar[str] = "coconut"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Coconut,)

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """See `unspoken.methods.coconut.systems.systems`."""
        from unspoken.methods.coconut.systems import systems

        return systems(model, stage=stage, max_answer=max_answer)
