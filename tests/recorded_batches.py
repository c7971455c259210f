"""What the stages of shipped recipes read, as digests, which are compared with those of recorded runs.

A batch is a pure function of recipe, seed and indices. Whoever changes what a stage reads of a problem, or draws at
random for it, changes what committed results were trained on.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from unspoken.training import recipe as recipes
from unspoken.training.context import context_of


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
