"""Everything that computes, on the pretend device, in a process that `test_pretend_runs.py` starts for it.

Numbers of the pretend device are those of the CPU, so a run there must end in the very weights of a run here: with
plain attention, since the fused kernel of the CPU is the CPU's alone.
"""

from __future__ import annotations

import gc
import os
import queue
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from faults import StopAt
from pretend_device import Waits, counting, install
from rich.console import Console
from tiny_drills import drilled
from tiny_recipe import one_stage, quiet_stage, quiet_train, weights
from tiny_words import TASK, tiny_word_system
from transformers import TrainerCallback

from unspoken import machine
from unspoken.backbone.folder import read_manifest
from unspoken.evaluation import cost
from unspoken.experiment import measure_run, models_of, open_run, run_experiment
from unspoken.placement import CPU, moved
from unspoken.probes.geometry import GeometryProbe
from unspoken.probes.pass_at_k import PassAtKProbe
from unspoken.reasoning.picking import Sampler
from unspoken.reasoning.speakers import SameStack
from unspoken.report.answers import answer_problems
from unspoken.serving import Engine, Limits, Served, open_served
from unspoken.serving.batch import Batch
from unspoken.training.recipe import Recipe

STEPS = 3


def prepare() -> None:
    """Called once, when the process starts."""
    install()
    torch.set_num_threads(1)
    # How fast this device multiplies means nothing.
    machine._GPU_SIZE = 16
    # As in conftest.py.
    gc.freeze()
    cost._ALONE = 1
    os.fsync = lambda _: None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
        unlike_cpu: files of weights and labels that are not those of a run on the CPU.
        devices: on which the stages say that they were trained.
        systems: those that were measured.
        answers, served: what `answer_problems` and the server's engine answer, by stage.
        waits: of one step of training, by stage: how many, and the lines where.
    """

    unlike_cpu: list[str]
    devices: set[str]
    systems: list[str]
    answers: dict[str, str] = field(default_factory=dict)
    served: dict[str, str] = field(default_factory=dict)
    waits: dict[str, tuple[int, dict[str, int]]] = field(default_factory=dict)


class OneStep(TrainerCallback):
    """Counts the waits from the end of the first step to the end of the second, its batch included."""

    def __init__(self) -> None:
        self.waits = Waits()
        self._counting = counting()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.waits = self._counting.__enter__()
        elif state.global_step == 2:
            self._counting.__exit__(None, None, None)


def short(name: str, folder: Path, *overrides: str, without: tuple[str, ...] = ()) -> Recipe:
    """One of the recipes that hold every kind of stage, a few steps a stage."""
    recipe = drilled(name, folder, "precision=fp32", "attention=eager", *overrides)
    stages = tuple(
        stage if stage.objective.kind == "labels" else replace(stage, steps=STEPS, evaluate_every=STEPS)
        for stage in recipe.stages
        if stage.name not in without
    )
    return replace(recipe, stages=stages)


def run(name: str, folder: Path, overrides: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> Outcome:
    """Train every stage of a recipe, measure all of it, and answer its problems, here and on the CPU."""
    device, recipe = install(), short(name, folder, *overrides, without=without)
    quiet_train(recipe, folder / "cpu")
    waits = {}
    for stage in recipe.stages:
        counter = OneStep()
        quiet_stage(recipe, folder / "run", counter, name=stage.name, device=device)
        waits[stage.name] = (counter.waits.total, dict(counter.waits.lines))
    quiet = Console(quiet=True)
    results = run_experiment(
        recipe, folder / "run", seeds=1, report_to=[], console=quiet, command="unspoken run", device=device
    )
    expected, found = weights(folder / "cpu"), weights(folder / "run")
    _, (finished,) = open_run(folder / "run", device)
    outcome = Outcome(
        unlike_cpu=sorted(path for path in {*expected, *found} if expected.get(path) != found.get(path)),
        devices={read_manifest(finished.model_folder(stage.name))["machine"]["device"] for stage in recipe.stages},
        systems=sorted(results["systems"]),
        waits=waits,
    )
    if name in ("trees", "words"):
        for stage_name in models_of(finished).measured:
            (answer,) = answer_problems(folder / "run", [None], stage=stage_name, device=device)
            outcome.answers[stage_name] = answer["answer"]
            outcome.served[stage_name] = served(folder / "run", stage_name, answer["problem"])
    return outcome


def served(folder: Path, stage: str, problem: str) -> str:
    """What the server's engine says to three who ask the same where two are answered at once."""
    system = open_served(folder, stage=stage, device=install())
    engine = Engine(system.system.reasoner, Limits(batch_size=2))
    reports: queue.Queue[Any] = queue.Queue()
    spelled = system.prompt(problem, chat=False)
    engine.start()
    try:
        jobs = [system.job(spelled, system.answer_tokens, Sampler()) for _ in range(3)]
        engine.submit(jobs, lambda index, progress: reports.put((index, progress)))
        words: list[list[int]] = [[] for _ in jobs]
        left = len(jobs)
        while left:
            index, progress = reports.get(timeout=60)
            assert not progress.failure, progress.failure
            words[index] += progress.tokens
            left -= progress.over
    finally:
        engine.close()
    (text,) = {system.text(one) for one in words}
    return text


