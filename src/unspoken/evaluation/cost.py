"""What an answer costs: steps, tokens, sequential passes, floating-point operations, seconds.

Passes and operations are a system's own account, `unspoken.reasoning.system.System`.

Axes: B problems.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unspoken import distributed
from unspoken.evaluation.answering import answer_trees
from unspoken.placement import synchronize
from unspoken.reasoning.system import Answer, System
from unspoken.tasks import TreeProblems, TreeSearchTask

_SECONDS_ALONE = 10.0  # spent on problems one by one, at least; a large model answers few in that time


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Means a problem.

    Attributes:
        latent_steps: silent steps (for a coupled model: reasoning tokens).
        spoken_tokens: tokens of the answer, its end included.
        sequential_passes: forward passes that wait for one another, the prompt's included.
        flops: floating-point operations of prompt, chain and answer, see `System.flops`.
        seconds: wall-clock of a whole batch divided by its problems, and of one problem alone.
        parameters: of the whole system.
    """

    latent_steps: float
    spoken_tokens: float
    sequential_passes: float
    flops: float
    seconds_batched: float
    seconds_alone: float
    parameters: int


def timed(respond: Callable[[int, int, int], Answer], start: int, stop: int, batch_size: int) -> tuple[Answer, float]:
    """Answers of problems ``start`` to ``stop``, and the wall-clock of one of them."""
    synchronize()
    began = time.perf_counter()
    answers = respond(start, stop, batch_size)
    synchronize()
    return answers, (time.perf_counter() - began) / (stop - start)


def cost(
    respond: Callable[[int, int, int], Answer],
    problems: int,
    *,
    parameters: int,
    passes: Callable[[float, float], float],
    flops: Callable[[Answer], Tensor],
    batch_size: int,
    alone: int = 20,
) -> Cost:
    """Measure a way to answer.

    Args:
        respond: answers problems ``start`` to ``stop``, at most ``batch_size`` at once.
        problems: how many there are.
        parameters: of the whole system.
        passes: sequential passes of an answer, given mean latent steps and mean tokens.
        flops: floating-point operations ``[B]`` of answers.
        batch_size: for the batched time.
        alone: how many problems are also answered one by one, at most: enough are where they took ten seconds.
    """

    def answered() -> tuple[Answer, float, list[float]]:
        # These come first, since the first call of anything is slow, and the median does not mind.
        singles: list[float] = []
        while len(singles) < min(alone, problems) and sum(singles) < _SECONDS_ALONE:
            at = len(singles)
            singles.append(timed(respond, at, at + 1, 1)[1])
        return *timed(respond, 0, problems, batch_size), singles

    # Ranks that share a machine would slow each other down.
    answers, batched, singles = distributed.run_on_main(answered)
    steps = float(answers.chain.lengths.double().mean())
    tokens = float(answers.lengths.double().mean())
    return Cost(
        latent_steps=steps,
        spoken_tokens=tokens,
        sequential_passes=passes(steps, tokens),
        flops=float(flops(answers).mean()),
        seconds_batched=batched,
        seconds_alone=float(torch.tensor(singles).median()),
        parameters=parameters,
    )


def tree_cost(system: System, task: TreeSearchTask, problems: TreeProblems, *, batch_size: int) -> Cost:
    """Measure a system on tree-search problems."""

    def respond(start: int, stop: int, at_once: int) -> Answer:
        rows = TreeProblems(
            names_BM=problems.names_BM[start:stop],
            targets_BA=problems.targets_BA[start:stop],
            leaf_B=problems.leaf_B[start:stop],
            edges_BE=problems.edges_BE[start:stop],
        )
        return answer_trees(system, task, rows, at_once)

    return cost(
        respond,
        len(problems),
        parameters=system.parameters,
        passes=system.sequential_passes,
        flops=partial(system.flops, torch.tensor(task.prompt_length)),
        batch_size=batch_size,
    )
