"""The main job in one call: train every seed, measure, write results and page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unspoken import distributed
from unspoken.backbone.folder import read_manifest
from unspoken.evaluation.geometry import evaluate_geometry
from unspoken.evaluation.measure import evaluate
from unspoken.evaluation.sampling import evaluate_samples
from unspoken.evaluation.seeds import SeedModels
from unspoken.evaluation.strings import evaluate_strings
from unspoken.evaluation.texts import evaluate_texts
from unspoken.evaluation.words import evaluate_words
from unspoken.report.page import write_page
from unspoken.report.results import PAGE, RESULTS
from unspoken.storage import write_json
from unspoken.tasks import GrammarTask, ProseTask, TreeSearchTask
from unspoken.tasks.problems import ReasoningTask
from unspoken.training.lock import run_lock
from unspoken.training.recipe import Recipe, parse
from unspoken.training.run import device_for_all, memory_to_measure, seed_runs, train
from unspoken.training.settings import as_mapping
from unspoken.training.stages import SeedRun

ANALYSES = ("geometry",)


def final_stages(recipe: Recipe) -> list[str]:
    """The stages that a recipe is about: those that no other stage starts from, and what else their objective adds."""
    starts, has_chain = {stage.start for stage in recipe.stages}, recipe.task.traits.has_chain
    return [
        stage.name
        for stage in recipe.stages
        if stage.objective.measured(last=stage.name not in starts, has_chain=has_chain)
    ]


def models_of(run: SeedRun) -> SeedModels:
    """The finished folders of one seed.

    Raises:
        ValueError: a stage is not finished; the message says which.
    """
    for stage in run.recipe.stages:
        if not run.finished(stage):
            raise ValueError(f"{run.folder}: stage {stage.name!r} is not finished; run the recipe again to continue it")
    return SeedModels(
        seed=run.seed,
        final={name: run.model_folder(name) for name in final_stages(run.recipe)},
        stages={stage.name: run.model_folder(stage.name) for stage in run.recipe.stages},
        teachers={
            name: run.model_folder(teacher.name)
            for name in final_stages(run.recipe)
            if (teacher := run.recipe.stage(name).objective.teacher(run.recipe.line(run.recipe.stage(name))))
            is not None
        },
        device=run.device,
    )


def open_run(folder: Path, device: str | torch.device = "auto") -> tuple[Recipe, list[SeedRun]]:
    """The recipe and the finished seeds of a run folder.

    Args:
        device: where they are measured; see `unspoken.training.run.device_for_all`.

    Raises:
        ValueError: it is not a run folder, no seed is finished, or there is no such device.
    """
    path = folder / "recipe.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a run folder: it has no recipe.json; give the folder that 'unspoken run' named"
        )
    recipe = parse(path.read_text(), str(path))
    count = len(list(folder.glob("seed-*")))
    every = seed_runs(recipe, folder, count, device_for_all(device))
    runs = [run for run in every if all(run.finished(stage) for stage in recipe.stages)]
    if not runs:
        raise ValueError(f"{folder}: no seed is finished; run the recipe again to continue it")
    return recipe, runs


def measure_run(
    recipe: Recipe,
    runs: list[SeedRun],
    *,
    command: str,
    say: Callable[[str], None],
    analyses: Sequence[str] = (),
    samples: int = 0,
) -> dict[str, Any]:
    """Evaluate finished seeds and write ``results.json`` beside them.

    Of several ranks, each answers a share of the batches and has all results; rank 0 takes times and writes.

    Args:
        analyses: what else is measured on word problems, out of `ANALYSES`.
        samples: noisy chains for each word problem, for pass@k; 0 draws none.

    Raises:
        ValueError: there is no such analysis, the task is not one of word problems, or the folder is in use by another
            run, or there is too little memory.
    """
    for name in analyses:
        if name not in ANALYSES:
            raise ValueError(f"there is no analysis {name!r}; choose from {', '.join(ANALYSES)}")
    if (analyses or samples) and not recipe.task.traits.has_chain:
        about = recipe.task.kind.replace("_", " ")
        raise ValueError(
            f"--analysis and --samples are for word problems, and this run is about {about}; leave them out"
        )
    distributed.init_distributed()
    folder = runs[0].folder.parent
    with run_lock(folder), memory_to_measure(recipe):
        measured = _measured(recipe, runs, say=say, analyses=analyses, samples=samples)
        facts = {"name": recipe.name, "size": recipe.size, "command": command, "recipe": as_mapping(recipe)}
        results = facts | measured
        distributed.run_on_main(lambda: write_json(folder / RESULTS, results))
    return results


def _measured(
    recipe: Recipe, runs: list[SeedRun], *, say: Callable[[str], None], analyses: Sequence[str], samples: int
) -> dict[str, Any]:
    task, settings, models = recipe.task.build(), recipe.evaluation, [models_of(run) for run in runs]
    if isinstance(task, TreeSearchTask):
        results = evaluate(task, models, problems=settings.problems, batch_size=settings.batch_size, say=say)
    elif isinstance(task, GrammarTask):
        results = evaluate_strings(task, models, problems=settings.problems, batch_size=settings.batch_size, say=say)
    elif isinstance(task, ProseTask):
        results = evaluate_texts(task, models, problems=settings.problems, batch_size=settings.batch_size, say=say)
    else:
        assert isinstance(task, ReasoningTask)
        measured = [recipe.stage(name) for name in final_stages(recipe)]
        explicit = [stage for stage in measured if stage.objective.writes_tokens]
        # Where one of them was given as many further steps as the methods that it is compared with, it is that one.
        explicit.sort(key=lambda stage: not (stage.start and stage.steps_of))
        how: dict[str, Any] = {
            "problems": settings.problems,
            "batch_size": settings.batch_size,
            "max_answer": settings.max_answer,
            "say": say,
        }
        tokenizer = recipe.tokenizer()
        results = evaluate_words(task, tokenizer, models, baseline=explicit[0].name if explicit else None, **how)
        if "geometry" in analyses:
            results["words"]["geometry"] = evaluate_geometry(task, tokenizer, models, **how)
        if samples:
            results["words"]["samples"] = evaluate_samples(task, tokenizer, models, draws=samples, **how)
        if (seen := read_manifest(models[0].stages[recipe.stages[0].name]).get("overlap")) is not None:
            results["overlap"] = seen
    return results


def run_experiment(
    recipe: Recipe,
    output: Path,
    *,
    seeds: int,
    report_to: list[str],
    console: Console,
    command: str,
    device: str | torch.device = "auto",
) -> dict[str, Any]:
    """Train what is missing, measure, and write the page; arguments and errors are those of `train`.

    Calling it again after an interruption continues where it stopped; a finished run is only measured again.
    """

    def say(text: str) -> None:
        if not console.quiet:
            console.print(text, style="dim", highlight=False)

    distributed.init_distributed()
    with run_lock(output):
        runs = train(recipe, output, seeds=seeds, report_to=report_to, console=console, device=device)
        results = measure_run(runs[0].recipe, runs, command=command, say=say)
        distributed.run_on_main(lambda: write_page([results], output / PAGE))
    return results
