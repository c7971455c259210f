"""Anything that answers word problems, seen from outside.

Axes: B batch, T prompt tokens, N latent steps, M spoken tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from unspoken import distributed
from unspoken.backbone.checks import right
from unspoken.chain import LatentChain
from unspoken.evaluation.measure import SeedModels
from unspoken.evaluation.systems import Answers, System, load_model, nearest_row, system_of, words_said
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule
from unspoken.tasks.problems import ReasoningProblem, ReasoningTask, graded
from unspoken.tasks.prompt_format import PromptFormat

SOFT_THINKING = "soft thinking"


@dataclass(frozen=True, kw_only=True)
class ChainSpeaker:
    """A system that finishes its chain and then says it, one token a latent: JEPA-Reasoner with or without a Talker.

    Its chain stands for everything behind the open marker: explicit steps, end marker and answer.
    """

    system: System
    max_latents: int

    @property
    def model(self) -> PreTrainedModel:
        """What is loaded."""
        return self.system.model

    @property
    def open_ids(self) -> tuple[int, ...]:
        """What stands between a prompt and its first latent."""
        return tuple(self.model.config.open_ids or ())

    def respond(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Tensor | None = None,
        *,
        max_tokens: int,
        given: LatentChain | None = None,
        forced: tuple[int, ...] = (),
    ) -> tuple[LatentChain, Int[Tensor, "B M"]]:
        """Reason and answer; the arguments are those of `CausalLMReasoner.respond`.

        Raises:
            ValueError: words are forced, which a Talker without token input cannot be.
        """
        if forced:
            raise ValueError("no words can be put in front of an answer that is read off a finished chain")
        opened = torch.tensor(self.open_ids, device=input_ids.device).expand(len(input_ids), -1)
        mask = None if attention_mask is None else torch.cat([attention_mask, torch.ones_like(opened)], dim=1)
        ids = torch.cat([input_ids, opened], dim=1)
        stop = StopRule(max_latents=self.max_latents)
        chain = self.system.reason(ids, mask, stop) if given is None else given
        return chain, self.system.speak(chain)[:, :max_tokens]


@dataclass(frozen=True, kw_only=True)
class WordSystem:
    """A named way to answer word problems.

    Attributes:
        max_answer: most tokens that it says.
    """

    name: str
    reasoner: CausalLMReasoner | ChainSpeaker
    prompt_format: PromptFormat
    max_answer: int

    @property
    def settings(self) -> LatentGenerationConfig | None:
        """How a causal language model thinks; None for a JEPA-Reasoner."""
        return self.reasoner.settings if isinstance(self.reasoner, CausalLMReasoner) else None

    @property
    def explicit(self) -> bool:
        """Its chain is made of tokens: a chain of thought, said where others keep silent."""
        how = self.settings
        return how is not None and how.max_latents > 0 and how.top_k == 1 and how.feed == "superposition"

    @property
    def markers(self) -> int:
        """Tokens that are said for it around the chain."""
        if isinstance(self.reasoner, ChainSpeaker):
            return len(self.reasoner.open_ids)
        return len(self.prompt_format.markers.open) + len(self.prompt_format.markers.end)

    def spoken_passes(self, steps: float, words: float) -> float:
        """Sequential forward passes of speaking, given latent steps and spoken tokens."""
        if isinstance(self.reasoner, ChainSpeaker):
            return self.reasoner.system.spoken_passes(round(steps))
        return self.markers + words

    @torch.no_grad()
    def answer(
        self,
        problems: Sequence[ReasoningProblem],
        batch_size: int,
        *,
        given: LatentChain | None = None,
        box: bool = False,
    ) -> Answers:
        """Answer problems, from their own chains or from given ones; ``box`` says the start of the answer for it."""
        end = int(self.prompt_format.tokenizer.eos_token_id)

        def respond(rows: Tensor) -> tuple[LatentChain, Tensor, list[str]]:
            ids, mask = self.prompt_format.prompts([problems[row] for row in rows.tolist()])
            chain, spoken = self.reasoner.respond(
                ids,
                mask,
                max_tokens=self.max_answer,
                given=None if given is None else given.select(rows),
                forced=self.prompt_format.box if box else (),
            )
            padded = torch.nn.functional.pad(spoken, (0, self.max_answer - spoken.shape[1]), value=end)
            return chain, padded, [("\\boxed{" if box else "") + text for text in self.prompt_format.decode(spoken)]

        batches = torch.arange(len(problems)).split(batch_size)
        chains, said, written = zip(*distributed.map_over_ranks(batches, respond), strict=True)
        spoken = torch.cat(said)
        return Answers(
            chain=LatentChain.concatenate(list(chains)),
            spoken=spoken,
            words=words_said(spoken, end),
            correct=torch.from_numpy(graded([text for texts in written for text in texts], problems)),
        )


def systems_of(stage: str, model: PreTrainedModel, prompt_format: PromptFormat, max_answer: int) -> list[WordSystem]:
    """What a stage's model can do.

    It reasons as it was taught. Taught explicit chains, it also thinks softly where it takes superpositions; and the
    chain of a JEPA-Reasoner can be read by its nearest table rows instead of by its Talker.
    """
    if isinstance(model, JepaReasonerForCausalLM | JepaReasonerModel):
        named = {stage: system_of(model)}
        if isinstance(model, JepaReasonerForCausalLM):
            named[f"{stage}, nearest row"] = nearest_row(model.reasoner)
        cap = model.config.max_latents
        return [
            WordSystem(
                name=name,
                reasoner=ChainSpeaker(system=system, max_latents=cap),
                prompt_format=prompt_format,
                max_answer=cap,
            )
            for name, system in named.items()
        ]
    settings = LatentGenerationConfig.of(model)
    found = {stage: settings}
    if settings.top_k == 1 and settings.max_latents and right(model, "superpositions"):
        found[SOFT_THINKING if stage == "cot" else f"{stage}, {SOFT_THINKING}"] = replace(settings, top_k=10)
    return [
        WordSystem(
            name=name,
            reasoner=CausalLMReasoner(model=model, settings=how),
            prompt_format=prompt_format,
            max_answer=max_answer,
        )
        for name, how in found.items()
    ]


def each_system(
    seeds: Sequence[SeedModels], prompt_format: PromptFormat, max_answer: int
) -> Iterator[tuple[SeedModels, WordSystem]]:
    """Every system of every final stage, seed by seed; one model is in memory at a time."""
    for entry in seeds:
        for stage, folder in entry.final.items():
            for system in systems_of(stage, load_model(folder, device=entry.device), prompt_format, max_answer):
                yield entry, system


def problems_of(task: ReasoningTask, test: str, most: int) -> list[ReasoningProblem]:
    """The first problems of a test set; a smaller set is used whole."""
    return task.sample(test, np.arange(min(most, task.size(test) or most)))