def look_inside(folder: Path) -> dict[str, Any]:
    """What is measured on request alone: geometry of hidden states, and noisy chains."""
    recipe, runs = open_run(folder / "run", install())
    optional = [GeometryProbe(), PassAtKProbe(2)]
    return measure_run(recipe, runs, command="", log=lambda _: None, optional=optional)["probes"]


def resume(folder: Path, there_first: bool) -> bool:
    """Whether a stage that is stopped on one device and goes on on the other ends in the weights of the CPU."""
    recipe = one_stage(
        "precision=fp32", "attention=eager", "stages.pretrain.optimizer={name: adamw, lr: 0.001, lr_rest: null}"
    )
    quiet_train(recipe, folder / "cpu")
    first, second = (install(), CPU) if there_first else (CPU, install())
    try:
        quiet_stage(recipe, folder / "run", StopAt("step_end", 5), device=first)
    except KeyboardInterrupt:
        quiet_stage(recipe, folder / "run", device=second)
    return weights(folder / "run") == weights(folder / "cpu")


def several_gpus(folder: Path) -> bool:
    """Whether a process that sees two GPUs trains on one of them, with the batch that the recipe asks for."""
    recipe = one_stage("precision=fp32", "attention=eager")
    quiet_train(recipe, folder / "cpu")
    count, torch.cuda.device_count = torch.cuda.device_count, lambda: 2
    try:
        quiet_stage(recipe, folder / "run", device=install())
    finally:
        torch.cuda.device_count = count
    return weights(folder / "run") == weights(folder / "cpu")


# --- waits of decoding -----------------------------------------------------------------------------------------------


def thinking_waits(more: int = 8) -> tuple[float, dict[str, float]]:
    """Waits of one latent of a batch, and where."""
    return _between(lambda latents: _respond(latents, 2), more)


def answering_waits(more: int = 8) -> tuple[float, dict[str, float]]:
    """Waits of one word of a batch, and where."""
    return _between(lambda words: _respond(2, words), more)


def serving_waits(rows: int, thinking: bool, more: int = 8) -> tuple[float, dict[str, float]]:
    """Waits of one step of the server with so many rows that think or that answer, and where."""
    return _between(lambda steps: _serve(rows, 32 if thinking else 0, steps), more)


def _between(work: Any, more: int) -> tuple[float, dict[str, float]]:
    """What some more steps add, a step."""
    counted = []
    for steps in (4, 4 + more):
        with counting() as waits:
            work(steps)
        counted.append(waits)
    few, many = counted
    lines = {line: (count - few.lines[line]) / more for line, count in many.lines.items() if count > few.lines[line]}
    return (many.total - few.total) / more, lines


def _system(latents: int) -> Any:
    system = tiny_word_system(max_latents=latents)
    system.model.to(install())
    # A token that nothing says ends no answer.
    endless = SameStack(marker=system.speaker.marker, end_ids=(len(TASK.tokenizer) + 1,), pad_id=0)
    return replace(system, name="tiny", speaker=endless)


def _respond(latents: int, words: int) -> None:
    ids = torch.randint(5, 20, (4, 7), generator=torch.Generator().manual_seed(0))
    prompts = moved((ids, torch.ones_like(ids)), install())
    answer = _system(latents).respond(*prompts, max_tokens=words)
    assert (answer.chain.mask.shape[1], answer.tokens.shape[1]) == (latents, words)


def _serve(rows: int, latents: int, steps: int) -> None:
    system = _system(latents)
    batch, one = Batch(system.reasoner), Served(system=system)
    jobs = [one.job([5, 6, 7], 32, Sampler()) for _ in range(rows)]
    for job in jobs:
        job.report = lambda _: None
    batch.join(jobs)
    for _ in range(steps):
        batch.step()
    assert len(batch.rows) == rows
