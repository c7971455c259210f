"""What an answer costs: steps, words, sequential passes, floating-point operations, seconds.

Axes: B problems, V vocabulary, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unspoken import distributed
from unspoken.chain import StopReason
from unspoken.evaluation.systems import Answers, System, answer
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.talker import DualTalker, MonoTalker
from unspoken.placement import synchronize
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.tasks import TreeProblems, TreeSearchTask

_SECONDS_ALONE = 10.0  # spent on problems one by one, at least; a large model answers few in that time


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Means a problem.

    Attributes:
        latent_steps: silent steps (for a coupled model: reasoning tokens).
        spoken_tokens: tokens of the answer, its end included.
        sequential_passes: forward passes that wait for one another, the prompt's included.
        flops: floating-point operations of prompt, chain and words, see `answer_flops`.
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


# --- floating-point operations -----------------------------------------------------------------------------------


def multiplied(module: nn.Module) -> int:
    """Weights of a module that every position is multiplied with: of its linear layers, not of its tables."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear | Conv1D))


def attention_width(config: Any) -> int:
    """Width of the queries of all blocks together."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers * config.num_attention_heads * head)


def stack_flops(stack: Any, positions: Any, *, causal: bool = True) -> Any:
    """Floating-point operations of running positions, numbers or ``[B]``, through the blocks, each once."""
    seen = (positions + 1) / 2 if causal else positions
    return positions * (2 * multiplied(stack) + 4 * attention_width(stack.config) * seen)


def talker_flops(talker: MonoTalker | DualTalker, latents: Any) -> Any:
    """Floating-point operations of saying chains, a word a latent; a Dual-Talker's as with a cache."""
    config = talker.decoder.config
    if isinstance(talker, MonoTalker):
        head = latents * 2 * config.hidden_size * config.vocab_size
        return stack_flops(talker.decoder, latents, causal=config.is_causal) + head
    head = latents * 2 * config.hidden_size * talker.start_id  # the start token is never said
    across = latents * latents * 4 * attention_width(config)
    return stack_flops(talker.encoder, latents, causal=False) + stack_flops(talker.decoder, latents) + across + head


def answer_flops(
    model: PreTrainedModel, prompt: Tensor, answers: Answers, settings: LatentGenerationConfig | None = None
) -> Tensor:
    """Floating-point operations ``[B]`` of answers, each as if it were given alone and with a cache.

    Counted are two for every weight of a linear layer and position that goes through it; four for every attention
    channel and pair of a position and one that it sees (scores and weighted sum); and two for every weight of the head
    (of a JEPA-Reasoner: of the table that ends its chain) at each step that is scored. Not counted are look-ups in
    tables, norms, activations, softmax and the mixing of a few rows, nor what a batch adds: padding, and rows that run
    on until the last one ends.

    Args:
        prompt: tokens that are read, ``[B]`` or the same for all.
        settings: of a model that thinks and then speaks with one stack, markers around its chain; without them the
            chain is the answer, or a Talker says it.
    """
    latents, words = answers.chain.lengths, torch.zeros_like(answers.chain.lengths)
    scored = latents
    if settings is not None:
        prompt, words = prompt + len(settings.open_ids) + len(settings.end_ids), answers.words
        unscored = settings.fixed and settings.feed == "hidden"
        thought = torch.zeros_like(latents) if unscored else latents + (answers.chain.stop == StopReason.END)
        # A superposition of the whole vocabulary is a product with the table as large as the scores.
        scored = words + thought * (2 if settings.top_k is None and settings.feed == "superposition" else 1)
    steps = (prompt + latents + words - 1).double()  # the last token said is never read
    if isinstance(model, JepaReasonerForCausalLM):
        reasoner, spoken = model.reasoner, talker_flops(model.talker, latents.double())
    else:
        reasoner, spoken = model, 0.0
    if isinstance(reasoner, JepaReasonerModel):
        stack, head = reasoner.backbone, reasoner.target_table.numel()
    else:
        stack, head = model.base_model, model.get_output_embeddings().weight.numel()
    found: Tensor = stack_flops(stack, steps) + 2 * head * scored.double() + spoken
    return found


# --- the whole ---------------------------------------------------------------------------------------------------


def timed(respond: Callable[[int, int, int], Answers], start: int, stop: int, batch_size: int) -> tuple[Answers, float]:
    """Answers of problems ``start`` to ``stop``, and the wall-clock of one of them."""
    synchronize()
    began = time.perf_counter()
    answers = respond(start, stop, batch_size)
    synchronize()
    return answers, (time.perf_counter() - began) / (stop - start)


def cost(
    respond: Callable[[int, int, int], Answers],
    problems: int,
    *,
    parameters: int,
    spoken_passes: Callable[[float, float], float],
    flops: Callable[[Answers], Tensor],
    batch_size: int,
    alone: int = 20,
) -> Cost:
    """Measure a way to answer.

    Args:
        respond: answers problems ``start`` to ``stop``, at most ``batch_size`` at once.
        problems: how many there are.
        parameters: of the whole system.
        spoken_passes: sequential passes of speaking, given mean latent steps and mean spoken tokens.
        flops: `answer_flops` of all problems.
        batch_size: for the batched time.
        alone: how many problems are also answered one by one, at most: enough are where they took ten seconds.
    """

    def answered() -> tuple[Answers, float, list[float]]:
        # These come first, since the first call of anything is slow, and the median does not mind.
        singles: list[float] = []
        while len(singles) < min(alone, problems) and sum(singles) < _SECONDS_ALONE:
            at = len(singles)
            singles.append(timed(respond, at, at + 1, 1)[1])
        return *timed(respond, 0, problems, batch_size), singles

    # Ranks that share a machine would slow each other down.
    answers, batched, singles = distributed.run_on_main(answered)
    steps = float(answers.chain.lengths.double().mean())
    words = float(answers.words.double().mean())
    return Cost(
        latent_steps=steps,
        spoken_tokens=words,
        sequential_passes=steps + spoken_passes(steps, words),
        flops=float(flops(answers).mean()),
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
        flops=lambda answers: answer_flops(system.model, torch.tensor(task.prompt_length), answers),
        batch_size=batch_size,
    )
