"""The main job in one call: train every seed, measure, write results and page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unspoken import distributed
from unspoken.backbone.folder import read_manifest
from unspoken.draw.table import write_line
from unspoken.evaluation.results import RESULTS, read_results
from unspoken.evaluation.seeds import SeedModels
from unspoken.methods.reasoning import Reasoning
from unspoken.probes.catalogue import default_probes
from unspoken.probes.evaluate import EvaluationSettings, evaluate
from unspoken.probes.probe import Probe
from unspoken.provenance import made
from unspoken.report.page import PAGE, write_page
from unspoken.storage import read_text, write_json
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training.lock import run_lock
from unspoken.training.recipe import Recipe, Stage, parse
from unspoken.training.run import device_for_all, memory_to_measure, seed_runs, train
from unspoken.training.settings import as_mapping
from unspoken.training.stages import SeedRun, require_same_data


def measured_stages(recipe: Recipe) -> list[str]:
    """The stages that a recipe is about: those that no other stage starts from, and what else their objective adds.

    Of running text every stage is, since each can be asked for the next token. What has learned problems of its own is
    not, where another stage starts from it.
    """
    starts, traits = {stage.start for stage in recipe.stages}, recipe.task.traits

    def measured(stage: Stage) -> bool:
        last = stage.name not in starts
        return (last or stage.task is None) and stage.objective.measured(last=last, has_chain=traits.has_chain)

    return [stage.name for stage in recipe.stages if traits.continues or measured(stage)]


def models_of(run: SeedRun, reasonings: Sequence[Reasoning] = ()) -> SeedModels:
    """The finished folders of one seed.

    Args:
        reasonings: ways in which models answer besides, each of every measured stage that it suits.

    Raises:
        ValueError: a stage is not finished; the message names it.
    """
    for stage in run.recipe.stages:
        if not run.finished(stage):
            raise ValueError(f"{run.folder}: stage {stage.name!r} is not finished; run the recipe again to continue it")
    measured = measured_stages(run.recipe)
    return SeedModels(
        seed=run.seed,
        measured={name: run.model_folder(name) for name in measured},
        stages={stage.name: run.model_folder(stage.name) for stage in run.recipe.stages},
        teachers={
            name: run.model_folder(teacher.name)
            for name in measured
            if (teacher := run.recipe.stage(name).objective.teacher(run.recipe.lineage(run.recipe.stage(name))))
            is not None
        },
        reasonings={
            name: tuple(
                way for way in reasonings if way.suits(run.recipe.stage(name).objective, run.recipe.task.traits)
            )
            for name in measured
        },
        device=run.device,
    )


def open_run(folder: Path, device: str | torch.device = "auto") -> tuple[Recipe, list[SeedRun]]:
    """The recipe and the finished seeds of a run folder.

    Args:
        device: where they are measured; see `unspoken.training.run.device_for_all`.

    Raises:
        ValueError: it is not a run folder, no seed is finished, there is no such device, or its files hold other rows
            than it was trained on.
    """
    path = folder / "recipe.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a run folder: it has no recipe.json; give the folder that 'unspoken run' named"
        )
    recipe = parse(read_text(path), str(path))
    count = len(list(folder.glob("seed-*")))
    every = seed_runs(recipe, folder, count, device_for_all(device))
    runs = [run for run in every if all(run.finished(stage) for stage in recipe.stages)]
    if not runs:
        raise ValueError(f"{folder}: no seed is finished; run the recipe again to continue it")
    require_same_data(folder, recipe)
    return recipe, runs


def measure_run(
    recipe: Recipe,
    runs: list[SeedRun],
    *,
    command: str,
    log: Callable[[str], None],
    optional: Sequence[Probe] = (),
    reasonings: Sequence[Reasoning] = (),
) -> dict[str, Any]:
    """Evaluate finished seeds and write ``results.json`` beside them.

    Of several ranks, each answers a part of the batches and has all results; rank 0 takes times and writes.

    Args:
        command: how all of it can be made again; one a line.
        optional: probes that are measured beside those that always are.
        reasonings: ways to reason that are measured beside those of the recipe.

    Raises:
        ValueError: a way to reason suits no measured stage, an optional probe has nothing to measure in this run, the
            folder is in use by another run, or there is too little memory.
    """
    distributed.init_distributed()
    folder, task = runs[0].folder.parent, recipe.task.build()
    settings = EvaluationSettings(
        task=task,
        prompt_format=PromptFormat(tokenizer=recipe.tokenizer()),
        problems=recipe.evaluation.problems,
        batch_size=recipe.evaluation.batch_size,
        max_answer=recipe.evaluation.max_answer,
        sampling=recipe.evaluation.sampling,
        baseline=_baseline(recipe),
    )
    ways = (*recipe.evaluation.reasonings, *(way for way in reasonings if way not in recipe.evaluation.reasonings))
    models = [models_of(run, ways) for run in runs]
    for way in ways:
        if not any(way in some for some in models[0].reasonings.values()):
            raise ValueError(f"{way.title} suits no measured stage of {recipe.name}; leave it out")
    with run_lock(folder), memory_to_measure(recipe):
        measured = evaluate(models, settings, [*default_probes(), *optional], log=log)
        for probe in optional:
            if probe.key not in measured["probes"]:
                raise ValueError(f"the probe {probe.key!r} has nothing to measure in {recipe.name}; leave it out")
        facts = {"name": recipe.name, "size": recipe.size, "command": command, "recipe": as_mapping(recipe)}
        manifest = read_manifest(models[0].stages[recipe.stages[0].name])
        rows = {key: manifest[key] for key in ("splits", "dropped", "overlap") if manifest.get(key) is not None}
        results = facts | {"made": made(runs[0].device)} | measured | rows
        distributed.run_on_main(lambda: write_json(folder / RESULTS, results))
    return results


def _baseline(recipe: Recipe) -> str | None:
    """The measured stage whose chain is made of tokens, which the others are compared with.

    Of several it is the one that was given as many further steps as the methods that it is compared with.
    """
    measured = [recipe.stage(name) for name in measured_stages(recipe)]
    explicit = [stage for stage in measured if stage.objective.writes_tokens and not recipe.task.traits.continues]
    explicit.sort(key=lambda stage: not (stage.start and stage.steps_of))
    return explicit[0].name if explicit else None


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

    distributed.init_distributed()
    with run_lock(output):
        runs = train(recipe, output, seeds=seeds, report_to=report_to, console=console, device=device)
        results = measure_run(runs[0].recipe, runs, command=command, log=lambda text: write_line(text, console, "dim"))
        distributed.run_on_main(lambda: write_page([results], output / PAGE))
    return results


def measure_again(
    folder: Path,
    *,
    console: Console,
    command: str,
    device: str | torch.device = "auto",
    optional: Sequence[Probe] = (),
    reasonings: Sequence[Reasoning] = (),
) -> dict[str, Any]:
    """Measure the finished seeds of a run folder, and write results and page; arguments are those of `measure_run`.

    The command that results record stays the one that trained; this one is added where it asks for more.

    Raises:
        ValueError: as `open_run` and `measure_run`.
    """
    recipe, runs = open_run(folder, device)
    with run_lock(folder):
        trained = _recorded_command(folder)
        commands = [trained, command if optional or reasonings or not trained else ""]
        results = measure_run(
            recipe,
            runs,
            command="\n".join(filter(None, commands)),
            log=lambda text: write_line(text, console, "dim"),
            optional=optional,
            reasonings=reasonings,
        )
        distributed.run_on_main(lambda: write_page([results], folder / PAGE))
    return results


def _recorded_command(folder: Path) -> str:
    """The command that made a run, as its results have it; empty where they have none or cannot be read."""
    try:
        return str(read_results(folder)["command"]).partition("\n")[0]
    except (ValueError, OSError, KeyError):
        return ""
