"""JEPA-Reasoner as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.defaults import COT, TrainingFacts
from unspoken.methods.jepa_reasoner.stages import SST, TalkerLoss
from unspoken.methods.lazy import LazyModule
from unspoken.methods.method import Method, Objective

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from unspoken.methods.jepa_reasoner import systems
    from unspoken.reasoning.system import System
else:
    systems = LazyModule("unspoken.methods.jepa_reasoner.systems")


class JepaReasonerMethod(Method):
    """See `unspoken.methods.jepa_reasoner`."""

    name: ClassVar[str] = "jepa_reasoner"
    objectives: ClassVar[tuple[type[Objective], ...]] = (SST, TalkerLoss)
    untrained: ClassVar[Objective | None] = SST()

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """Explicit chains, the Reasoner, and a Talker of four blocks as wide as the model."""
        shape = {"attention_size": facts.width, "intermediate_size": 4 * facts.width, "layers": 4, "heads": facts.heads}
        talker = {
            "name": "talker",
            "start": "sst",
            "objective": {"kind": "talker"},
            "talker": shape,
            "epochs": 3,
            "lora": None,
            "optimizer": {"name": "adamw", "lr": 0.001, "lr_rest": None, "weight_decay": 0.01},
        }
        sst = {"name": "sst", "start": "cot", "objective": {"kind": "sst"}, "epochs": 3}
        return {"jepa_reasoner": [COT, sst, talker]}

    def register(self) -> None:
        """Reasoner and pair."""
        import unspoken.methods.jepa_reasoner.pair  # noqa: F401

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        return systems.systems(model, stage=stage)

    def require_answering(self, model: PreTrainedModel, source: str | Path) -> None:
        systems.require_answering(model)
