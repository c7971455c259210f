"""iCoT as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from unspoken.methods.icot.stages import Icot
from unspoken.methods.method import Method, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class IcotMethod(Method):
    """See `unspoken.methods.icot`."""

    name: ClassVar[str] = "icot"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Icot,)

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """None of its own: a finished model is a plain language model that answers at once, as its folder records."""
        return []
