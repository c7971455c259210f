"""What an answer costs: steps, words, sequential passes, floating-point operations, seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from unspoken.evaluation.systems import System, answer
from unspoken.tasks import TreeProblems, TreeSearchTask
from unspoken.tasks.tree_search import EOS


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


def cost(system: System, task: TreeSearchTask, problems: TreeProblems, *, batch_size: int, alone: int = 20) -> Cost:
    """Measure a system on some problems.

    Args:
        batch_size: for the batched time.
        alone: how many problems are also answered one by one.
    """

    def rows(start: int, stop: int) -> TreeProblems:
        return TreeProblems(
            names_BM=problems.names_BM[start:stop],
            targets_BA=problems.targets_BA[start:stop],
            leaf_B=problems.leaf_B[start:stop],
            edges_BE=problems.edges_BE[start:stop],
        )

    few = rows(0, min(32, len(problems)))
    with FlopCounterMode(display=False) as counter:
        answer(system, task, few, batch_size)
    flops = counter.get_total_flops() / len(few)
    began = time.perf_counter()
    answers = answer(system, task, problems, batch_size)
    batched = (time.perf_counter() - began) / len(problems)
    singles = []
    for index in range(min(alone, len(problems))):
        began = time.perf_counter()
        answer(system, task, rows(index, index + 1), 1)
        singles.append(time.perf_counter() - began)
    steps = float(answers.chain.lengths.double().mean())
    ends = ((answers.spoken == EOS).cumsum(dim=1) == 0).sum(dim=1) + 1
    return Cost(
        latent_steps=steps,
        spoken_tokens=float(ends.clamp(max=answers.spoken.shape[1]).double().mean()),
        sequential_passes=steps + system.spoken_passes(round(steps)),
        flops=flops,
        seconds_batched=batched,
        seconds_alone=float(torch.tensor(singles).median()),
        parameters=sum(parameter.numel() for parameter in system.model.parameters()),
    )
