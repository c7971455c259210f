"""A tiny model as on the hub, a recipe with a stage for every method, and the model as plain transformers runs it."""

from __future__ import annotations

import json
import string
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import VOCABULARY, tiny_model
from tiny_recipe import built, collated
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import Spans
from unspoken.training import recipe as recipes
from unspoken.training.recipe import Recipe

# Tokens of the tokenizer below; a model of the table has more rows than it.
MARKERS = ("<think>", "</think>")
PIECES = ("~pad", "~end", "~start", *MARKERS, *string.digits, *string.ascii_letters, *string.punctuation, " ", "\n")
# Rows of different length, the longest of which is longer than every window of the table.
PROBLEMS = (
    {"question": "Twice 4, and 3?", "steps": ["<<4*2=8>>", "<<8+3=11>>"], "answer": "11"},
    {"question": "2+3?", "steps": ["<<2+3=5>>"], "answer": "5"},
    {"question": "2 and 7?", "steps": ["<<2+7=9>>"], "answer": "9"},
)
ROWS = len(PROBLEMS)
LATENTS, WORDS = 5, 3
LINE = """
name: hub
size: tiny
task: {{kind: grade_school, train: {folder}/train.json, tests: [{folder}/test.json], validation_rows: 0}}
backbone: {folder}/model
talker: {{attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}}
precision: fp32
attention: eager
threads: 1
evaluation: {{problems: 1, validation_problems: 1, batch_size: 3, max_latents: {latents}, max_answer: {words}}}
stages:
  - {{name: cot, objective: {{kind: next_token, positions: answer}}, steps: 1, batch_size: 3}}
  - {{name: coconut, objective: {{kind: coconut, replaced: 3, latents_per_step: 1}}, steps: 1, batch_size: 3}}
  - {{name: one, objective: {{kind: stage1, train: encoder, shape: {{rate: 3, top_k: 5}}}}, steps: 1, batch_size: 3}}
  - {{name: labels, start: one, objective: {{kind: labels, rows: 3}}}}
  - {{name: two, start: labels, objective: {{kind: stage2, noise: null}}, steps: 1, batch_size: 3}}
  - {{name: sst, objective: {{kind: sst}}, steps: 1, batch_size: 3}}
"""


def save_tokenizer(folder: Path) -> None:
    """One token a letter or marker."""
    words = Tokenizer(models.WordLevel({piece: place for place, piece in enumerate(PIECES)}, unk_token="~pad"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    words.add_tokens(list(MARKERS))
    words.decoder = decoders.Fuse()
    special = {"pad_token": "~pad", "eos_token": "~end", "bos_token": "~start"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


@contextmanager
def noise_of_architectures() -> Iterator[None]:
    """Where warnings are errors: what the code of an architecture warns about is no matter of ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(transformers|torch)\.")
        yield


@dataclass(frozen=True)
class Hub:
    """A folder with a model of the table, a tokenizer and the rows of a task."""

    folder: Path

    @classmethod
    def of(cls, name: str, folder: Path) -> Hub:
        """Write an architecture of the table into a folder."""
        logging.disable_progress_bar()
        with noise_of_architectures():
            tiny_model(name).save_pretrained(folder / "model")
        save_tokenizer(folder / "model")
        (folder / "train.json").write_text(json.dumps(PROBLEMS))
        (folder / "test.json").write_text(json.dumps([{"input": "8 and 8?", "target": 16}]))
        return cls(folder)

    @cached_property
    def recipe(self) -> Recipe:
        """One stage a method, all of which start from the model."""
        return recipes.parse(LINE.format(folder=self.folder, latents=LATENTS, words=WORDS), "hub")

    @cached_property
    def truth(self) -> PreTrainedModel:
        """The model as transformers alone loads and runs it: what the library is compared to."""
        auto: Any = AutoModelForCausalLM
        model: PreTrainedModel = auto.from_pretrained(
            self.folder / "model", dtype=torch.float32, attn_implementation="eager"
        )
        return model.eval()

    def built(self, stage: str) -> PreTrainedModel:
        """The model that the library would train in a stage, with its starting weights."""
        start = self.folder / "model" if stage == "two" else None
        return built(self.recipe, stage, start)

    def batch(self, stage: str) -> dict[str, Any]:
        """The rows that the library would train that model on."""
        return collated(self.recipe, stage)(np.arange(ROWS))

    @cached_property
    def prompt_format(self) -> PromptFormat:
        """Tokens of prompts and markers."""
        return PromptFormat(tokenizer=self.recipe.tokenizer())

    @cached_property
    def problems(self) -> list[ReasoningProblem]:
        """The problems of a batch."""
        problems: Any = self.recipe.task.build().sample("train", np.arange(ROWS), 0)
        return list(problems)

    @cached_property
    def spans(self) -> list[Spans]:
        """Their tokens."""
        return [self.prompt_format.spans(problem) for problem in self.problems]


def random_words(*shape: int, seed: int) -> torch.Tensor:
    """Ids of tokens that are no markers, beyond the tokenizer's too."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(MARKERS) + 5, VOCABULARY - 4, shape, generator=generator)
