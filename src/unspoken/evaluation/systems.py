"""Anything that answers problems: a way to reason and a way to speak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from unspoken import distributed
from unspoken.backbone import UnspokenForCausalLM
from unspoken.backbone.checks import require
from unspoken.backbone.loading import load_config, load_pretrained
from unspoken.chain import LatentChain
from unspoken.evaluation.outcomes import COUPLED, PAIR
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.placement import CPU
from unspoken.reasoning.engine import StopRule
from unspoken.tasks import TreeProblems, TreeSearchTask
from unspoken.tasks.tree_search import EOS


@dataclass(frozen=True, kw_only=True)
class System:
    """A method, seen from outside.

    Attributes:
        name: for tables.
        model: what is loaded; its parameters are counted.
        reason: prompts to chain.
        speak: chain to tokens ``[B, N]``.
        spoken_passes: sequential forward passes of speaking, given the number of steps.
    """

    name: str
    model: PreTrainedModel
    reason: Callable[[Tensor, Tensor | None, StopRule], LatentChain]
    speak: Callable[[LatentChain], Tensor]
    spoken_passes: Callable[[int], int]


def coupled(model: PreTrainedModel, *, end_id: int, pad_id: int, name: str = COUPLED) -> System:
    """The Transformer that reasons in the tokens it speaks."""
    reasoner = CoupledReasoner(model=model, end_id=end_id, pad_id=pad_id)
    return System(name=name, model=model, reason=reasoner.reason, speak=reasoner.speak, spoken_passes=lambda _: 0)


def nearest_row(model: JepaReasonerModel, *, name: str = "reasoner, nearest row") -> System:
    """The Talker-free control: the nearest table row of each latent."""
    return System(name=name, model=model, reason=model.reason, speak=model.read_out, spoken_passes=lambda _: 0)


def pair(model: JepaReasonerForCausalLM, *, name: str = PAIR) -> System:
    """Reasoner and Talker."""
    mono = model.config.talker_kind == "mono"
    return System(
        name=name,
        model=model,
        reason=model.reason,
        speak=model.speak,
        spoken_passes=lambda steps: 1 if mono else 1 + steps,
    )


def load_model(
    folder: Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    attention: Literal["eager", "sdpa"] | None = None,
) -> PreTrainedModel:
    """The model of a finished stage, in evaluation mode.

    Args:
        folder: what the stage published.
        device: where it goes.
        dtype: of the weights.
        attention: by default the one that is fastest for prompts below about 200 tokens: plain attention on a CPU, the
            fused kernel elsewhere.

    Raises:
        ValueError: as `load_pretrained`: a file was changed or is damaged, or the weights are not those of the model;
            or JEPA-Reasoner is wrong around its backbone.
    """
    transformers_logging.disable_progress_bar()
    config = load_config(folder)
    alone = isinstance(config, JepaReasonerConfig) and config.talker_config is None
    auto: Any = AutoModel if alone else AutoModelForCausalLM
    kernel = attention or ("eager" if device.type == "cpu" else "sdpa")
    model: Any = load_pretrained(folder, auto, dtype=dtype, attn_implementation=kernel)
    if isinstance(model, JepaReasonerForCausalLM | JepaReasonerModel):
        require((model if alone else model.reasoner).backbone, "JEPA-Reasoner")
    placed: PreTrainedModel = model.to(device).eval()
    return placed


def system_name(model: PreTrainedModel, stage: str) -> str:
    """What a finished stage is called in tables: the pair by its method, any other model by its stage."""
    return PAIR if isinstance(model, JepaReasonerForCausalLM) else stage


def system_of(model: PreTrainedModel, name: str | None = None) -> System:
    """The system that a stage's model makes."""
    if isinstance(model, JepaReasonerForCausalLM):
        return pair(model) if name is None else pair(model, name=name)
    if isinstance(model, JepaReasonerModel):
        return nearest_row(model) if name is None else nearest_row(model, name=name)
    assert isinstance(model, UnspokenForCausalLM)
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    assert isinstance(end, int) and isinstance(pad, int)
    return coupled(model, end_id=end, pad_id=pad, name=name or COUPLED)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a system thought and said about some problems, and whether it was right.

    Attributes:
        spoken: ``[B, N]`` tokens.
        words: ``[B]``, how many of them were said, the end included.
    """

    chain: LatentChain
    spoken: Tensor
    words: Tensor
    correct: Tensor


def words_said(spoken: Tensor, end: int) -> Tensor:
    """Tokens that each row ``[B, N]`` said, its first end included."""
    return (((spoken == end).cumsum(dim=1) == 0).sum(dim=1) + 1).clamp(max=spoken.shape[1])


@torch.no_grad()
def answer(system: System, task: TreeSearchTask, problems: TreeProblems, batch_size: int) -> Answers:
    """Let a system answer problems and grade it.

    The cap is twice the longest right answer, so that a chain that does not stop in time is seen.
    """
    prompts = task.encode(problems)["input_ids"][:, : task.prompt_length]
    stop = StopRule(max_latents=2 * task.answer_length)

    def respond(part: Tensor) -> tuple[LatentChain, Tensor]:
        chain = system.reason(part, None, stop)
        return chain, system.speak(chain)

    chains, spoken = zip(*distributed.map_over_ranks(prompts.split(batch_size), respond), strict=True)
    chain = LatentChain.concatenate(list(chains))
    width = chain.mask.shape[1]
    padded = torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in spoken])
    return Answers(chain=chain, spoken=padded, words=words_said(padded, EOS), correct=task.grade(padded, problems))
