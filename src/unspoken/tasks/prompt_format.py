"""From a word problem to token spans, for any tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unspoken.tasks.chat_template import render
from unspoken.tasks.problems import ReasoningProblem, require_whole_characters
from unspoken.tasks.spans import END, OPEN, Markers, Spans

if TYPE_CHECKING:
    from unspoken.tasks.task import Task, TaskConfig

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def unopened(prompt: str) -> str:
    """A prompt without an open marker at its end, where some chat templates put one: every chain gets its own."""
    bare = prompt.rstrip()
    return bare.removesuffix(OPEN) if bare.endswith(OPEN) else prompt


def left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids as one batch ``[B, T]`` padded on the left, and its mask."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(width)[None] >= width - lengths[:, None]).long()


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How questions, chains and answers become tokens.

    A tokenizer with a chat template gets the instruction and the question as a user turn, with a fixed date. One
    without (a base model, or one trained from scratch) gets the question alone, after the tokens that the tokenizer
    puts before every text. The answer is ``\\boxed{...}`` and the end-of-sequence token.
    """

    tokenizer: Any

    @cached_property
    def markers(self) -> Markers:
        """The markers, tokenised on their own: one token or several."""
        return Markers(open=self.encode(OPEN), end=self.encode(END))

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """The open marker as the chat template writes it at the end of a prompt, with the line break after it."""
        if self.tokenizer.chat_template is None:
            return self.markers.open
        prompt = self._chat([{"role": "user", "content": "?"}])
        bare = prompt.rstrip()
        return self.encode(OPEN + prompt[len(bare) :]) if bare.endswith(OPEN) else self.markers.open

    @property
    def box(self) -> tuple[int, ...]:
        """The start of an answer, tokenised on its own: the forced-answer control appends it for the model."""
        return self.encode("\\boxed{")

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a text, and no others."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_all(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """`encode` of many texts in one call, which costs much less than one call each."""
        if not texts:
            return []
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [tuple(row) for row in rows]

    def prompt(self, question: str) -> tuple[int, ...]:
        """Everything before the open marker.

        Raises:
            ValueError: the chat template takes no user turn alone.
        """
        return (*self.start, *self.encode(self._prompt_text(question)))

    def chat(self, turns: Sequence[Mapping[str, str]], *, instruction: str = INSTRUCTION) -> tuple[int, ...]:
        """The turns of a chat in the format of the chat template.

        Args:
            turns: each with ``role`` and ``content``; the last one is a user's.
            instruction: before the content of the last one; empty for none.

        Raises:
            ValueError: the template refuses them.
        """
        return self.encode(unopened(self._chat(turns, instruction)))

    def _prompt_text(self, question: str) -> str:
        """The prompt as text, without the tokens that the tokenizer puts before every text."""
        assert isinstance(self.tokenizer, PreTrainedTokenizerBase)
        if self.tokenizer.chat_template is None:
            return question
        return unopened(self._chat([{"role": "user", "content": question}]))

    @cached_property
    def start(self) -> tuple[int, ...]:
        """Tokens that the tokenizer puts before every text; none with a chat template, which writes its own."""
        if self.tokenizer.chat_template is not None:
            return ()
        bare, framed = self.markers.open, tuple(self.tokenizer(OPEN)["input_ids"])
        starts = [start for start in range(len(framed)) if framed[start : start + len(bare)] == bare]
        return framed[: starts[0]] if starts else ()

    def _chat(self, turns: Sequence[Mapping[str, str]], instruction: str = INSTRUCTION) -> str:
        """Turns in the format of the chat template."""
        question = turns[-1]["content"]
        texts = [(turn["role"], turn["content"]) for turn in turns[:-1]]
        texts.append((turns[-1]["role"], f"{instruction}\n{question}" if instruction else question))
        refused = "a user turn" if len(turns) == 1 else f"the turns {', '.join(role for role, _ in texts)}"
        # Some templates take a text, others a list of parts.
        for in_parts in (False, True):
            messages = [
                {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
                for role, text in texts
            ]
            prompt = render(self.tokenizer, messages, refused=refused, add_generation_prompt=True)
            if question.strip() in prompt:
                return prompt
        raise ValueError(
            "the tokenizer's chat template leaves the question out of the prompt; set its chat_template to null or to "
            "one that takes a user turn"
        )

    def spans(self, problem: ReasoningProblem) -> Spans:
        """Spans of a problem with its first chain; no steps if it has none."""
        return self.spans_of([problem])[0]

    def spans_of(self, problems: Sequence[ReasoningProblem]) -> list[Spans]:
        """`spans` of many problems, tokenised in one call."""
        all_steps = [problem.steps for problem in problems]
        texts: list[str] = []
        for problem, steps in zip(problems, all_steps, strict=True):
            answer = problem.solution or f"\\boxed{{{problem.answer}}}"
            texts += [self._prompt_text(problem.question), answer, "".join(steps), *(steps if len(steps) > 1 else ())]
        rows, made = iter(self.encode_all(texts)), []
        for steps in all_steps:
            prompt, answer_ids, chain = next(rows), next(rows), next(rows)
            each = tuple(next(rows) for _ in steps) if len(steps) > 1 else (chain,) * len(steps)
            same = tuple(token for step in each for token in step) == chain
            made.append(
                Spans(
                    prompt=(*self.start, *prompt),
                    steps=each,
                    answer=(*answer_ids, self.tokenizer.eos_token_id),
                    merged=None if same else chain,
                )
            )
        return made

    def prompts(self, problems: Sequence[ReasoningProblem]) -> tuple[Tensor, Tensor]:
        """Questions as one batch padded on the left, and its mask."""
        texts = [self._prompt_text(problem.question) for problem in problems]
        return left_padded([(*self.start, *row) for row in self.encode_all(texts)], self.tokenizer.pad_token_id)

    def decode(self, tokens: Tensor) -> list[str]:
        """Generated rows as text, up to their end."""
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How a model reads what a person types, and how its tokens become text."""

    prompt_format: PromptFormat  # of the model's tokenizer
    trained_on: TaskConfig | None = None  # the task that the model has learned, where that is known

    @cached_property
    def task(self) -> Task | None:
        """What reads a problem; None where any question in words is one.

        Problems out of files are plain questions, and the files may lie elsewhere by now.
        """
        return None if self.trained_on is None or self.trained_on.traits.from_files else self.trained_on.build()

    @property
    def tokenizer(self) -> Any:
        return self.prompt_format.tokenizer

    def prompt(self, text: str) -> tuple[int, ...]:
        """A problem as tokens, without what opens a chain.

        Raises:
            ValueError: it is empty, holds half a character, or the task cannot read it.
        """
        require_whole_characters(text)
        if self.task is not None:
            ids, _ = self.task.prompts(self.task.parse(text), self.prompt_format)
            return tuple(ids[0].tolist())
        if not text.strip():
            raise ValueError("the question is empty; type one")
        return self.prompt_format.prompt(text.strip())

    def chat(self, turns: Sequence[Mapping[str, str]], *, instructed: bool = True) -> tuple[int, ...]:
        """The turns of a chat as tokens, without what opens a chain; empty system turns are left out.

        Args:
            turns: each with ``role`` and ``content``.
            instructed: the last turn begins with the instruction that word problems have.

        Raises:
            ValueError: as `prompt`; the last turn is not a user's, or the model reads one problem and no other turns.
        """
        turns = [turn for turn in turns if turn["role"] != "system" or turn["content"].strip()]
        for turn in turns:
            require_whole_characters(turn["content"])
        if not turns or turns[-1]["role"] != "user":
            raise ValueError("the last message is not a user's; send the question as the last message")
        if len(turns) == 1 and instructed:
            return self.prompt(turns[0]["content"])
        self.require_turns()
        if not turns[-1]["content"].strip():
            raise ValueError("the question is empty; type one")
        return self.prompt_format.chat(turns, instruction=INSTRUCTION if instructed else "")

    def require_turns(self) -> None:
        """Refuse a model that reads one problem at a time and no conversation, by a ValueError."""
        one_problem = "and reads neither system messages nor earlier turns; send it as one user message"
        if self.trained_on is not None and self.task is not None:
            raise ValueError(f"this model answers one problem of the task {self.trained_on.kind!r} {one_problem}")
        if self.tokenizer.chat_template is None:
            raise ValueError(f"this model has no chat template: it answers one question {one_problem}")

    def continued(self, text: str) -> tuple[int, ...]:
        """A text outside a chat, which stands for itself, as tokens; it must be a problem all the same.

        Raises:
            ValueError: as `prompt`.
        """
        prompt = self.prompt(text)
        in_words = self.task is None or self.task.traits.natural_language
        return (*self.prompt_format.start, *self.prompt_format.encode(text.strip())) if in_words else prompt

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; those that end or pad an answer have none."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
