"""The smallest recipe on the grammar that trains every kind of stage, and systems whose answers are planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tiny_models import tiny_language_model, tiny_pair
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.evaluation.answering import answer
from unspoken.evaluation.seeds import capped
from unspoken.methods import catalogue
from unspoken.probes.probe import View
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.reasoning.system import Answer, System
from unspoken.tasks.context_free import EOS
from unspoken.tasks.grammar import GrammarConfig
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training.recipe import Recipe, parse

KINDS = ("coupled", "coconut", "reasoner", "mono", "dual")
TASK = GrammarConfig(levels=3, rules=3, steps=4).build()

TEXT = """
name: strings
size: tiny
precision: fp32
attention: eager
task: {kind: grammar, levels: 3, rules: 3, steps: 4}
backbone: {hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 2, heads: 2, initializer_range: 0.3}
talker: {variant: dual, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
stages:
  - {name: pretrain, objective: {kind: next_token}, steps: 3, evaluate_every: 3, batch_size: 8}
  - name: sst
    start: pretrain
    blocks: 1
    objective: {kind: sst, positions: all}
    steps: 2
    evaluate_every: 1
    batch_size: 8
  - {name: talker, start: sst, objective: {kind: talker}, steps: 2, evaluate_every: 2, batch_size: 8}
  - name: talker_mono
    start: sst
    objective: {kind: talker}
    talker: {variant: mono, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
    steps: 2
    evaluate_every: 2
    batch_size: 8
  - name: coupled
    start: pretrain
    objective: {kind: next_token}
    steps_of: [sst, talker]
    evaluate_every: 4
    batch_size: 8
  - name: coconut
    start: pretrain
    objective: {kind: coconut, replaced: 2, latents_per_step: 1}
    steps_of: [sst, talker]
    evaluate_every: 4
    batch_size: 8
evaluation: {problems: 8, validation_problems: 7, batch_size: 5}
threads: 1
"""


def tiny_strings(*overrides: str) -> Recipe:
    """That recipe, changed by dotted overrides."""
    return parse(TEXT, "tiny_strings", overrides)


def string_system(kind: str) -> System:
    """A system with lively random weights that continues strings."""
    if kind in ("mono", "dual"):
        system = catalogue.systems(tiny_pair(kind), stage=kind, max_answer=4)[0]
    elif kind == "reasoner":
        system = catalogue.systems(tiny_pair("mono").reasoner, stage=kind, max_answer=4)[0]
    else:
        model = tiny_language_model("unspoken")
        if kind == "coconut":
            how: Any = {"open_ids": (EOS,), "end_ids": (EOS,), "feed": "hidden", "max_latents": 2, "fixed": True}
            LatentGenerationConfig(**how).attach(model)
            model.generation_config.eos_token_id = EOS
        system = catalogue.systems(model, stage=kind, max_answer=4)[0]
    return capped(system, TASK.traits)


@dataclass(frozen=True, kw_only=True)
class Planted(System):
    """Answers by a function of the prompts and of the chain, if one is given; its own chain is zeros."""

    reply: Callable[[Tensor, LatentChain | None], Tensor]

    def respond(self, input_ids: Tensor, attention_mask: Tensor | None = None, **request: Any) -> Answer:
        chain = request.get("chain")
        tokens = self.reply(input_ids, chain)[:, : self.max_tokens]
        if chain is None:
            mask = torch.ones(tokens.shape, dtype=torch.bool)
            chain = LatentChain(
                latents=torch.zeros(*tokens.shape, 16),
                mask=mask,
                stop=torch.full((len(tokens),), StopReason.FIXED),
            )
        return Answer(chain=chain, tokens=tokens, lengths=torch.full((len(tokens),), tokens.shape[1]))


def planted(
    reply: Callable[[Tensor, LatentChain | None], Tensor], *, name: str = "planted", replaced: int = 0
) -> System:
    """A system that answers by a function."""
    base = string_system("reasoner")
    fields = {key: getattr(base, key) for key in base.__dataclass_fields__}
    return Planted(**fields | {"name": name, "replaced": replaced}, reply=reply).of_length(TASK.config.steps - replaced)


def string_view(system: System, problems: int = 8, *, batch_size: int = 8, seed: int = 0) -> View:
    """A system and its answers to the first test strings."""
    test, prompt_format = TASK.sample("test", np.arange(problems)), PromptFormat(tokenizer=TASK.tokenizer)
    return View(
        system=system,
        task=TASK,
        problems=test,
        answers=answer(system, TASK, test, prompt_format, batch_size=batch_size),
        prompt_format=prompt_format,
        batch_size=batch_size,
        seed=seed,
    )


def right_symbols(problems: int = 8) -> Tensor:
    """The right answers to the first test strings."""
    return TASK.answers(TASK.sample("test", np.arange(problems)))
