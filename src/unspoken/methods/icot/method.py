"""iCoT as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.defaults import COT, TrainingFacts
from unspoken.methods.icot.stages import Icot
from unspoken.methods.method import Method, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unspoken.reasoning.system import System


class IcotMethod(Method):
    """See `unspoken.methods.icot`."""

    name: ClassVar[str] = "icot"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Icot,)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """Explicit chains, then shorter and shorter ones: three quarters of the steps remove one token after another.

        As in the published recipe, what is left after 39 tokens is removed at once.
        """
        if not facts.steps:
            return {}
        epochs = 8
        schedule = 3 * facts.optimizer_steps(epochs) // 4
        tokens = min(facts.chain, 39, schedule)
        objective = {
            "kind": "icot",
            "pretrain_steps": 0,
            "steps_per_token": schedule // tokens,
            "remove_all_beyond": tokens,
            "eos_separators": False,
        }
        return {"icot": [COT, {"name": "icot", "start": "cot", "objective": objective, "epochs": epochs}]}

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """None of its own: a finished model is a plain language model that answers at once, as its folder records."""
        return []
