"""From a word problem to token spans, for any tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unspoken.methods.latent_sft.layout import Markers, Spans
from unspoken.tasks.words import WordProblem

OPEN, END = "<think>", "</think>"
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def unopened(prompt: str) -> str:
    """A prompt without an open marker at its end, where some chat templates put one: every chain gets its own."""
    bare = prompt.rstrip()
    return bare.removesuffix(OPEN) if bare.endswith(OPEN) else prompt


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How questions, chains and answers become tokens.

    A tokenizer with a chat template gets the instruction and the question as a user turn; one without (a model trained
    from scratch) gets the question alone. The answer is ``\\boxed{...}`` and the end-of-sequence token.
    """

    tokenizer: Any

    @cached_property
    def markers(self) -> Markers:
        """The markers, tokenised on their own: one token or several."""
        return Markers(open=self.ids(OPEN), end=self.ids(END))

    @property
    def box(self) -> tuple[int, ...]:
        """The start of an answer, tokenised on its own: the forced-answer control says it for the model."""
        return self.ids("\\boxed{")

    def ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text, and no others."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, question: str) -> tuple[int, ...]:
        """Everything before the open marker."""
        assert isinstance(self.tokenizer, PreTrainedTokenizerBase)
        if self.tokenizer.chat_template is None:
            return self.ids(question)
        turn = [{"role": "user", "content": f"{INSTRUCTION}\n{question}"}]
        text: Any = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return self.ids(unopened(text))

    def spans(self, problem: WordProblem) -> Spans:
        """Spans of a problem with its first chain; an empty chain if it has none."""
        return Spans(
            prompt=self.prompt(problem.question),
            chain=self.ids(problem.chains[0]) if problem.chains else (),
            answer=(*self.ids(problem.solution or f"\\boxed{{{problem.answer}}}"), self.tokenizer.eos_token_id),
        )

    def prompts(self, problems: Sequence[WordProblem]) -> tuple[Tensor, Tensor]:
        """Questions as one batch padded on the left, and its mask."""
        rows = [self.prompt(problem.question) for problem in problems]
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        for index, row in enumerate(rows):
            ids[index, width - len(row) :] = torch.tensor(row)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(width)[None] >= width - lengths[:, None]).long()

    def texts(self, said: Tensor) -> list[str]:
        """Spoken rows as text, up to their end."""
        texts: list[str] = self.tokenizer.batch_decode(said, skip_special_tokens=True)
        return texts
