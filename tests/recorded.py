"""What the stages of shipped recipes read and take, compared with what was recorded.

A batch is a pure function of recipe, seed and indices. Whoever changes what a stage reads of a problem, or draws at
random for it, changes what committed results were trained on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from unspoken.methods.catalogue import trainable
from unspoken.methods.defaults import TrainingFacts
from unspoken.training import recipe as recipes
from unspoken.training.context import context_of
from unspoken.training.plan import plan
from unspoken.training.recorded_plans import recorded_plan

STAGES = Path(__file__).parent / "recorded_stages.json"
# Problems with chains of some steps, of one, and of none, and models of two sizes.
FACTS = {
    "several steps": TrainingFacts(rows=7000, steps=4, chain=50, width=1024, heads=8, batch_size=32),
    "one step": TrainingFacts(rows=40, steps=1, chain=6, width=64, heads=4, batch_size=8),
    "no steps": TrainingFacts(rows=40, steps=0, chain=0, width=64, heads=4, batch_size=8),
}


def digest(content: Any) -> str:
    """Twelve letters that stand for plain values, tensors and dataclasses; floats count to six digits."""
    return hashlib.sha256(repr(_plain(content)).encode()).hexdigest()[:12]


def _plain(content: Any) -> Any:
    if isinstance(content, Tensor):
        return _plain(content.tolist())
    if is_dataclass(content) and not isinstance(content, type):
        return _plain(asdict(content))
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in sorted(content.items())}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return float(f"{content:.6g}") if isinstance(content, float) else content


def batch_digest(recipe: str, stage: str, *overrides: str, size: str = "tiny") -> str:
    """Of the first training problems, for two seeds, and of the first validation problems."""
    loaded = recipes.load(recipe, size, overrides)
    one = loaded.stage(stage)
    batches = []
    for seed, split in ((0, "train"), (1, "train"), (0, "validation")):
        batches.append(one.objective.collate(context_of(loaded, one, seed=seed), split)(np.arange(6)))
    return digest(batches)


def check_plans(*names: str) -> None:
    """The plans of recipes, given as "name size", are those that are shipped with them: sizes, memory, operations."""
    for name in names:
        recipe = recipes.load(*name.split())
        assert _plain(recorded_plan(recipe)) == _approximate(_plain(plan(recipe))), name


def _approximate(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _approximate(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_approximate(value) for value in content]
    return pytest.approx(content, rel=1e-4) if isinstance(content, float) else content


def check_default_stages(*names: str) -> None:
    """What ``unspoken train NAME`` trains on one's own problems is what it trained when runs were recorded."""
    recorded = json.loads(STAGES.read_text())
    for name in names:
        for title, facts in FACTS.items():
            assert json.loads(json.dumps(trainable(facts).get(name))) == recorded[title].get(name), (name, title)
