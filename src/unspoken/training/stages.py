"""Runs the stages of a recipe, one folder a stage, and skips what is finished."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from unspoken import distributed
from unspoken.backbone.folder import MANIFEST, clear, read_manifest, remove, verify
from unspoken.methods.method import Context, Indices
from unspoken.placement import CPU
from unspoken.provenance import processor
from unspoken.storage import MODEL, make_folder, one_line_error, read_json, write_json
from unspoken.tasks.chat_template import DATE, prints_date
from unspoken.tasks.dataset import GeneratedDataset, by_length
from unspoken.tasks.overlap import seen_in_training
from unspoken.tasks.task import TaskConfig
from unspoken.training.backbones import fitting
from unspoken.training.context import build, context_of, load_start
from unspoken.training.limits import explain_io_error
from unspoken.training.problem_checks import answered_splits, require_room
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.resolve import RECIPE, resolve, widest
from unspoken.training.settings import as_mapping, read
from unspoken.training.validation import validator_of

if TYPE_CHECKING:
    from transformers import TrainerCallback


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """Where one seed of a recipe lives."""

    recipe: Recipe
    folder: Path
    seed: int
    device: torch.device = CPU  # that it is trained and measured on
    reasons: dict[str, str] = field(default_factory=dict)  # why the machine chose the values that the recipe left to it

    def stage_folder(self, stage: Stage) -> Path:
        """Working folder of a stage."""
        return self.folder / stage.name

    def model_folder(self, name: str) -> Path:
        """Published folder of a finished stage."""
        return self.folder / name / MODEL

    def context(self, stage: Stage) -> Context:
        """What a stage is given."""
        return context_of(self.recipe, stage, seed=self.seed, folder=self.folder)

    def finished(self, stage: Stage) -> bool:
        """Whether the stage's folder is published."""
        return self.model_folder(stage.name).is_dir()


@lru_cache(maxsize=4)
def _overlap(config: TaskConfig, data: str) -> dict[str, Any] | None:  # noqa: ARG001
    """Computed once for all stages of a run; ``data`` is the fingerprint, since a file's content may change."""
    task: Any = config.build()
    return seen_in_training(task)


def _machine(run: SeedRun) -> dict[str, Any]:
    """The machine that trained a stage."""
    facts = {"system": platform.system(), "processor": processor(), "threads": torch.get_num_threads()}
    gpu = {"gpu": torch.cuda.get_device_name(run.device)} if run.device.type == "cuda" else {}
    return {**facts, "device": run.device.type, **gpu, "reasons": run.reasons}


def fingerprint(run: SeedRun) -> dict[str, Any]:
    """What every published folder records about its origin.

    Of rows out of files: how many each split has, how many were left out and why, with examples, and the ``overlap`` of
    training and tests.
    """
    recipe, config = run.recipe, run.recipe.task
    task = config.build()
    rows: dict[str, Any] = {}
    if config.traits.from_files:
        overlap = _overlap(config, task.fingerprint)
        rows = {"splits": task.sizes(), "dropped": dict(task.dropped), "overlap": overlap}
        rows["left_out"] = {why: list(examples) for why, examples in task.left_out.items()}
    return {
        "recipe": as_mapping(recipe),
        "seed": run.seed,
        "data": task.fingerprint,
        **rows,
        "versions": {name: version(name) for name in ("unspoken", "torch", "transformers", "numpy")},
        "machine": _machine(run),
    }


def data_of(recipe: Recipe, context: Context) -> GeneratedDataset:
    """A stage's samples, see `Recipe.samples_before`."""
    stage, objective = context.lineage.settings, context.lineage.objective
    first = recipe.samples_before(recipe.stage(stage.name))
    size, order = recipe.steps(recipe.stage(stage.name)) * stage.batch_size, None
    if recipe.group_by_length:
        lengths = row_lengths(context)
        order = by_length(
            lambda positions: lengths(positions + first), size=size, batch_size=stage.batch_size, seed=context.seed
        )
    return GeneratedDataset(make=objective.collate(context), first=first, size=size, order=order)


def row_lengths(context: Context) -> Callable[[Indices], Indices]:
    """Indices of training samples to their lengths as a stage reads them, in tokens.

    Tokens that all rows of a stage have, such as markers and those of a chat template, are not counted.
    """
    objective = context.lineage.objective

    def measure(indices: Indices) -> Indices:
        problems = context.sample(objective.rows_of(indices, context))
        if not context.has_chain:
            return context.task.rows(problems)["attention_mask"].sum(dim=1).numpy()
        spans = context.task.spans(problems, context.prompt_format)
        return np.array([objective.row_length(row, context) for row in spans])

    return measure


