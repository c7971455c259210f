"""What is served: a system that reads text, under the name by which clients call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from unspoken.chain import LatentChain
from unspoken.reasoning.picking import Sample
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

    @cached_property
    def longest_token(self) -> int:
        """The most characters of a text that one token stands for, with a space before it.

        Tokens of bytes are written with one character a byte, so that none of them stands for more characters.
        """
        return 1 + max(map(len, self.system.texts.tokenizer.get_vocab()))

    def prompt(self, text: str, *, chat: bool) -> Sequence[int]:
        """A text as tokens.

        Args:
            chat: it is a user's turn; otherwise it stands for itself.

        Raises:
            ValueError: the system's task cannot read it.
        """
        texts = self.system.texts
        return texts.prompt(text) if chat else texts.continued(text)

    def chat(self, turns: Sequence[Mapping[str, str]]) -> Sequence[int]:
        """Turns of a chat, with ``role`` and ``content``, as tokens.

        Raises:
            ValueError: the system cannot read them.
        """
        return self.system.texts.chat(turns)

    def of_ids(self, ids: Sequence[int]) -> Sequence[int]:
        """A prompt that a client has tokenised; where a task reads problems, the text is read again.

        Raises:
            ValueError: there is no such token, or as `prompt`.
        """
        texts = self.system.texts
        if max(ids) >= len(texts.tokenizer):
            raise ValueError(f"there is no token {max(ids)}; the vocabulary has {len(texts.tokenizer)}")
        return list(ids) if texts.task is None else self.prompt(texts.decode(ids), chat=False)

    def tokens_that_fit(self, prompt: Sequence[int]) -> int | None:
        """The most tokens of an answer for which the model has positions; None if nothing limits them."""
        system = self.system
        if system.positions is None:
            return None
        return system.positions - len(prompt) - (system.steps_after_prompt(1) - 1)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, their end left out."""
        return self.system.texts.decode(tokens)

    def token_text(self, token: int) -> str:
        """One token as text, whatever it is."""
        return str(self.system.texts.tokenizer.decode([token]))

    def job(
        self, prompt: Sequence[int], max_tokens: int, sample: Sample | None = None, *, keep_chain: bool = False
    ) -> Job:
        """What the engine is to do for a prompt.

        Args:
            max_tokens: cap of the answer.
            sample: how its tokens are chosen; None takes the most likely ones.
            keep_chain: whether the job keeps its chain.

        Raises:
            ValueError: the system cannot choose tokens that way.
        """
        system = self.system
        if sample is not None and not system.speaker.samples:
            raise ValueError(
                f"{system.name} reads its answer off its chain and draws no tokens; leave temperature out or at 0, "
                "and logprobs out"
            )

        def decode_chain(chain: LatentChain) -> list[int]:
            answer = system.decode(chain, sample)
            tokens: list[int] = answer.tokens[0, : int(answer.lengths[0])].tolist()
            return tokens

        speaker: AnswerDecoding | Callable[[LatentChain], list[int]] = decode_chain
        if isinstance(system.speaker, SameStack):
            speaker = system.speaker.decoding(max_tokens, sample=sample)
        stop = system.speaker.stop_rule(system.stop, max_tokens)
        return Job((*prompt, *system.opening), stop, speaker, keep_chain=keep_chain)


def open_served(
    source: str | Path,
    *,
    seed: int = 0,
    stage: str | None = None,
    reasoning: str | None = None,
    device: str | torch.device = "auto",
) -> Served:
    """Open a model by the name of its run and stage.

    Args:
        source, seed, stage, reasoning, device: see `unspoken.runs.open_system`.

    Raises:
        ValueError: as `unspoken.runs.open_system`.
    """
    recipe, _ = locate(source, seed, stage)
    system = open_system(source, reasoning, seed=seed, stage=stage, device=device)
    run = "" if recipe is None else f"{recipe.name}-{recipe.size}-"
    return Served(system=replace(system, name=f"{run}{system.name}"))
