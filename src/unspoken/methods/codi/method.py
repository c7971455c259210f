"""CODI as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.codi.stages import Codi
from unspoken.methods.defaults import TrainingFacts, distilled
from unspoken.methods.method import Objective
from unspoken.methods.own_model import OwnModelMethod

if TYPE_CHECKING:
    from unspoken.methods.codi.model import CodiForCausalLM


class CodiMethod(OwnModelMethod):
    """See `unspoken.methods.codi`."""

    name: ClassVar[str] = "codi"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Codi,)
    untrained: ClassVar[Objective | None] = Codi()

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        return distilled(facts, {"kind": "codi"})

    def model_class(self) -> type[CodiForCausalLM]:
        return Codi.model_class()
