"""Coconut as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.defaults import COT, TrainingFacts
from unspoken.methods.method import Method, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class CoconutMethod(Method):
    """See `unspoken.methods.coconut`."""

    name: ClassVar[str] = "coconut"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Coconut,)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """Explicit chains, then one step more replaced in each stage, three at most, then no explicit step left."""
        if not facts.steps:
            return {}
        stages, replaced = [COT], min(facts.steps, 3)
        for number in range(1, replaced):
            stages.append(
                {
                    "name": f"coconut_{number}",
                    "start": stages[-1]["name"],
                    "objective": {"kind": "coconut", "replaced": number},
                    "epochs": 1,
                }
            )
        last = {"kind": "coconut", "replaced": replaced, "rest": "none"}
        stages.append({"name": "coconut", "start": stages[-1]["name"], "objective": last, "epochs": 3})
        return {"coconut": stages}

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        from unspoken.methods.coconut.systems import systems

        return systems(model, stage=stage, max_answer=max_answer)
