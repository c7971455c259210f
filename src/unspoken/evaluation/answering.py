"""Problems answered by a system, in batches that ranks share, and graded.

Axes: B problems, M tokens of an answer, W symbols of a right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from unspoken import distributed
from unspoken.chain import LatentChain
from unspoken.evaluation.significance import Outcomes
from unspoken.reasoning.system import Answer, System
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.task import Indices, Problems, Task


@dataclass(frozen=True, kw_only=True)
class Graded(Answer):
    """Answers, and whether they are right."""

    # ``[B]``. Where a method may leave the fixed steps of a chain out (`Traits.fixed_steps`), only what comes after
    # them counts, of every system.
    correct: Bool[Tensor, " B"]
    # ``[B, W]``, of every symbol; those that a chain stands for are not right. None where answers are not compared
    # symbol by symbol.
    per_symbol: Bool[Tensor, "B W"] | None = None

    @property
    def outcomes(self) -> Outcomes:
        """Which answers ``[B]`` are right (0 or 1)."""
        return self.correct.cpu().numpy().astype(np.float64)

    @property
    def hits(self) -> Outcomes:
        """Which symbols ``[B, W]`` are right (0 or 1)."""
        assert self.per_symbol is not None
        return self.per_symbol.cpu().numpy().astype(np.float64)

    def select(self, rows: Indices) -> Graded:
        """Some of the answers."""
        chosen = torch.as_tensor(np.asarray(rows))
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        some: dict[str, Any] = {name: value[chosen] for name, value in tensors.items()}
        return replace(self, chain=self.chain.select(chosen), **some)


def answer(
    system: System,
    task: Task,
    problems: Problems,
    prompt_format: PromptFormat,
    *,
    batch_size: int,
    prompts: tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]] | None = None,
    chain: LatentChain | None = None,
    boxed: bool = False,
) -> Graded:
    """Let a system answer problems and grade it.

    Args:
        system: with the task's caps, see `unspoken.evaluation.seeds.capped`.
        batch_size: problems answered at once.
        prompts: other tokens, and their mask, that are read instead of the problems' own.
        chain: answer from these chains, a row a problem, instead of the system's own.
        boxed: append the start of the answer by force; only of a task whose answers are texts.
    """
    start = "\\boxed{" if boxed else ""

    def respond(rows: Tensor) -> tuple[Answer, list[str]]:
        if prompts is None:
            ids, mask = task.prompts(problems.select(rows.numpy()), prompt_format)
        else:
            ids, mask = (values[rows] for values in prompts)
        given = None if chain is None else chain.select(rows)
        response = system.respond(ids, mask, chain=given, forced=prompt_format.box if boxed else ())
        decoded = prompt_format.decode(response.tokens) if task.traits.has_chain else []
        return response, [start + text for text in decoded]

    batches = torch.arange(len(problems)).split(batch_size)
    responses, decoded = zip(*distributed.map_over_ranks(batches, respond), strict=True)
    pad = int(prompt_format.tokenizer.pad_token_id)
    tokens = padded([response.tokens for response in responses], pad)
    texts = [text for batch in decoded for text in batch]
    grades = task.grade(texts if task.traits.has_chain else F.pad(tokens, (system.replaced, 0), value=pad), problems)
    symbols, after = grades.per_symbol, task.traits.fixed_steps
    return Graded(
        chain=LatentChain.concatenate([response.chain for response in responses]),
        tokens=tokens,
        lengths=torch.cat([response.lengths for response in responses]),
        correct=grades.correct if symbols is None else symbols[:, after:].all(dim=1),
        per_symbol=symbols,
    )


def padded(batches: Sequence[Tensor], fill: int) -> Tensor:
    """The rows of several batches ``[b, m]`` as one, filled up on the right to the longest."""
    width = max(batch.shape[1] for batch in batches)
    return torch.cat([F.pad(batch, (0, width - batch.shape[1]), value=fill) for batch in batches])


def first_problems(task: Task, test: str, most: int) -> Problems:
    """The first problems of a test set; a smaller set is used in full."""
    return task.sample(test, np.arange(min(most, task.size(test) or most)))
