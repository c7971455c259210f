"""A very small model that answers made-up word problems, and the task it belongs to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_models import tiny_language_model
from torch import Tensor

from unspoken.evaluation.answering import answer
from unspoken.probes.probe import View
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.system import System
from unspoken.tasks.arithmetic import ArithmeticConfig
from unspoken.tasks.prompt_format import PromptFormat, TextFormat

TASK = ArithmeticConfig(steps=(1, 2, 3), largest=20).build()
PROMPT_FORMAT = PromptFormat(tokenizer=TASK.tokenizer)
TEXT_FORMAT = TextFormat(prompt_format=PROMPT_FORMAT, trained_on=TASK.config)


def tiny_word_system(family: str = "unspoken", **settings: Any) -> System:
    """An untrained system named after its family."""
    model = tiny_language_model(family, vocab_size=len(TASK.tokenizer), max_position_embeddings=160)
    markers = PROMPT_FORMAT.markers
    how = {"open_ids": markers.open, "end_ids": markers.end, "top_k": 5, "max_latents": 6, **settings}
    system = causal_lm_system(model, LatentGenerationConfig(**how), name=family, max_tokens=3)
    return replace(system, text_format=TEXT_FORMAT)


def word_view(system: System, problems: int = 6, *, batch_size: int = 4, **rest: Any) -> View:
    """A system and its answers to the first test problems."""
    test = TASK.sample("test", range(problems))
    return View(
        system=system,
        task=TASK,
        problems=test,
        answers=answer(system, TASK, test, PROMPT_FORMAT, batch_size=batch_size),
        prompt_format=PROMPT_FORMAT,
        batch_size=batch_size,
        **{"seed": 0, **rest},
    )


def saved(system: System, folder: Path) -> Path:
    """The folder in which the system's model and settings are saved."""
    assert isinstance(system.reasoner, CausalLMReasoner)
    system.reasoner.settings.attach(system.model)
    system.model.save_pretrained(folder)
    return folder


def table_rows(system: System) -> Tensor:
    """The rows of the system's embedding table."""
    rows: Tensor = system.model.get_input_embeddings().weight.detach()
    return rows
