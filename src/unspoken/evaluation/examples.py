"""Single chains as results keep them: what each latent is made of, beside the problem and the answer.

Axes: B problems, N latents of a chain, D latent width, M tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unspoken.analysis.mixture import all_coefficients
from unspoken.chain import LatentChain
from unspoken.placement import moved
from unspoken.reasoning.engine import RowTargets
from unspoken.reasoning.inspection import Chain
from unspoken.reasoning.system import System
from unspoken.tasks import TreeProblems, TreeSearchTask
from unspoken.tasks.prompt_format import PromptFormat, TextFormat
from unspoken.tasks.task import Problems, Task
from unspoken.tasks.tree_search import FIRST_LETTER, LETTERS, searches_trees

_TOKENS = 5  # of a latent that are kept
_LEAST = 0.005  # smaller weights are written as zero
_NOISE = 0.05  # smaller coefficients are within the noise of the read-out


def tree_example(
    task: TreeSearchTask,
    problems: TreeProblems,
    row: int,
    *,
    latents: Float[Tensor, "N D"],
    targets: RowTargets,
    tokens: Int[Tensor, " M"],
    correct: bool,
) -> dict[str, Any]:
    """A tree in heap order, its ``route``, the answer, and the ``coefficients`` of each latent over names.

    Args:
        latents: of the problem; those that a short chain lacks are zeros.
        tokens: of the answer.
    """
    depth = task.config.depth
    complete = F.pad(latents, (0, 0, 0, depth))[:depth]
    names = [LETTERS[token - FIRST_LETTER] for token in problems.names_BM[row]]
    letters = slice(FIRST_LETTER, FIRST_LETTER + len(LETTERS))
    return {
        "heap": names,
        "route": [names[node] for node in task.route_nodes(problems.leaf_B)[row]],
        "spoken": task.words(tokens),
        "correct": correct,
        "coefficients": [
            {name: round(value, 3) for name, value in zip(LETTERS, step, strict=True) if abs(value) >= _LEAST}
            for step in all_coefficients(complete, targets.target_table)[:, letters].tolist()
        ],
    }


def text_example(
    system: System, prompt_format: PromptFormat, chain: LatentChain, row: int, tokens: Int[Tensor, " M"]
) -> dict[str, Any]:
    """The answer, the largest weights and the entropy of each latent, and the token that a Talker writes from it.

    Args:
        chain: of some problems, ``row`` among them.
        tokens: of the answer.
    """
    decode = prompt_format.tokenizer.decode
    length = int(chain.lengths[row])
    least = _LEAST if system.targets is None else _NOISE
    readable = replace(system, text_format=TextFormat(prompt_format=prompt_format))
    record = moved(chain.select(torch.tensor([row])), tokens.device)
    steps = [
        {
            "tokens": [
                [text, round(weight, 3)]
                for place, (text, weight) in enumerate(step.tokens)
                if not place or abs(weight) >= least
            ],
            "entropy": None if step.entropy is None else round(step.entropy, 3),
        }
        for step in Chain(system=readable, record=record).truncate(length).steps(_TOKENS)
    ]
    entry: dict[str, Any] = {"response": prompt_format.decode(tokens[None])[0], "steps": steps}
    if not system.speaker.same_stack:
        entry["decoded"] = [decode([token]) for token in tokens[:length].tolist()]
    return entry


def has_words(system: System, chain: LatentChain) -> bool:
    """Whether latents are made of tokens: mixtures of rows, or trained to point at them."""
    return chain.support_ids is not None or system.targets is not None


def first_examples(
    system: System,
    task: Task,
    problems: Problems,
    prompt_format: PromptFormat,
    *,
    chain: LatentChain,
    tokens: Int[Tensor, "B M"],
    correct: Bool[Tensor, " B"],
) -> list[dict[str, Any]]:
    """Chains of a few problems as they are at one point of training; none where latents are not made of tokens."""
    targets, rights = system.targets, correct.tolist()
    if not system.silent or not has_words(system, chain):
        return []
    some: Any = problems
    if searches_trees(task) and targets is not None:
        return [
            tree_example(task, some, row, latents=latents, targets=targets, tokens=tokens[row], correct=rights[row])
            for row, latents in enumerate(chain.latents)
        ]
    if not task.traits.has_chain:
        return []
    return [
        {
            "question": problem.question,
            "answer": problem.answer,
            "correct": rights[row],
            **text_example(system, prompt_format, chain, row, tokens[row]),
        }
        for row, problem in enumerate(some)
    ]
