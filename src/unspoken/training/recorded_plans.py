"""Plans of the shipped recipes, computed beforehand: reading one needs no torch, whose import alone takes seconds.

`tests/golden/plans.py` records them, and a test compares each with what `unspoken.training.plan.plan` computes.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from unspoken.training.recipe import Recipe, load, shipped

PLANS = resources.files("unspoken.recipes") / "plans.json"


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
