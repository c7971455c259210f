"""Plans of the shipped recipes, computed beforehand: reading one needs no torch, whose import alone takes seconds.

`tests/golden/plans.py` records them, and a test compares each with what `unspoken.training.plan.plan` computes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from unspoken.training.recipe import Recipe, load, shipped

PLANS = resources.files("unspoken.recipes") / "plans.json"
_START = ("tree-search", "tiny")
_CPU_SPEED = 6e10  # FLOP/s of training on each of two cores that multiply float32 at 150 GFLOP/s together
_CORES = 2
_MEASURING = 53.0  # seconds that loading and measuring take beside training, of the smallest recipe
_LONGEST_ON_CPU = 12 * 3600  # seconds


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A shipped recipe as a list shows it."""

    name: str
    size: str
    summary: str
    task: str  # what its problems are
    hardware: str
    seconds: float  # that a seed takes on it, by the operations of its plan; measured times differ
    start_here: bool


def offers() -> list[Offer]:
    """Every shipped recipe, those of one task together, the one to start with first."""
    plans, listed = json.loads(PLANS.read_text()), []
    for name, size, summary in shipped():
        models, recipe = plans[f"{name} {size}"]["models"], load(name, size)
        cores = min(recipe.threads or _CORES, _CORES)
        on_cpu = _MEASURING + sum(model["flops"] for model in models) / (cores * _CPU_SPEED)
        on_gpu = 3600 * sum(model["hours"]["1"] or 0.0 for model in models)
        small = on_cpu <= _LONGEST_ON_CPU
        listed.append(
            Offer(
                name=name,
                size=size,
                summary=summary,
                task=recipe.task.kind.replace("_", " "),
                hardware=f"{cores} CPU core{'s' * (cores > 1)}" if small else "1 GPU",
                seconds=on_cpu if small else on_gpu,
                start_here=(name, size) == _START,
            )
        )
    first = next(offer.task for offer in listed if offer.start_here)
    return sorted(listed, key=lambda offer: (offer.task != first, offer.task, not offer.start_here))


def recorded_plan(recipe: Recipe) -> dict[str, Any] | None:
    """The plan of a shipped recipe, as `unspoken.training.plan.plan` returns it; None if a key of it was changed."""
    if (recipe.name, recipe.size) not in {(name, size) for name, size, _ in shipped()}:
        return None
    if recipe != load(recipe.name, recipe.size):
        return None
    if isinstance(recipe.backbone, str) and Path(recipe.backbone).is_dir():
        return None  # what is there is looked at
    plan: dict[str, Any] = json.loads(PLANS.read_text())[f"{recipe.name} {recipe.size}"]
    return plan
