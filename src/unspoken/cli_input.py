"""What the verbs of the command line make of their arguments and of standard input."""

from __future__ import annotations

import sys
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
    """The recipe that options name, and its run folder.

    Raises:
        ValueError: there is none, or the options contradict one another.
    """
    if model is not None and data is not None and size is not None:
        raise ValueError(f"--size {size} means nothing beside --model and --data; leave it out")
    if model is not None and data is not None:
        recipe = recipe_of_method(name, model, data, grader, overrides)
    elif model is not None or data is not None or grader is not None:
        raise ValueError(
            "--model and --data go together, with the name of a method, and --grader with them; give both, or none"
        )
    else:
        from unspoken.training.recipe import load

        recipe = load(name, size, overrides or [])
    return recipe, Path("runs") / f"{recipe.name}-{recipe.size}" if output is None else named_path(output)


def recipe_of_method(method: str, model: str, data: str, grader: str | None, overrides: list[str] | None) -> Any:
    """The recipe of a method on problems of one's own; a ValueError as `unspoken.training.own_data.own_recipe`."""
    from unspoken.training.own_data import own_recipe

    chosen = [] if grader is None else [f"task.grader={grader}"]
    return own_recipe(method, model, data, [*chosen, *(overrides or [])])


def named_path(path: str) -> Path:
    """A path that has a name: nothing would be the current folder."""
    if not path.strip():
        raise ValueError("a path is empty; name a folder or a file, '.' for the current folder")
    return Path(path)


def typed_lines() -> list[str | None]:
    """Problems on standard input, one a line."""
    if sys.stdin is None:
        raise ValueError("standard input is closed; type the problem as an argument, or send lines")
    return [line for line in sys.stdin.read().splitlines() if line.strip()]
