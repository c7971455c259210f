"""One call from recipe to trained seeds; safe to stop and to call again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch
from rich.console import Console
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import logging as transformers_logging

from unspoken import distributed
from unspoken.draw.table import write_line
from unspoken.machine import resolve_device, usable_threads
from unspoken.placement import CPU
from unspoken.tasks.task import left_out_in_words, rows_in_words
from unspoken.training.context import check_backbone
from unspoken.training.limits import explain_oom
from unspoken.training.lock import run_lock
from unspoken.training.problem_checks import beyond_caps, beyond_positions, require_written_chains
from unspoken.training.progress import Pace, StageProgress
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.settings import nearest
from unspoken.training.stages import SeedRun, claim, settled, train_stage


def seed_runs(recipe: Recipe, output: Path, seeds: int, device: torch.device = CPU) -> list[SeedRun]:
    """Folders and device of seeds 0 to ``seeds - 1``."""
    return [SeedRun(recipe=recipe, folder=output / f"seed-{seed}", seed=seed, device=device) for seed in range(seeds)]


def device_for_all(device: str | torch.device) -> torch.device:
    """The device that this process computes on, see `unspoken.machine.resolve_device`.

    Raises:
        ValueError: there is no such device, or several processes would share one GPU.
    """
    chosen = resolve_device(device)
    own = resolve_device("auto") if distributed.world_size() > 1 else chosen
    if chosen != own:
        ranks = distributed.world_size()
        raise ValueError(
            f"--device {device} applies to all {ranks} processes, but each has its own (here {own}); leave --device out"
        )
    return chosen


def _check_loggers(names: Sequence[str]) -> None:
    for name in names:
        if name not in ("all", "none", *INTEGRATION_TO_CALLBACK):
            known = sorted(get_available_reporting_integrations())
            raise ValueError(f"there is no logger {name!r}; {nearest(name, [*known, 'none'])}")
        if name in INTEGRATION_TO_CALLBACK and name not in get_available_reporting_integrations():
            raise ValueError(f"the logger {name!r} is not installed; install its package, or leave --report-to out")


def _check_ranks(stage: Stage) -> None:
    ranks, accumulate = distributed.world_size(), stage.accumulate
    if stage.batch_size % (ranks * accumulate):
        pieces, keys = f"{ranks} processes", "batch_size"
        if accumulate > 1:
            pieces, keys = f"{pieces} x {accumulate} micro-batches", "batch_size, accumulate"
        raise ValueError(
            f"stages ({stage.name}): batch_size {stage.batch_size} is not divisible by {pieces}; change {keys} or the "
            "number of processes"
        )


def _memory_to_train(recipe: Recipe, stage: Stage) -> AbstractContextManager[None]:
    if stage.objective.writes_data:
        return explain_oom(f"stage {stage.name!r}", "its batch size is fixed; use a machine with more memory")
    can_recompute = not recipe.activation_checkpointing and stage.objective.recomputes
    recompute = "set activation_checkpointing to true" if can_recompute else ""
    rows, key = stage.batch_size // (stage.accumulate * distributed.world_size()), f"stages.{stage.name}"
    fewer = next((number for number in range(2, rows + 1) if rows % number == 0), None)
    if fewer is None:
        recompute = f"{recompute} in a new --output, or " if recompute else ""
        remedy = f"each micro-batch has only one row; {recompute}use a machine with more memory"
    else:
        lower = f"lower {key}.batch_size{' or ' if recompute else ''}{recompute}"
        remedy = (
            f"set {key}.accumulate to {fewer * stage.accumulate} or start more processes (both resume from the last "
            f"checkpoint); or {lower} in a new --output, because a run folder keeps its recipe"
        )
    return explain_oom(
        f"stage {stage.name!r} with batch_size {stage.batch_size} and accumulate {stage.accumulate}", remedy
    )


def memory_to_measure(recipe: Recipe) -> AbstractContextManager[None]:
    """Inside, running out of memory while finished stages are measured ends in a ValueError of one line."""
    size = recipe.evaluation.batch_size
    return explain_oom(
        f"measuring with evaluation.batch_size {size}",
        f"run the recipe again with --set evaluation.batch_size={max(1, size // 4)}, which trains nothing anew",
    )


def _train_in_turn(runs: Sequence[SeedRun], stages: Sequence[Stage], *, report_to: list[str], console: Console) -> None:
    """Train the stages of each seed that are not finished, and show how far all of it is."""
    pace = Pace(
        sum(run.recipe.steps(stage) * stage.batch_size for run in runs for stage in stages if not run.finished(stage))
    )
    for run in runs:
        for number, stage in enumerate(stages, start=1):
            title = f"seed {run.seed}  stage {number} of {len(stages)}: {stage.name}"
            bar = [StageProgress(console, title, pace)] if distributed.is_main_process() else []
            with ExitStack() as ends, _memory_to_train(run.recipe, stage):
                for one in bar:
                    ends.callback(one.bar.stop)  # it hides the cursor
                train_stage(run, stage, report_to=report_to, callbacks=[*bar])


def train(
    recipe: Recipe,
    output: Path,
    *,
    seeds: int,
    report_to: list[str],
    console: Console,
    only: str | None = None,
    device: str | torch.device = "auto",
) -> list[SeedRun]:
    """Train every stage of every seed that is not finished yet.

    Of several ranks every one calls this; ``batch_size`` stays that of all of them together, and rank 0 writes.

    What the recipe leaves to the machine is decided first and printed; the runs that are returned have it.

    Args:
        output: the run folder; made if it does not exist, bound to this recipe.
        seeds: how many, one after another, from 0.
        report_to: loggers, by the names of the transformers integrations.
        only: train this stage alone; the stages it starts from must be finished.
        device: see `device_for_all`. A run may be resumed on another one.

    Raises:
        ValueError: the folder belongs to another recipe or is in use by another run, a stage is missing, a file was
            damaged, the pretrained backbone cannot be loaded or has fewer blocks than the recipe asks for, or several
            ranks cannot train a stage together; or the loss diverged, or there was too little memory.
        OSError: the disk is full.
    """
    distributed.init_distributed()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    check_backbone(recipe)  # before anything is trained
    _check_loggers(report_to)
    stages = recipe.stages if only is None else (recipe.stage(only),)
    for stage in stages:
        if not stage.objective.writes_data:
            _check_ranks(stage)
    torch.set_num_threads(recipe.threads or usable_threads())
    chosen = device_for_all(device)
    with run_lock(output):
        runs = [settled(run) for run in seed_runs(recipe, output, seeds, chosen)]
        if runs[0].reasons and distributed.is_main_process():
            line = "; ".join(f"{key} {getattr(runs[0].recipe, key)} ({why})" for key, why in runs[0].reasons.items())
            write_line(line, console, "dim")
        if recipe.task.traits.from_files and distributed.is_main_process():
            task = recipe.task.build()
            for line in (
                rows_in_words(task),
                *left_out_in_words(task),
                *beyond_caps(recipe),
                *beyond_positions(recipe),
            ):
                write_line(line, console, "dim")
        distributed.run_on_main(lambda: require_written_chains(recipe))
        distributed.run_on_main(lambda: claim(output, runs[0].recipe))
        _train_in_turn(runs, stages, report_to=report_to, console=console)
    return runs
