"""What is served: a system that reads text, under the name by which clients call it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unspoken.chain import LatentChain
from unspoken.reasoning.picking import Sampler
from unspoken.reasoning.row import AnswerDecoding
from unspoken.reasoning.speakers import SameStack
from unspoken.reasoning.system import System
from unspoken.runs import locate, open_system
from unspoken.serving.batch import Job


@dataclass(frozen=True, kw_only=True)
class Served:
    """A system behind the server; clients call it by its name.

    Attributes:
        system: what answers; it must have a text format.
    """

    system: System

    @property
    def answer_tokens(self) -> int:
        """Cap of an answer where a request names none."""
        return self.system.max_tokens

    def prompt(self, text: str, *, chat: bool) -> Sequence[int]:
        """A text as tokens.

        Args:
            chat: it is a user's turn; otherwise it stands for itself.

        Raises:
            ValueError: the system's task cannot read it.
        """
        texts = self.system.texts
        return texts.prompt(text) if chat else texts.continued(text)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, their end left out."""
        return self.system.texts.decode(tokens)

    def job(self, prompt: Sequence[int], max_tokens: int, sampler: Sampler) -> Job:
        """What the engine is to do for a prompt.

        Args:
            max_tokens: cap of the answer.
            sampler: how its tokens are chosen.

        Raises:
            ValueError: the system cannot choose tokens that way.
        """
        system, sample = self.system, sampler if sampler.temperature else None
        if sample is not None and not system.speaker.samples:
            raise ValueError(
                f"{system.name} says its most likely answer and draws none; leave temperature out or set it to 0"
            )

        def decode_chain(chain: LatentChain) -> list[int]:
            answer = system.decode(chain, sample)
            tokens: list[int] = answer.tokens[0, : int(answer.lengths[0])].tolist()
            return tokens

        speaker: AnswerDecoding | Callable[[LatentChain], list[int]] = decode_chain
        if isinstance(system.speaker, SameStack):
            speaker = system.speaker.decoding(max_tokens, sample=sample)
        stop = system.speaker.stop_rule(system.stop, max_tokens)
        return Job((*prompt, *system.opening), stop, speaker)


def open_served(
    source: str | Path, *, seed: int = 0, stage: str | None = None, device: str | torch.device = "auto"
) -> Served:
    """Open a model by the name of its run and stage.

    Args:
        source, seed, stage, device: see `unspoken.runs.open_system`.

    Raises:
        ValueError: as `unspoken.runs.open_system`.
    """
    system, (recipe, _) = open_system(source, seed=seed, stage=stage, device=device), locate(source, seed, stage)
    run = "" if recipe is None else f"{recipe.name}-{recipe.size}-"
    return Served(system=replace(system, name=f"{run}{system.name}"))
