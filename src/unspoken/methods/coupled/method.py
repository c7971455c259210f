"""The coupled Transformer as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.defaults import COT, TrainingFacts
from unspoken.methods.method import Method, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class CoupledMethod(Method):
    """See `unspoken.methods.coupled`."""

    name: ClassVar[str] = "coupled"
    objectives: ClassVar[tuple[type[Objective], ...]] = (NextToken,)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """The explicit chain, where there is one, and the answer alone."""
        alone = {
            "name": "answer_only",
            "objective": {"kind": "next_token", "positions": "answer", "chain": "none"},
            "epochs": 3,
        }
        return {"answer_only": [alone], **({"cot": [COT]} if facts.steps else {})}

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        from unspoken.methods.coupled.systems import systems

        return systems(model, stage=stage, max_answer=max_answer, end_id=end_id, pad_id=pad_id)
