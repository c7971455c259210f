"""The smallest recipe that trains every kind of stage; it takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save
from transformers import PreTrainedModel, TrainerCallback

from unspoken.backbone.folder import MANIFEST, verify
from unspoken.methods.method import Batch, Indices
from unspoken.placement import CPU
from unspoken.training.context import build, context_of
from unspoken.training.recipe import Recipe, parse
from unspoken.training.run import train
from unspoken.training.stages import SeedRun, train_stage

TEXT = """
name: smallest
size: tiny
precision: bf16
attention: eager
task: {kind: tree_search, depth: 3}
backbone: {hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
talker: {attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
stages:
  - name: pretrain
    objective: {kind: next_token}
    steps: 6
    batch_size: 8
    evaluate_every: 2
    optimizer: {warmup_steps: 0}
  - name: sst
    start: pretrain
    objective: {kind: sst}
    steps: 6
    batch_size: 8
    evaluate_every: 2
    optimizer: {warmup_steps: 0}
  - name: talker
    start: sst
    objective: {kind: talker}
    steps: 4
    batch_size: 8
    evaluate_every: 2
    optimizer: {warmup_steps: 0}
evaluation: {problems: 10, validation_problems: 10, batch_size: 10}
"""


def tiny_recipe(*overrides: str) -> Recipe:
    """The smallest recipe, changed by dotted overrides."""
    return parse(TEXT, "tiny_recipe", overrides)


def one_stage(*overrides: str) -> Recipe:
    """The pretraining stage alone."""
    before, after = TEXT.index("  - name: sst"), TEXT.index("evaluation: {problems")
    return parse(TEXT[:before] + TEXT[after:], "one_stage", overrides)


def built(recipe: Recipe, name: str, start: Path | None = None) -> PreTrainedModel:
    """A stage's model with its starting weights; ``start`` is the folder of the model that it continues from."""
    return build(recipe, context_of(recipe, recipe.stage(name)), start)


def collated(recipe: Recipe, name: str, folder: Path | None = None) -> Callable[[Indices], Batch]:
    """Indices of training samples to a stage's batch; ``folder`` is that of the seed, where the labels lie."""
    stage = recipe.stage(name)
    return stage.objective.collate(context_of(recipe, stage, folder=folder))


def quiet_train(
    recipe: Recipe, output: Path, *, seeds: int = 1, only: str | None = None, device: str | torch.device = "auto"
) -> list[SeedRun]:
    """`train` without loggers and without a word."""
    return train(recipe, output, seeds=seeds, report_to=[], console=Console(quiet=True), only=only, device=device)


def quick_run(output: Path) -> Path:
    """The folder of a finished run of the tiny recipe, two steps a stage."""
    quiet_train(tiny_recipe(*(f"stages.{stage}.steps=2" for stage in ("pretrain", "sst", "talker"))), output)
    return output


def quiet_stage(
    recipe: Recipe,
    output: Path,
    *callbacks: TrainerCallback,
    name: str = "",
    seed: int = 0,
    device: torch.device = CPU,
) -> Path:
    """One stage with callbacks of the test's own: the last of the recipe, if no name is given."""
    stage = recipe.stage(name) if name else recipe.stages[-1]
    run = SeedRun(recipe=recipe, folder=output / f"seed-{seed}", seed=seed, device=device)
    return train_stage(run, stage, report_to=[], callbacks=list(callbacks))


def weights(output: Path) -> dict[str, bytes]:
    """The weight files of all finished stages, and the labels, byte for byte.

    Not the headers of labels: these name their teacher, whose config.json says where it was trained.
    """
    models = {path: path.read_bytes() for path in output.glob("seed-*/*/model/*.safetensors")}
    labels = {path: save(load_file(path)) for path in output.glob("seed-*/*/model/labels/*/*.safetensors")}
    return {str(path.relative_to(output)): content for path, content in sorted((models | labels).items())}


def verify_finished_folders(output: Path) -> int:
    """Check every model and checkpoint that says it is finished; how many there were."""
    kinds = ("checkpoint-*", "best-*", "model")
    manifests = sorted(path for kind in kinds for path in output.glob(f"seed-*/*/{kind}/{MANIFEST}"))
    for manifest in manifests:
        verify(manifest.parent)
    return len(manifests)
