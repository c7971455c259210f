"""What is served: a finished model of a run, and how text becomes its prompt and its tokens become text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unspoken.chain import LatentChain
from unspoken.machine import resolve_device
from unspoken.reasoning.picking import Sampler
from unspoken.reasoning.row import AnswerDecoding
from unspoken.reasoning.speakers import SameStack
from unspoken.reasoning.system import System
from unspoken.report.answers import answerable, locate, open_system
from unspoken.serving.batch import Job
from unspoken.tasks import TreeSearchTask
from unspoken.tasks.problems import ReasoningTask
from unspoken.tasks.prompt_format import PromptFormat


@dataclass(frozen=True, kw_only=True)
class Served:
    """A system behind the server; clients call it by its name.

    Attributes:
        system: what answers.
        answer_tokens: cap of an answer where a request names none.
        spell: a text and whether it is a chat's (else it stands for itself) to tokens; ValueError if the system's task
            cannot read it.
        text: tokens to text, their end left out.
    """

    system: System
    answer_tokens: int
    spell: Callable[[str, bool], Sequence[int]]
    text: Callable[[Sequence[int]], str]

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
            answer = system.say(chain, sample)
            tokens: list[int] = answer.tokens[0, : int(answer.lengths[0])].tolist()
            return tokens

        speaker: AnswerDecoding | Callable[[LatentChain], list[int]] = decode_chain
        if isinstance(system.speaker, SameStack):
            speaker = system.speaker.decoding(max_tokens, sample=sample)
        stop = system.speaker.stop_rule(system.stop, max_tokens)
        return Job((*prompt, *system.opening), stop, speaker)


def open_served(path: Path, *, seed: int = 0, stage: str | None = None, device: str | torch.device = "auto") -> Served:
    """Open a finished model.

    Args:
        path: a run folder, or the folder of one model.
        seed, stage: which model of a run folder; the last that speaks from latents by default.
        device: where it computes, see `unspoken.machine.resolve_device`.

    Raises:
        ValueError: there is no such model or device, or the model is damaged or names nothing that ends an answer.
    """
    recipe, folder = locate(path, seed, stage)
    task = answerable(recipe)
    system = open_system(recipe, folder, task, resolve_device(device))
    named = replace(system, name=f"{recipe.name}-{recipe.size}-{folder.parent.name}")
    if isinstance(task, TreeSearchTask):
        return served_trees(named, task)
    return served_questions(named, task, PromptFormat(tokenizer=recipe.tokenizer()))


def served_questions(system: System, task: ReasoningTask, prompt_format: PromptFormat) -> Served:
    """A system that answers word problems."""
    tokenizer = prompt_format.tokenizer

    def spell(text: str, chat: bool) -> Sequence[int]:
        question = task.parse(text)[0].question
        return prompt_format.prompt(question) if chat else prompt_format.encode(question)

    return Served(
        system=system,
        answer_tokens=system.max_tokens,
        spell=spell,
        text=lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True)),
    )


def served_trees(system: System, task: TreeSearchTask) -> Served:
    """A system that searches trees."""

    def spell(text: str, _chat: bool) -> Sequence[int]:
        ids: list[int] = task.prompts(task.parse(text))[0][0].tolist()
        return ids

    return Served(
        system=system,
        answer_tokens=2 * task.answer_length,
        spell=spell,
        text=lambda tokens: "".join(task.words(torch.tensor(tokens, dtype=torch.long))),
    )
