"""What a recipe leaves to the machine (``auto``), decided once for a run and kept by it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unspoken.machine import Choice, choose_attention, choose_precision, much_slower, rates_in_words
from unspoken.storage import read_json
from unspoken.training.recipe import Recipe

RECIPE = "recipe.json"


def resolve(
    recipe: Recipe, folder: Path, device: torch.device, row_length: Callable[[], int]
) -> tuple[Recipe, dict[str, str]]:
    """Decide what the recipe leaves to the machine: as the run folder recorded it, or else by measurement.

    An explicit precision that is ten times slower here than the other one draws a warning.

    Args:
        folder: of the run. A run that began elsewhere keeps its precision and attention here.
        device: that trains.
        row_length: gives the tokens of a typical training row; called only if the choice depends on it.

    Returns:
        The recipe without ``auto``, and the reason for each key that was ``auto``.

    Raises:
        ValueError: the recipe asks for an attention that cannot train on the device.
    """
    if recipe.attention == "flex_attention" and device.type != "cuda":
        raise ValueError(
            f"attention is 'flex_attention', which torch can train on CUDA alone, not on {device.type}; leave the key "
            "out, or set it to 'sdpa'"
        )
    began_with, reasons = _recorded(folder), {}
    if recipe.precision != "auto" and much_slower(recipe.precision, device):
        warnings.warn(
            f"precision is {recipe.precision!r}, but matrix products in it run at less than a tenth of the speed of "
            f"the other precision here ({rates_in_words(device)}); leave the key out, or set it to 'auto'",
            stacklevel=2,
        )
    for key in ("precision", "attention"):
        if getattr(recipe, key) != "auto":
            continue
        if began_with.get(key, "auto") != "auto":
            choice = Choice(value=began_with[key], reason=f"recorded when {folder} was started")
        elif key == "precision":
            choice = choose_precision(device)
        else:
            assert recipe.precision != "auto"
            matters = device.type == "cpu" and recipe.precision == "bf16"
            choice = choose_attention(recipe.precision, device, row_length() if matters else 0)
        value: Any = choice.value
        recipe = replace(recipe, **{key: value})
        reasons[key] = choice.reason
    return recipe, reasons


def _recorded(folder: Path) -> dict[str, Any]:
    try:
        content = read_json(folder / RECIPE)
    except (OSError, ValueError):
        return {}  # a new run; `claim` refuses a damaged file
    return content if isinstance(content, dict) else {}


def widest(batch: Any) -> int:
    """Tokens of the longest row in a training batch."""
    if isinstance(batch, dict):
        return max(widest(value) for value in batch.values())
    ids = getattr(batch, "ids", batch)
    return int(ids.shape[1]) if isinstance(ids, Tensor) and ids.dim() == 2 else 0
