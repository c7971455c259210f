"""What a notebook calls, and what the command line calls too: one function for each job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.runs import open_system as load

if TYPE_CHECKING:
    import torch

    from unspoken.reasoning.system import System
    from unspoken.training.recipe import Recipe

__all__ = ["convert", "load", "new_recipe", "train"]


def train(
    method: str,
    *,
    model: str | Path,
    data: str | Path | Mapping[str, Any],
    output: str | Path,
    grader: str | Callable[..., bool] | None = None,
    seeds: int = 1,
    device: str | torch.device = "auto",
    report_to: Sequence[str] = (),
    quiet: bool = False,
    **overrides: Any,
) -> System:
    """Train a method on problems of one's own; the same call goes on after an interruption.

    Stages, steps and lengths are chosen by the method and the data; ``output`` holds them as ``recipe.json``.

    Args:
        method: "cot", "answer-only", "latent-sft", "jepa-reasoner", "coconut", "codi", or another package's.
        model: the folder of a pretrained model, or its name on the hub.
        data: a file of problems with ``question``, ``answer`` and ``steps`` or ``cot``, of which some are held out; or
            the ``task`` of a recipe.
        output: the run folder.
        grader: of a file: how answers are compared, as the key of `unspoken.tasks.jsonl.JsonlConfig`, or a function of
            (answer, problem) at the top of a module; the run records its name.
        seeds: how many runs, one after another.
        device: see `unspoken.machine.resolve_device`.
        report_to: loggers, by the names of the transformers integrations.
        quiet: print no progress.
        overrides: keys of the recipe: ``precision="fp32"``, ``evaluation={"problems": 100}``, or, with dots,
            ``**{"stages.cot.steps": 100}``. A key of a stage, such as ``steps=100`` or ``batch_size=4``, means every
            stage that has it.

    Returns:
        The first seed as it answers, see `load`.

    Raises:
        ValueError: as `unspoken.training.own_data.own_recipe` and `unspoken.training.run.train`.
        OSError: the disk is full.
    """
    from rich.console import Console

    from unspoken.training.run import train as train_seeds

    recipe = _own_recipe(method, model, data, grader, overrides)
    console = Console(quiet=quiet, stderr=True)
    train_seeds(recipe, Path(output), seeds=seeds, report_to=[*report_to], console=console, device=device)
    return load(output, device=device)


def new_recipe(
    method: str,
    *,
    model: str | Path,
    data: str | Path | Mapping[str, Any],
    output: str | Path | None = None,
    grader: str | Callable[..., bool] | None = None,
    **overrides: Any,
) -> Path:
    """Write the recipe that `train` would use, to be changed by hand and then run: ``unspoken run FILE``.

    ``method``, ``model``, ``data``, ``grader`` and ``overrides`` are those of `train`.

    Args:
        output: the file; ``METHOD.yaml`` in the current folder by default.

    Returns:
        The file.

    Raises:
        ValueError: as `unspoken.training.own_data.own_recipe`, or the file exists.
    """
    from unspoken.training.own_data import write_recipe

    recipe = _own_recipe(method, model, data, grader, overrides)
    return write_recipe(recipe, Path(f"{recipe.name}.yaml" if output is None else output))


def _own_recipe(
    method: str, model: str | Path, data: Any, grader: str | Callable[..., bool] | None, overrides: dict[str, Any]
) -> Recipe:
    """The recipe by which a model learns a method from one's own problems."""
    from unspoken.tasks.grading import name_of
    from unspoken.training.own_data import as_overrides, own_recipe

    if grader is not None:
        overrides["task.grader"] = name_of(grader) if callable(grader) else grader
    return own_recipe(method, model, data, as_overrides(overrides))


def convert(
    model: str | Path,
    to: str = "jepa_reasoner",
    output: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
) -> System:
    """A pretrained model as one of another method, with its weights and without any training.

    Args:
        model: the folder of a causal language model, or its name on the hub.
        to: "jepa_reasoner" or "codi", or another package's method.
        output: where the model is saved; None keeps it in memory alone.
        device: see `unspoken.machine.resolve_device`.

    Raises:
        ValueError: as `unspoken.training.conversion.converted`, or there is something at ``output`` already.
    """
    from unspoken.machine import resolve_device
    from unspoken.methods import catalogue
    from unspoken.tasks.prompt_format import TextFormat
    from unspoken.training.conversion import converted, save_converted

    made, prompt_format = converted(model, to)
    if output is not None:
        save_converted(made, prompt_format, model, Path(output))
        return load(output, device=device)
    placed: Any = made.to(resolve_device(device))
    system = catalogue.systems(placed, stage=to, max_answer=256)[0]
    return replace(system, text_format=TextFormat(prompt_format=prompt_format))
