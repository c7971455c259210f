"""What is served: a finished model of a run, and how text becomes its prompt and its words become text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from unspoken.chain import LatentChain
from unspoken.evaluation.systems import System, load_model, system_of, words_said
from unspoken.evaluation.word_systems import ChainSpeaker, WordSystem, systems_of
from unspoken.machine import resolve_device
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.talker import Sampler
from unspoken.reasoning.causal_lm import CausalLMReasoner, ends_and_pad
from unspoken.reasoning.engine import AnswerDecoding, Reasoner, StopRule
from unspoken.report.answers import answerable, locate
from unspoken.serving.batch import Job
from unspoken.tasks import TreeSearchTask
from unspoken.tasks.problems import ReasoningTask
from unspoken.tasks.prompt_format import PromptFormat

# Of a prompt, the most words to say and how they are picked.
JobMaker = Callable[[Sequence[int], int, Sampler], Job]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A system behind the server.

    Attributes:
        name: what clients call it.
        method: what the engine runs.
        positions: the most tokens and latents that fit its stack; None if nothing limits them.
        answer_tokens: cap of an answer where a request names none.
        silent: its chain is not what it says; otherwise a step of the chain is a spoken token, and counts as one only.
        spell: a text and whether it is a chat's (else it stands for itself) to tokens; ValueError if the system's task
            cannot read it.
        job: a prompt, the most words to say and how they are picked, to what the engine does; ValueError if the system
            cannot pick words that way.
        text: words to text, their end left out.
    """

    name: str
    method: Reasoner
    positions: int | None
    answer_tokens: int
    silent: bool
    spell: Callable[[str, bool], Sequence[int]]
    job: JobMaker
    text: Callable[[Sequence[int]], str]


def open_served(path: Path, *, seed: int = 0, stage: str | None = None, device: str | torch.device = "auto") -> Served:
    """Open a finished model.

    Args:
        path: a run folder, or the folder of one model.
        seed, stage: which model of a run folder; the last that speaks from latents by default.
        device: where it computes, see `unspoken.machine.resolve_device`.

    Raises:
        ValueError: there is no such model or device, or the model is damaged.
    """
    recipe, folder = locate(path, seed, stage)
    task = answerable(recipe)
    model, stage = load_model(folder, device=resolve_device(device)), folder.parent.name
    name = f"{recipe.name}-{recipe.size}-{stage}"
    if isinstance(task, TreeSearchTask):
        return served_tree(model, task, name=name)
    prompt_format = PromptFormat(tokenizer=recipe.tokenizer())
    return served_words(systems_of(stage, model, prompt_format, recipe.evaluation.max_answer)[0], task, name=name)


def served_words(system: WordSystem, task: ReasoningTask, *, name: str) -> Served:
    """A system that answers word problems.

    Raises:
        ValueError: nothing is named that could end an answer.
    """
    prompt_format, tokenizer = system.prompt_format, system.prompt_format.tokenizer
    if isinstance(system.reasoner, ChainSpeaker):
        method, job = _said_by_another(system.reasoner.system, name, system.reasoner.open_ids)
    else:
        method, job = system.reasoner, _said_by_itself(system.reasoner)

    def spell(text: str, chat: bool) -> Sequence[int]:
        question = task.parse(text).question
        return prompt_format.prompt(question) if chat else prompt_format.encode(question)

    return Served(
        name=name,
        method=method,
        positions=_positions(method),
        answer_tokens=system.max_answer,
        silent=True,
        spell=spell,
        job=job,
        text=lambda words: str(tokenizer.decode(list(words), skip_special_tokens=True)),
    )


def served_tree(model: PreTrainedModel, task: TreeSearchTask, *, name: str) -> Served:
    """A system that searches trees: pair, Reasoner alone, or the coupled baseline."""
    method, job = _said_by_another(system_of(model), name)

    def spell(text: str, _chat: bool) -> Sequence[int]:
        ids: list[int] = task.encode(task.parse(text))["input_ids"][0, : task.prompt_length].tolist()
        return ids

    return Served(
        name=name,
        method=method,
        positions=_positions(method),
        answer_tokens=2 * task.answer_length,
        silent=not isinstance(method, CoupledReasoner),
        spell=spell,
        job=job,
        text=lambda words: "".join(task.words(torch.tensor(words, dtype=torch.long))),
    )


def _said_by_itself(reasoner: CausalLMReasoner) -> JobMaker:
    """Jobs of a stack that thinks and then speaks."""
    settings = reasoner.settings
    ends, pad = ends_and_pad(reasoner.model.generation_config)

    def job(prompt: Sequence[int], max_tokens: int, sampler: Sampler) -> Job:
        decoding = AnswerDecoding(
            marker=settings.end_ids,
            max_tokens=max_tokens,
            end_ids=ends,
            pad_id=pad,
            pick=(lambda _rows, _said, scores: sampler(scores[:, None])[:, 0]) if sampler.temperature else None,
        )
        stop = StopRule(max_latents=settings.max_latents, fixed=settings.fixed)
        return Job(prompt=(*prompt, *settings.open_ids), stop=stop, speak=decoding)

    return job


def _said_by_another(system: System, name: str, opened: tuple[int, ...] = ()) -> tuple[Reasoner, JobMaker]:
    """The stack that writes a system's chains, and jobs whose finished chain is said by a Talker or a table."""
    model: Any = system.model
    end: int = model.config.eos_token_id
    draws = isinstance(model, JepaReasonerForCausalLM)
    if draws:
        method = model.reasoner
    elif isinstance(model, JepaReasonerModel):
        method = model
    else:
        method = CoupledReasoner(model=model, end_id=end, pad_id=model.config.pad_token_id)

    def job(prompt: Sequence[int], max_tokens: int, sampler: Sampler) -> Job:
        if sampler.temperature and not draws:
            raise ValueError(f"{name} says its most likely answer and draws none; leave temperature out or set it to 0")

        def speak(chain: LatentChain) -> list[int]:
            if sampler.temperature:
                said = model.speak(chain, temperature=sampler.temperature, generator=sampler.generator)
            else:
                said = system.speak(chain)
            words: list[int] = said[0, : int(words_said(said, end)[0])].tolist()
            return words

        return Job(prompt=(*prompt, *opened), stop=StopRule(max_latents=max_tokens), speak=speak)

    return method, job


def _positions(method: Reasoner) -> int | None:
    limit: int | None = getattr(method.stack.config, "max_position_embeddings", None)
    return limit
