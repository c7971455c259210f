"""What methods choose their default stages by, and the stage from which most of them start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_FEWEST_STEPS = 20  # of an epoch

# A stage that tunes a model on explicit chains, from which most methods start.
COT: dict[str, Any] = {"name": "cot", "objective": {"kind": "next_token", "positions": "answer"}, "epochs": 3}


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What is known of a model and of the problems that it is to learn, when the stages of a method are chosen.

    Attributes:
        rows: training problems.
        steps: of the longest explicit chain but for one in twenty; 0 where problems have none.
        chain: tokens of that chain.
        width, heads: of the model.
        batch_size: problems that a training step reads.
    """

    rows: int
    steps: int
    chain: int
    width: int
    heads: int
    batch_size: int

    def optimizer_steps(self, epochs: float) -> int:
        """Training steps of so many epochs; an epoch has at least twenty, since few problems must be read often."""
        return max(math.ceil(epochs * self.rows / self.batch_size), math.ceil(_FEWEST_STEPS * epochs))


def distilled(facts: TrainingFacts, objective: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """One stage of self-distillation, from the model itself. Without its last step a chain of one step is empty."""
    kind = objective["kind"]
    stage = {"name": kind, "objective": {**objective, "last_step": facts.steps == 1}, "epochs": 8}
    return {kind: [stage]} if facts.steps else {}


def on_codi(facts: TrainingFacts, kind: str) -> dict[str, list[dict[str, Any]]]:
    """One stage of CODI with the loss of another kind of stage added, see `unspoken.methods.carrier`."""
    stages = distilled(facts, {"kind": "codi"}).get("codi", [])
    added = [{**one, "name": kind, "objective": {"kind": kind, "carrier": one["objective"]}} for one in stages]
    return {kind: added} if added else {}
