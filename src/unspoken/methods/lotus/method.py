"""LOTUS as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.defaults import COT, TrainingFacts
from unspoken.methods.lotus.stages import Lotus
from unspoken.methods.method import Objective
from unspoken.methods.own_model import OwnModelMethod

if TYPE_CHECKING:
    from unspoken.methods.lotus.model import LotusForCausalLM


class LotusMethod(OwnModelMethod):
    """See `unspoken.methods.lotus`."""

    name: ClassVar[str] = "lotus"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Lotus,)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """Explicit chains, then one step more replaced in each stage, six at most."""
        stages, last = [COT], min(facts.steps, 6)
        for replaced in range(1, last + 1):
            stages.append(
                {
                    "name": "lotus" if replaced == last else f"lotus_{replaced}",
                    "start": stages[-1]["name"],
                    "objective": {"kind": "lotus", "replaced": replaced},
                    "epochs": 3 if replaced == last else 1,
                }
            )
        return {"lotus": stages} if last else {}

    def model_class(self) -> type[LotusForCausalLM]:
        return Lotus.model_class()