def train_stage(run: SeedRun, stage: Stage, *, report_to: list[str], callbacks: list[TrainerCallback]) -> Path:
    """Train one stage, or return its folder if it is finished.

    Raises:
        ValueError: the stage it starts from is missing or damaged, its own checkpoint is damaged, or as
            `StageTrainer.run`.
        OSError: the disk is full.
    """
    run = settled(run)
    final = run.model_folder(stage.name)
    if distributed.run_on_main(lambda: _already(run, stage)):
        return final
    folder = run.stage_folder(stage)
    start, history = None, []
    if stage.start is not None:
        origin = run.model_folder(stage.start)
        if not origin.is_dir():
            raise ValueError(
                f"stage {stage.name!r} starts from {stage.start!r}, which has no finished folder at {origin}; "
                f"train {stage.start!r} first"
            )
        manifest = verify(origin)
        with one_line_error(f"{origin / MANIFEST} does not say how it was trained", f"train {stage.start!r} again"):
            history = [*manifest["stages"], {"name": stage.start, "step": manifest["step"]}]
        start = origin
    context = run.context(stage)
    facts = {**fingerprint(run), "stage": stage.name, "stages": history}
    if prints_date(context.tokenizer.chat_template):
        facts["prompt_date"] = DATE
    make_folder(run.folder.parent, folder)
    if stage.objective.writes_data:
        assert start is not None
        with explain_io_error(final, SafetensorError):
            return stage.objective.write(
                load_start(run.recipe, start), context, folder, device=run.device, manifest=facts
            )
    from unspoken.training.trainer import StageTrainer  # seconds, for it imports pandas; who only answers does without

    # The starting weights of a stage do not depend on what ran before it in this process.
    torch.manual_seed(run.seed * 1000 + run.recipe.stages.index(stage))
    model = build(run.recipe, context, start)
    data = fitting(data_of(run.recipe, context), model)
    require_room(model, context, data, answered_splits(run.recipe))
    trainer = StageTrainer(
        recipe=run.recipe,
        stage=stage,
        model=model,
        tokenizer=context.tokenizer,
        data=data,
        folder=folder,
        seed=run.seed,
        device=run.device,
        validator=validator_of(context, run.recipe.evaluation.validation_problems),
        manifest=facts,
        report_to=report_to,
        callbacks=callbacks,
    )
    return trainer.run()


def settled(run: SeedRun) -> SeedRun:
    """The same run with everything decided that its recipe leaves to the machine."""
    recipe, folder = run.recipe, run.folder.parent
    first = recipe.stages[0]

    def row_length() -> int:
        return widest(data_of(recipe, run.context(first)).make(np.arange(first.batch_size)))

    settled_recipe, reasons = distributed.run_on_main(lambda: resolve(recipe, folder, run.device, row_length))
    return replace(run, recipe=settled_recipe, reasons={**run.reasons, **reasons})


def _already(run: SeedRun, stage: Stage) -> bool:
    """Whether the stage is finished; its files are verified."""
    if not run.finished(stage):
        return False
    verify(run.model_folder(stage.name))
    # After a kill just after publishing, checkpoints or copied labels are still there.
    clear(run.stage_folder(stage))
    for leftover in stage.objective.leftovers(run.stage_folder(stage)):
        if leftover.is_dir():
            remove(leftover)
    return True


def _trains(content: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe that decide the weights, among them the validation problems that select checkpoints.

    Micro-batches may change, as the number of ranks may: a run goes on with others, up to the rounding of sums.
    """
    evaluation = {"validation_problems": content["evaluation"]["validation_problems"]}
    stages = [{**stage, "accumulate": None} for stage in content["stages"]]
    return {**content, "stages": stages, "evaluation": evaluation, "summary": ""}


def _has_weights(folder: Path) -> bool:
    """Whether a seed of the run has a finished stage or a checkpoint."""
    return any(any(folder.glob(f"seed-*/*/{name}")) for name in (MODEL, "best-*", "checkpoint-*"))


def require_same_data(folder: Path, recipe: Recipe) -> None:
    """Refuse a run whose files hold other rows than those that its stages and checkpoints have read.

    Raises:
        ValueError: names one of them; or its manifest is damaged.
    """
    if not recipe.task.traits.from_files:
        return
    now = recipe.task.build().fingerprint
    for manifest in sorted(folder.glob(f"seed-*/*/*/{MANIFEST}")):
        before = read_manifest(manifest.parent).get("data", now)
        if before != now:
            raise ValueError(
                f"{manifest.parent} was trained on other rows than the files of the task hold now (fingerprint "
                f"{before}, now {now}); put the files back as they were, or choose another --output"
            )


def claim(folder: Path, recipe: Recipe) -> None:
    """Bind a run folder to a recipe, so that a resumed run cannot mix two; one in which nothing was trained is free.

    Raises:
        ValueError: the folder belongs to a recipe that trains something else, or as `require_same_data`.
    """
    path = folder / RECIPE
    content = as_mapping(recipe)
    if path.is_file() and _has_weights(folder):
        try:
            # Read as a recipe, so that a key which is newer than the folder has its default there.
            before = as_mapping(read(Recipe, read_json(path)))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; remove {folder} and train again") from None
        changed = [key for key in content if _trains(before).get(key) != _trains(content).get(key)]
        if changed:
            raise ValueError(
                f"{folder} was started with another recipe (they differ in {', '.join(changed)}); "
                "choose another --output or remove that folder"
            )
        require_same_data(folder, recipe)
    write_json(path, content)
