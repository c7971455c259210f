"""What an answer costs: steps, tokens, sequential passes, floating-point operations, seconds.

Passes and operations are a system's own account, `unspoken.reasoning.system.System`.

Axes: B problems.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unspoken import distributed
from unspoken.evaluation.outcomes import TIMED
from unspoken.placement import synchronize
from unspoken.reasoning.system import Answer, System
from unspoken.tasks.task import Problems

_ALONE = 20  # of those timed, this many one by one, at most
_SECONDS_ALONE = 10.0  # spent on problems one by one, at least; a large model answers few in that time
Respond = Callable[[Problems, int], object]  # answers problems, at most so many at once


def counted(system: System, prompt_lengths: Int[Tensor, " *B"], answer: Answer) -> dict[str, float]:
    """Means per problem of what is counted, whatever the machine.

    Args:
        prompt_lengths: tokens of the prompts, ``[B]`` or the same for all.

    Returns:
        ``latent_steps`` (of a coupled model: reasoning tokens), ``markers`` (tokens around the chain that are appended
        by force), ``spoken_tokens`` (of the answer, its end included), ``sequential_passes`` (forward passes that wait
        for one another, the prompt's included), ``latent_positions`` (latents in all passes that read them, more than
        the steps where these are refined together) and ``flops`` (of prompt, chain and answer, see `System.flops`).
    """
    steps, tokens = (float(lengths.double().mean()) for lengths in (answer.chain.lengths, answer.lengths))
    return {
        "latent_steps": steps,
        "markers": float(system.markers),
        "spoken_tokens": tokens,
        "sequential_passes": system.sequential_passes(steps, tokens),
        "latent_positions": float(system.latent_positions(steps)),
        "flops": float(system.flops(prompt_lengths, answer).mean()),
    }


def seconds(respond: Respond, problems: Problems, batch_size: int, *, alone: bool) -> dict[str, float]:
    """Time per problem: ``seconds_batched`` and, if asked for, ``seconds_alone``, the median of single problems.

    The first `TIMED` problems are taken. One rank measures, since ranks that share a machine would slow each other.
    """

    def clocked(rows: slice, at_once: int) -> float:
        some = problems.select(np.arange(len(problems))[rows])
        synchronize()
        began = time.perf_counter()
        respond(some, at_once)
        synchronize()
        return (time.perf_counter() - began) / len(some)

    def measured() -> dict[str, float]:
        # Timed first: the first call of anything is slow, which changes a median little.
        singles: list[float] = []
        while alone and len(singles) < min(_ALONE, len(problems)) and sum(singles) < _SECONDS_ALONE:
            singles.append(clocked(slice(len(singles), len(singles) + 1), 1))
        taken = {"seconds_batched": clocked(slice(TIMED), batch_size)}
        return taken | ({"seconds_alone": float(torch.tensor(singles).median())} if singles else {})

    return distributed.run_on_main(measured)
