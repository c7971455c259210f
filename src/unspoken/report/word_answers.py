"""Answers to word problems that a person types, with a look at what each latent is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unspoken.chain import StopReason
from unspoken.evaluation.systems import load_model
from unspoken.evaluation.word_systems import WordSystem, systems_of
from unspoken.tasks.problems import ReasoningProblem, boxed
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training.recipe import Recipe
from unspoken.training.words import task_of

_SHOWN = 4  # tokens printed for each latent


def answer_words(
    recipe: Recipe, folder: Path, texts: Sequence[str | None], device: torch.device
) -> list[dict[str, Any]]:
    """Answer questions; None means the first problem of the first test set."""
    task = task_of(recipe)
    prompt_format = PromptFormat(tokenizer=recipe.tokenizer())
    problems = [task.parse(text) if text is not None else task.sample(task.tests[0], np.arange(1))[0] for text in texts]
    model = load_model(folder, device=device)
    system = systems_of(folder.parent.name, model, prompt_format, recipe.evaluation.max_answer)[0]
    return [_answer_one(system, problem) for problem in problems]


def _answer_one(system: WordSystem, problem: ReasoningProblem) -> dict[str, Any]:
    given = system.answer([problem], 1)
    chain, tokenizer = given.chain, system.prompt_format.tokenizer
    length, said = int(chain.lengths[0]), system.prompt_format.decode(given.spoken)[0]
    explicit = system.settings is not None and system.settings.top_k == 1
    result: dict[str, Any] = {
        "problem": problem.question,
        "system": system.name,
        "answer": boxed(said) if boxed(said) is not None else said,
        "latent_steps": length,
        "silent": not explicit,
        "stopped": StopReason(int(chain.stop[0])).name.lower(),
        "chain": [],
    }
    if length and chain.support_ids is not None and chain.support_weights is not None:
        for weights, ids in zip(chain.support_weights[0, :length], chain.support_ids[0, :length], strict=True):
            names = [tokenizer.decode([int(token)]) for token in ids[:_SHOWN]]
            weighted = {name: round(float(weight), 4) for name, weight in zip(names, weights, strict=False)}
            result["chain"].append({"nearest": names[0], "coefficients": weighted})
    if problem.answer:
        result |= {"expected": problem.answer, "correct": bool(given.correct[0])}
    return result
