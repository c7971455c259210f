"""What a person gives to the command line: recipes, paths and problems."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def chosen_recipe(
    name: str,
    size: str | None,
    overrides: list[str] | None,
    output: str | None,
    model: str | None,
    data: str | None,
    grader: str | None,
) -> tuple[Any, Path]:
    """The recipe that a command means, and its run folder."""
    if model is not None and data is not None and size is not None:
        raise ValueError(f"--size {size} applies to shipped recipes only; leave it out")
    if model is not None and data is not None:
        recipe = recipe_of_method(name, model, data, grader, overrides)
    elif model is not None or data is not None or grader is not None:
        raise ValueError(
            "training a METHOD needs both --model and --data, and --grader is allowed only with them; give both, or "
            "none of the three"
        )
    else:
        from unspoken.training.recipe import load

        recipe = load(name, size, overrides or [])
    return recipe, Path("runs") / f"{recipe.name}-{recipe.size}" if output is None else named_path(output)


def recipe_of_method(method: str, model: str, data: str, grader: str | None, overrides: list[str] | None) -> Any:
    """The recipe by which a method is trained on a person's own problems."""
    from unspoken.training.own_data import own_recipe

    chosen = [] if grader is None else [f"task.grader={grader}"]
    return own_recipe(method, model, data, [*chosen, *(overrides or [])])


def named_path(path: str) -> Path:
    """A path that has a name: nothing would be the current folder."""
    if not path.strip():
        raise ValueError("a path is empty; name a folder or a file, '.' for the current folder")
    return Path(path)


def typed_problems() -> list[str | None]:
    """Problems on standard input, one a line; only line feeds end it, and a byte order mark is left out."""
    if sys.stdin is None:
        raise ValueError("standard input is closed; type the problem as an argument, or send lines")
    lines = sys.stdin.read().removeprefix("\ufeff").split("\n")
    return [line.removesuffix("\r") for line in lines if line.strip()]


def require_options_of(data: str | None, *, of_data: Mapping[str, Any], of_run: Mapping[str, Any]) -> None:
    """Refuse options of ``eval`` that belong to what is not measured.

    Args:
        data: the file of problems; None where a run is measured.
        of_data, of_run: values by the names of the options that belong to either.

    Raises:
        ValueError: one of them is given.
    """
    for name, value in (of_data if data is None else of_run).items():
        if value and data is None:
            raise ValueError(
                f"{name} needs --data; a run is measured on the problems of its recipe, graded as it states"
            )
        if value:
            raise ValueError(f"{name} does not go with --data; measure a run folder")
