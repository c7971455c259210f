"""Answers to problems that a person types, with a look at what each latent is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from unspoken.analysis.mixture import all_coefficients
from unspoken.backbone import UnspokenForCausalLM
from unspoken.backbone.folder import MANIFEST, read_manifest
from unspoken.chain import StopReason
from unspoken.evaluation.systems import System, answer, load_model, system_name, system_of
from unspoken.machine import resolve_device
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.report.formats import coefficient, count
from unspoken.report.word_answers import answer_words
from unspoken.tasks import GrammarTask, ProseTask, TreeProblems, TreeSearchTask
from unspoken.tasks.problems import ReasoningTask
from unspoken.tasks.tree_search import FIRST_LETTER, LETTERS
from unspoken.training.recipe import Recipe, parse
from unspoken.training.settings import read
from unspoken.training.stages import SeedRun

_SHOWN = 4  # coefficients printed for each latent


def locate(path: Path, seed: int, stage: str | None) -> tuple[Recipe, Path]:
    """The recipe and the model folder that a path, a seed and a stage mean."""
    if (path / MANIFEST).is_file():
        recorded = read_manifest(path).get("recipe")
        if not isinstance(recorded, dict):
            raise ValueError(
                f"{path / MANIFEST} records no recipe; give a run folder, or the folder of a finished stage"
            )
        return read(Recipe, recorded), path
    recipe_file = path / "recipe.json"
    if not recipe_file.is_file():
        raise ValueError(f"{path} is neither a run folder (no recipe.json) nor a model folder (no {MANIFEST})")
    recipe = parse(recipe_file.read_text(), str(recipe_file))
    talkers = [entry.name for entry in recipe.stages if entry.objective.kind in ("talker", "stage2")]
    wanted = recipe.stage(stage) if stage else recipe.stage(talkers[-1] if talkers else recipe.stages[-1].name)
    run = SeedRun(recipe=recipe, folder=path / f"seed-{seed}", seed=seed)
    if not run.finished(wanted):
        raise ValueError(f"{run.folder} has no finished stage {wanted.name!r}; run the recipe again to continue it")
    return recipe, run.model_folder(wanted.name)


def _chain(system: System, latents: torch.Tensor, spoken: list[str]) -> list[dict[str, Any]]:
    """What each step is made of: coefficients over the names, or the token itself for a coupled model."""
    model = system.model.reasoner if isinstance(system.model, JepaReasonerForCausalLM) else system.model
    if not isinstance(model, JepaReasonerModel):
        return [{"nearest": token, "coefficients": {token: 1.0}} for token in spoken]
    # Names and the end of the sequence; the markers of the prompt are no part of an answer.
    shown = {model.config.end_id: "[EOS]"} | {FIRST_LETTER + index: name for index, name in enumerate(LETTERS)}
    tokens, steps = list(shown), []
    for latent, weights in zip(latents, all_coefficients(latents, model.target_table), strict=True):
        nearest = int(model.nearest_row(latent))
        largest = [tokens[index] for index in weights[tokens].abs().topk(_SHOWN).indices.tolist()]
        steps.append(
            {
                "nearest": shown.get(nearest, "a marker"),
                "coefficients": {shown[token]: round(float(weights[token]), 4) for token in largest},
            }
        )
    return steps


def _answer_one(system: System, task: TreeSearchTask, problems: TreeProblems) -> dict[str, Any]:
    given = answer(system, task, problems, 1)
    tokens = task.words(given.spoken[0])
    length = int(given.chain.lengths[0])
    printed = task.text(problems)[0]
    result: dict[str, Any] = {
        "problem": printed[: printed.index("[ROUTE]") + len("[ROUTE]")],
        "system": system.name,
        "answer": "".join(tokens),
        "latent_steps": length,
        "silent": not isinstance(system.model, UnspokenForCausalLM),
        "stopped": StopReason(int(given.chain.stop[0])).name.lower(),
        "tree": task.draw(problems),
        "chain": _chain(system, given.chain.latents[0, :length], tokens),
    }
    if task.config.targets == 1:
        result["expected"] = printed.rpartition("[ROUTE]")[2]
        result["correct"] = bool(given.correct[0])
    return result


def answerable(recipe: Recipe) -> TreeSearchTask | ReasoningTask:
    """The task of a recipe, if a person can put a problem to it.

    Raises:
        ValueError: it is about continuing strings or texts.
    """
    task = recipe.task.build()
    if isinstance(task, GrammarTask | ProseTask):
        raise ValueError(
            f"{recipe.name} is about {recipe.task.kind}, where nobody asks anything; what its models continue is in the "
            "report, and problems are answered by runs of tree search and of word problems"
        )
    return task


def answer_problems(
    model_path: Path,
    texts: Sequence[str | None],
    *,
    seed: int = 0,
    stage: str | None = None,
    device: str | torch.device = "auto",
) -> Iterator[dict[str, Any]]:
    """Answer problems with a trained model.

    Args:
        model_path: a run folder, or the folder of one model.
        texts: printed problems, with or without a route, or questions; None means the first problem of the test split.
        seed, stage: which model of a run folder; the last that speaks from latents by default.
        device: where it computes, see `unspoken.machine.resolve_device`.

    Raises:
        ValueError: no such model or device, or a text that is not a problem of its task.
    """
    recipe, folder = locate(model_path, seed, stage)
    task, place = answerable(recipe), resolve_device(device)
    if not isinstance(task, TreeSearchTask):
        yield from answer_words(recipe, folder, texts, place)
        return
    problems = [task.parse(text) if text is not None else task.sample("test", np.arange(1)) for text in texts]
    model = load_model(folder, device=place)
    system = system_of(model, name=system_name(model, folder.parent.name))
    for problem in problems:
        yield _answer_one(system, task, problem)


def print_answer(result: dict[str, Any], console: Console, *, chain: bool) -> None:
    """The problem, its tree if it has one, the answer, and on request the chain."""
    print(result["problem"])
    print(f"\n{result['tree']}\n" if "tree" in result else "")
    verdict = ""
    if "correct" in result:
        wanted = "route" if "tree" in result else "answer"
        verdict = "  right" if result["correct"] else f"  wrong: the {wanted} is {result['expected']}"
    made = (
        count(result["latent_steps"], "silent step")
        if result["silent"]
        else count(result["latent_steps"], "spoken token")
    )
    ended = "" if result["stopped"] == "end" else ", cut off at the cap"
    text = f"{result['system']}: {result['answer']}{verdict}  ({made}{ended})"
    console.print(text, style="bold" if console.is_terminal else "", highlight=False, soft_wrap=True)
    if not chain:
        return
    print("\nstep  nearest  made of")
    for index, step in enumerate(result["chain"]):
        parts = "  ".join(f"{name} {coefficient(weight)}" for name, weight in step["coefficients"].items())
        print(f"{index + 1:4}  {step['nearest']:7}  {parts}")
