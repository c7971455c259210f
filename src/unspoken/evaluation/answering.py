"""Problems answered by a system, in batches that ranks share, and graded.

Axes: B problems, M tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from unspoken import distributed
from unspoken.chain import LatentChain
from unspoken.reasoning.system import Answer, System
from unspoken.tasks import TreeProblems, TreeSearchTask
from unspoken.tasks.grading import graded
from unspoken.tasks.problems import ReasoningProblem, ReasoningTask
from unspoken.tasks.prompt_format import PromptFormat


@dataclass(frozen=True, kw_only=True)
class Graded(Answer):
    """Answers, and whether they are right.

    Attributes:
        correct: ``[B]``.
    """

    correct: Bool[Tensor, " B"]


def joined(answers: Sequence[Answer], fill: int, width: int) -> Answer:
    """The rows of several batches as one, with one id after the end of every batch."""
    return Answer(
        chain=LatentChain.concatenate([answer.chain for answer in answers]),
        tokens=torch.cat([F.pad(one.tokens, (0, width - one.tokens.shape[1]), value=fill) for one in answers]),
        lengths=torch.cat([answer.lengths for answer in answers]),
    )


def answer_trees(system: System, task: TreeSearchTask, problems: TreeProblems, batch_size: int) -> Graded:
    """Let a system answer tree-search problems and grade it.

    The cap is twice the longest right answer, so that a chain that does not stop in time is seen.
    """
    prompts = task.prompts(problems)[0]

    def respond(rows: Tensor) -> Answer:
        return system.respond(rows, max_tokens=2 * task.answer_length)

    batches = distributed.map_over_ranks(prompts.split(batch_size), respond)
    answer = joined(batches, fill=0, width=max(one.tokens.shape[1] for one in batches))
    correct = task.grade(answer.tokens, problems).correct
    return Graded(chain=answer.chain, tokens=answer.tokens, lengths=answer.lengths, correct=correct)


def answer_questions(
    system: System,
    prompt_format: PromptFormat,
    problems: Sequence[ReasoningProblem],
    batch_size: int,
    *,
    chain: LatentChain | None = None,
    boxed: bool = False,
) -> Graded:
    """Let a system answer word problems and grade it.

    Args:
        chain: answer from these chains, a row a problem, instead of the system's own.
        boxed: append the start of the answer by force.
    """
    start = "\\boxed{" if boxed else ""

    def respond(rows: Tensor) -> tuple[Answer, list[str]]:
        ids, mask = prompt_format.prompts([problems[row] for row in rows.tolist()])
        given = None if chain is None else chain.select(rows)
        answer = system.respond(ids, mask, chain=given, forced=prompt_format.box if boxed else ())
        return answer, [start + text for text in prompt_format.decode(answer.tokens)]

    batches = torch.arange(len(problems)).split(batch_size)
    answers, texts = zip(*distributed.map_over_ranks(batches, respond), strict=True)
    answer = joined(answers, fill=int(prompt_format.tokenizer.eos_token_id), width=system.max_tokens)
    correct = torch.from_numpy(graded([text for some in texts for text in some], problems))
    return Graded(chain=answer.chain, tokens=answer.tokens, lengths=answer.lengths, correct=correct)


def first_problems(task: ReasoningTask, test: str, most: int) -> list[ReasoningProblem]:
    """The first problems of a test set; a smaller set is used in full."""
    return task.sample(test, np.arange(min(most, task.size(test) or most)))
