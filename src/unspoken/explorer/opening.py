"""What is known of a model before any problem of it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unspoken.explorer.exploring import Explorer
from unspoken.runs import locate
from unspoken.tasks.task import Task

_KINDS = {
    "tokens": "an explicit chain, one token per step",
    "superposition": "mixtures of tokens",
    "hidden": "hidden states",
    "latent": "vectors that are trained",
}


def task_of(source: str | Path, seed: int, stage: str | None) -> Task | None:
    """The task that a model was trained on, for its test problems; None where it records none, or the files are gone.

    Args:
        source, seed, stage: see `unspoken.runs.locate`.

    Raises:
        ValueError: there is no such model.
    """
    recipe, _ = locate(source, seed, stage)
    if recipe is None:
        return None
    try:
        return recipe.task.build()
    except (ValueError, OSError):
        if recipe.task.traits.from_files:
            return None
        raise


def first_contents(explorer: Explorer) -> dict[str, Any]:
    """What a page starts from."""
    system = explorer.system
    return {
        "model": system.name,
        "latents": "directions of table rows" if system.targets is not None else _KINDS[system.chain_kind],
        "weighs": system.silent and (system.mixes_rows or system.targets is not None),
        "mixes": system.mixes_rows,
        "silent": system.silent,
        "numbered": explorer.task is not None,
    }
