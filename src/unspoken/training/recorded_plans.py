"""Plans of the shipped recipes, computed beforehand: reading one needs no torch, whose import alone takes seconds.

`tests/golden/plans.py` records them, and a test compares each with what `unspoken.training.plan.plan` computes.
"""

from __future__ import annotations

import json
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from unspoken.training.recipe import Recipe
from unspoken.training.settings import as_mapping

PLANS = resources.files("unspoken.recipes") / "plans.json"


def plan_key(recipe: Recipe) -> str:
    """What a recipe's plan is recorded under: a hash of all its keys."""
    return sha256(json.dumps(as_mapping(recipe), sort_keys=True).encode()).hexdigest()[:16]


def recorded_plan(recipe: Recipe) -> dict[str, Any] | None:
    """The plan of a shipped recipe, as `unspoken.training.plan.plan` returns it; None if a key of it was changed."""
    if isinstance(recipe.backbone, str) and Path(recipe.backbone).is_dir():
        return None  # what is there is looked at
    plan: dict[str, Any] | None = json.loads(PLANS.read_text()).get(plan_key(recipe))
    return plan
