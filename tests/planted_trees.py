"""Views of tree search whose latents are planted, so that every reading of them is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tiny_models import tiny_pair, tiny_reasoner
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.evaluation.answering import Graded
from unspoken.methods import catalogue
from unspoken.probes.probe import View
from unspoken.tasks import TreeProblems, TreeSearchConfig, TreeSearchTask
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.tree_search import EOS, FIRST_LETTER, LETTERS, PAD

WIDTH = 32
PRINTED = "LK,LC,KB,KN,CJ,CE[ROOT]L[TARGET]{}[ROUTE]"  # L over K and C; K over B and N; C over J and E


@dataclass
class Rows:
    """A table, and what is read of the answers ``[B, N, D]`` of all problems at once."""

    target_table: Tensor
    forced: Tensor

    def nearest_row(self, latents: Tensor) -> Tensor:
        return (latents @ F.normalize(self.target_table, dim=-1).T).argmax(dim=-1)

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        before = torch.zeros(len(input_ids), input_ids.shape[1] - 1 - self.forced.shape[1], WIDTH)
        return torch.cat([before, self.forced, torch.zeros(len(input_ids), 1, WIDTH)], dim=1)


def slanted_table() -> Tensor:
    """Rows of different length, every two of them at a cosine of about a half."""
    return (torch.randn(21, WIDTH) + torch.randn(WIDTH)) * torch.rand(21, 1).add(0.5)


def printed(targets: str) -> tuple[TreeSearchTask, TreeProblems]:
    """One tree with these leaves listed; the route leads to the first."""
    task = TreeSearchConfig(depth=3, targets=len(targets)).build()
    return task, task.parse(PRINTED.format(targets))


def some(depth: int = 3, targets: int = 1, count: int = 4) -> tuple[TreeSearchTask, TreeProblems]:
    """A few problems of the test split."""
    task = TreeSearchConfig(depth=depth, targets=targets).build()
    return task, task.sample("test", np.arange(count))


def mixture(table: Tensor, weights: dict[str, float]) -> Tensor:
    """A unit vector of names with weights."""
    rows = F.normalize(table, dim=-1)
    return F.normalize(
        sum((weight * rows[FIRST_LETTER + LETTERS.index(name)] for name, weight in weights.items()), rows[0] * 0),
        dim=-1,
    )


def chain_of(table: Tensor, steps: Sequence[dict[str, float]]) -> Tensor:
    """Latents ``[1, N, D]`` of one answer: mixtures of names, and its end."""
    rows = F.normalize(table, dim=-1)
    return torch.stack([*(mixture(table, weights) for weights in steps), rows[EOS]])[None]


def right_rows(task: TreeSearchTask, problems: TreeProblems, table: Tensor) -> Tensor:
    """Latents ``[B, depth + 1, D]`` that are the rows of the right answers."""
    return F.normalize(table, dim=-1)[task.answers(problems)]


def view_of(
    task: TreeSearchTask,
    problems: TreeProblems,
    table: Tensor,
    *,
    rollout: Tensor,
    forced: Tensor,
    tokens: Tensor | None = None,
    talker: bool = False,
    **rest: Any,
) -> View:
    """A Reasoner, or one with a Talker, whose chains are ``rollout`` and which reads ``forced`` off the right answers.

    Args:
        tokens: its answers; those of the nearest rows by default.
    """
    rows = Rows(target_table=table, forced=forced)
    model = tiny_pair() if talker else tiny_reasoner()
    system = replace(catalogue.systems(model, stage="it", max_answer=8)[0], targets=rows)
    if tokens is None:
        tokens = rows.nearest_row(rollout)
    count, steps = rollout.shape[:2]
    chain = LatentChain(
        latents=rollout,
        mask=torch.ones(count, steps, dtype=torch.bool),
        stop=torch.full((count,), int(StopReason.END)),
    )
    grades = task.grade(F.pad(tokens, (0, max(0, task.answer_length - tokens.shape[1])), value=PAD), problems)
    answers = Graded(
        chain=chain,
        tokens=tokens,
        lengths=torch.full((count,), tokens.shape[1]),
        correct=grades.correct,
        per_symbol=grades.per_symbol,
    )
    given: dict[str, Any] = {"batch_size": max(count, 1), "seed": 0} | rest
    return View(
        system=system,
        task=task,
        problems=problems,
        answers=answers,
        prompt_format=PromptFormat(tokenizer=task.tokenizer),
        **given,
    )
