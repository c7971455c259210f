"""Answers to problems that a person types, with a look at what each latent is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from unspoken.draw.formats import coefficient, count
from unspoken.draw.table import write_line
from unspoken.reasoning.text_answers import TextAnswer
from unspoken.runs import locate, open_system
from unspoken.tasks import TreeSearchTask
from unspoken.tasks.grading import boxed
from unspoken.tasks.problems import ReasoningTask
from unspoken.tasks.task import Task

_SHOWN = 4  # coefficients printed for each latent


def answer_problems(
    source: str | Path,
    texts: Sequence[str | None],
    *,
    seed: int = 0,
    stage: str | None = None,
    reasoning: str | None = None,
    device: str | torch.device = "auto",
) -> Iterator[dict[str, Any]]:
    """Answer problems with a trained model.

    Args:
        source, seed, stage, reasoning, device: see `unspoken.runs.open_system`.
        texts: printed problems, or questions; None means the first problem of the test split.

    Raises:
        ValueError: no such model or device, a text that is not a problem of its task, or no task to take one from.
    """
    system = open_system(source, reasoning, stage=stage, seed=seed, device=device)
    recipe, _ = locate(source, seed, stage)
    for text in texts:
        task, problems = system.texts.task, None
        if text is None:
            if recipe is None:
                raise ValueError(f"{source} records no task to take a problem from; type one")
            task = recipe.task.build()
            problems = task.sample(task.tests[0], np.arange(1))
        elif task is not None:
            problems = task.parse(text)
        question = str(text) if task is None else task.questions(problems)[0]
        answer = system.answer(question)
        inside = boxed(answer.text)
        yield {
            "problem": question,
            "system": system.name,
            "answer": answer.text if inside is None else inside,
            "latent_steps": len(answer.chain),
            "silent": system.chain_kind != "tokens",
            "stopped": answer.chain.stopped.name.lower(),
            **verdict(task, problems, answer),
            "chain": [
                {"nearest": step.nearest, "coefficients": {name: round(weight, 4) for name, weight in step.tokens}}
                for step in answer.chain.steps(_SHOWN)
                if step.tokens
            ],
        }


def verdict(task: Task | None, problems: Any, answer: TextAnswer) -> dict[str, Any]:
    """The right answer, where it is known, and whether this is it; the drawing of a tree."""
    if isinstance(task, TreeSearchTask):
        facts: dict[str, Any] = {"tree": task.draw(problems)}
        if task.config.targets == 1:
            facts["expected"] = task.text(problems)[0].rpartition("[ROUTE]")[2]
            facts["correct"] = bool(task.grade(torch.tensor([answer.tokens]), problems).correct)
        return facts
    if isinstance(task, ReasoningTask) and problems[0].answer:
        return {"expected": problems[0].answer, "correct": bool(task.grade([answer.text], problems).correct)}
    return {}


def print_answer(result: dict[str, Any], console: Console, *, chain: bool) -> None:
    """The problem, its tree if it has one, the answer, and on request the chain."""
    write_line(result["problem"], console)
    write_line(f"\n{result['tree']}\n" if "tree" in result else "", console)
    verdict = ""
    if "correct" in result:
        what = "route" if "tree" in result else "answer"
        verdict = "  right" if result["correct"] else f"  wrong: the {what} is {result['expected']}"
    made = count(result["latent_steps"], "silent step" if result["silent"] else "token")
    ended = ", cut off at the cap" if result["stopped"] == "cap" else ""
    text = f"{result['system']}: {result['answer']}{verdict}  ({made}{ended})"
    write_line(text, console, "bold")
    if not chain or not result["chain"]:
        return
    write_line("\nstep  nearest  made of", console)
    for index, step in enumerate(result["chain"]):
        coefficients = "  ".join(f"{name} {coefficient(weight)}" for name, weight in step["coefficients"].items())
        write_line(f"{index + 1:4}  {step['nearest']:7}  {coefficients}", console)
