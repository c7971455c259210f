"""Answers to problems that a person types, with a look at what each latent is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from unspoken.analysis.mixture import all_coefficients
from unspoken.backbone.folder import MANIFEST, read_manifest
from unspoken.chain import StopReason
from unspoken.draw.formats import coefficient, count
from unspoken.evaluation.answering import Graded, answer
from unspoken.evaluation.seeds import stage_systems
from unspoken.machine import resolve_device
from unspoken.methods.loading import load_model
from unspoken.reasoning.system import System
from unspoken.tasks import TreeProblems, TreeSearchTask
from unspoken.tasks.grading import boxed
from unspoken.tasks.problems import ReasoningProblem, ReasoningTask
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.task import ProblemList
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
    latent = [entry.name for entry in recipe.stages if entry.objective.answers_from_latents]
    chosen = recipe.stage(stage or [recipe.stages[-1].name, *latent][-1])
    run = SeedRun(recipe=recipe, folder=path / f"seed-{seed}", seed=seed)
    if not run.finished(chosen):
        raise ValueError(f"{run.folder} has no finished stage {chosen.name!r}; run the recipe again to continue it")
    return recipe, run.model_folder(chosen.name)


def answerable(recipe: Recipe) -> TreeSearchTask | ReasoningTask:
    """The task of a recipe, if a person can put a problem to it.

    Raises:
        ValueError: it is about continuing strings or texts.
    """
    if not recipe.task.traits.answerable:
        raise ValueError(
            f"{recipe.name} is about {recipe.task.kind}, where nobody asks anything; what its models continue is in the "
            "report, and problems are answered by runs of tree search and of word problems"
        )
    task: Any = recipe.task.build()
    return task


def open_system(recipe: Recipe, folder: Path, task: TreeSearchTask | ReasoningTask, device: torch.device) -> System:
    """A finished model as it was trained to answer problems of its task."""
    model, stage = load_model(folder, device=device), folder.parent.name
    return stage_systems(model, stage, task.traits, recipe.evaluation.max_answer)[0]


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
    if isinstance(task, TreeSearchTask):
        trees = [task.parse(text) if text is not None else task.sample("test", np.arange(1)) for text in texts]
        system = open_system(recipe, folder, task, place)
        for tree in trees:
            yield _answer_tree(system, task, tree)
        return
    test = task.tests[0]
    asked = [task.parse(text) if text is not None else task.sample(test, np.arange(1)) for text in texts]
    system, prompt_format = open_system(recipe, folder, task, place), PromptFormat(tokenizer=recipe.tokenizer())
    for questions in asked:
        yield _answer_question(system, task, questions, prompt_format)


def _answer_tree(system: System, task: TreeSearchTask, problems: TreeProblems) -> dict[str, Any]:
    given = answer(system, task, problems, PromptFormat(tokenizer=task.tokenizer), batch_size=1)
    tokens = task.words(given.tokens[0])
    printed = task.text(problems)[0]
    result: dict[str, Any] = {
        "problem": printed[: printed.index("[ROUTE]") + len("[ROUTE]")],
        "system": system.name,
        "answer": "".join(tokens),
        **_facts(system, given),
        "tree": task.draw(problems),
        "chain": _directions(system, given) if system.targets is not None else _tokens(tokens),
    }
    if task.config.targets == 1:
        result["expected"] = printed.rpartition("[ROUTE]")[2]
        result["correct"] = bool(given.correct[0])
    return result


def _answer_question(
    system: System, task: ReasoningTask, problems: ProblemList[ReasoningProblem], prompt_format: PromptFormat
) -> dict[str, Any]:
    given, problem = answer(system, task, problems, prompt_format, batch_size=1), problems[0]
    text = prompt_format.decode(given.tokens)[0]
    in_box = boxed(text)
    result: dict[str, Any] = {
        "problem": problem.question,
        "system": system.name,
        "answer": text if in_box is None else in_box,
        **_facts(system, given),
        "chain": _mixtures(given, prompt_format.tokenizer),
    }
    if problem.answer:
        result |= {"expected": problem.answer, "correct": bool(given.correct[0])}
    return result


def _facts(system: System, given: Graded) -> dict[str, Any]:
    """What is said of every answer of one problem."""
    return {
        "latent_steps": int(given.chain.lengths[0]),
        "silent": system.chain_kind != "tokens",
        "stopped": StopReason(int(given.chain.stop[0])).name.lower(),
    }


def _tokens(tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Steps that are one token each."""
    return [{"nearest": token, "coefficients": {token: 1.0}} for token in tokens]


def _directions(system: System, given: Graded) -> list[dict[str, Any]]:
    """Coefficients over the names of a tree, of latents that point at rows of a table."""
    targets = system.targets
    assert targets is not None
    (end_id,) = system.speaker.end_ids
    # Names and the end of the sequence; the markers of the prompt are no part of an answer.
    shown = {end_id: "[EOS]"} | {FIRST_LETTER + index: name for index, name in enumerate(LETTERS)}
    latents = given.chain.latents[0, : int(given.chain.lengths[0])]
    tokens, steps = list(shown), []
    for latent, weights in zip(latents, all_coefficients(latents, targets.target_table), strict=True):
        largest = [tokens[index] for index in weights[tokens].abs().topk(_SHOWN).indices.tolist()]
        steps.append(
            {
                "nearest": shown.get(int(targets.nearest_row(latent)), "a marker"),
                "coefficients": {shown[token]: round(float(weights[token]), 4) for token in largest},
            }
        )
    return steps


def _mixtures(given: Graded, tokenizer: Any) -> list[dict[str, Any]]:
    """The heaviest tokens of each latent; nothing where latents have no distribution."""
    chain, steps = given.chain, []
    if chain.support_ids is None or chain.support_weights is None:
        return []
    length = int(chain.lengths[0])
    for weights, ids in zip(chain.support_weights[0, :length], chain.support_ids[0, :length], strict=True):
        names = [tokenizer.decode([int(token)]) for token in ids[:_SHOWN]]
        weighted = {name: round(float(weight), 4) for name, weight in zip(names, weights, strict=False)}
        steps.append({"nearest": names[0], "coefficients": weighted})
    return steps


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
