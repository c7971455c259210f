"""CoLaR as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.colar.reasoning import ThinkingSpeed
from unspoken.methods.colar.stages import Colar
from unspoken.methods.defaults import COT, TrainingFacts
from unspoken.methods.method import Objective
from unspoken.methods.own_model import OwnModelMethod
from unspoken.methods.reasoning import Reasoning

if TYPE_CHECKING:
    from unspoken.methods.colar.model import ColarForCausalLM


class ColarMethod(OwnModelMethod):
    """See `unspoken.methods.colar`."""

    name: ClassVar[str] = "colar"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Colar,)
    reasonings: ClassVar[tuple[type[Reasoning], ...]] = (ThinkingSpeed,)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """Explicit chains, then compressed ones."""
        stage = {"name": "colar", "start": "cot", "objective": {"kind": "colar"}, "epochs": 5}
        return {"colar": [COT, stage]} if facts.steps else {}

    def model_class(self) -> type[ColarForCausalLM]:
        return Colar.model_class()
