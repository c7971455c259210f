"""PCCoT as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.defaults import TrainingFacts, distilled
from unspoken.methods.method import Objective
from unspoken.methods.own_model import OwnModelMethod
from unspoken.methods.pccot.stages import Pccot

if TYPE_CHECKING:
    from unspoken.methods.pccot.model import PccotForCausalLM


class PccotMethod(OwnModelMethod):
    """See `unspoken.methods.pccot`."""

    name: ClassVar[str] = "pccot"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Pccot,)
    untrained: ClassVar[Objective | None] = Pccot()

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        return distilled(facts, {"kind": "pccot", "projection": {}})

    def model_class(self) -> type[PccotForCausalLM]:
        return Pccot.model_class()
