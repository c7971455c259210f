"""One call from recipe to trained seeds; safe to stop and to call again."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from unspoken.training.progress import StageProgress
from unspoken.training.recipe import Recipe
from unspoken.training.stages import SeedRun, claim, train_stage
from unspoken.training.words import base_config


def seed_runs(recipe: Recipe, output: Path, seeds: int) -> list[SeedRun]:
    """Where seeds 0 to ``seeds - 1`` live."""
    return [SeedRun(recipe=recipe, folder=output / f"seed-{seed}", seed=seed) for seed in range(seeds)]


def train(
    recipe: Recipe, output: Path, *, seeds: int, report_to: list[str], console: Console, only: str | None = None
) -> list[SeedRun]:
    """Train every stage of every seed that is not finished yet.

    Args:
        output: the run folder; made if it does not exist, bound to this recipe.
        seeds: how many, one after another, from 0.
        report_to: loggers, by the names of the transformers integrations.
        only: train this stage alone; the stages it starts from must be finished.

    Raises:
        ValueError: the folder belongs to another recipe, a stage is missing, a file was damaged, or the pretrained
            backbone cannot be had or has fewer blocks than the recipe wants.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if isinstance(recipe.backbone, str):
        base_config(recipe)  # what is wrong with it is said before anything is trained
    claim(output, recipe)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    stages = recipe.stages if only is None else (recipe.stage(only),)
    runs = seed_runs(recipe, output, seeds)
    for run in runs:
        for stage in stages:
            bar = StageProgress(console, f"seed {run.seed}  {stage.name}")
            train_stage(run, stage, report_to=report_to, callbacks=[bar])
    return runs
