"""What an answer costs: steps, words, sequential passes, floating-point operations, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from unspoken.evaluation.systems import Answers, System, answer
from unspoken.tasks import TreeProblems, TreeSearchTask


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Means a problem.

    Attributes:
        latent_steps: silent steps (for a coupled model: reasoning tokens).
        spoken_tokens: tokens of the answer, its end included.
        sequential_passes: forward passes that wait for one another, the prompt's included.
        flops: floating-point operations of matrix products, in a batch (rows that have stopped run on with it).
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


def cost(
    respond: Callable[[int, int, int], Answers],
    problems: int,
    *,
    parameters: int,
    spoken_passes: Callable[[float, float], float],
    batch_size: int,
    alone: int = 20,
) -> Cost:
    """Measure a way to answer.

    Args:
        respond: answers problems ``start`` to ``stop``, at most ``batch_size`` at once.
        problems: how many there are.
        parameters: of the whole system.
        spoken_passes: sequential passes of speaking, given mean latent steps and mean spoken tokens.
        batch_size: for the batched time.
        alone: how many problems are also answered one by one.
    """
    few = min(32, problems)
    with FlopCounterMode(display=False) as counter:
        respond(0, few, batch_size)
    flops = counter.get_total_flops() / few
    began = time.perf_counter()
    answers = respond(0, problems, batch_size)
    batched = (time.perf_counter() - began) / problems
    singles = []
    for index in range(min(alone, problems)):
        began = time.perf_counter()
        respond(index, index + 1, 1)
        singles.append(time.perf_counter() - began)
    steps = float(answers.chain.lengths.double().mean())
    words = float(answers.words.double().mean())
    return Cost(
        latent_steps=steps,
        spoken_tokens=words,
        sequential_passes=steps + spoken_passes(steps, words),
        flops=flops,
        seconds_batched=batched,
        seconds_alone=float(torch.tensor(singles).median()),
        parameters=parameters,
    )


def tree_cost(system: System, task: TreeSearchTask, problems: TreeProblems, *, batch_size: int) -> Cost:
    """Measure a system on tree-search problems."""

    def respond(start: int, stop: int, at_once: int) -> Answers:
        rows = TreeProblems(
            names_BM=problems.names_BM[start:stop],
            targets_BA=problems.targets_BA[start:stop],
            leaf_B=problems.leaf_B[start:stop],
            edges_BE=problems.edges_BE[start:stop],
        )
        return answer(system, task, rows, at_once)

    return cost(
        respond,
        len(problems),
        parameters=sum(parameter.numel() for parameter in system.model.parameters()),
        spoken_passes=lambda steps, _: system.spoken_passes(round(steps)),
        batch_size=batch_size,
    )
