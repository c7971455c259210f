"""Problems that are asked in words and answered in a box, and the base class of their tasks.

A model reads a question, reasons over an explicit or a latent chain, and writes ``\\boxed{18}``.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice, repeat
from typing import TYPE_CHECKING

from unspoken.tasks.spans import END, OPEN
from unspoken.tasks.task import Grades, Indices, ProblemList, Task, Traits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from unspoken.tasks.prompt_format import PromptFormat
    from unspoken.tasks.spans import Spans

_SURROGATE = re.compile("[\ud800-\udfff]")
# White space stays with the step after it, as tokenizers have it.
_STEP_END = re.compile(r"(?:(?<=>>)|(?<=[.!?]))(?=\s+\S)|(?<=\S)(?=[ \t]*\n\s*\S)")


def require_whole_characters(text: str) -> None:
    """Refuse halves of surrogate pairs, which no tokenizer reads, by a ValueError."""
    half = _SURROGATE.search(text)
    if half is not None:
        raise ValueError(f"a text holds half a character (U+{ord(half[0]):X}, a surrogate), which no tokenizer reads")


@dataclass(frozen=True, kw_only=True)
class ReasoningProblem:
    """One problem."""

    question: str  # what is asked
    # Explicit chains of thought, all valid; the first is the one trained on. Empty where none is known.
    chains: tuple[str, ...]
    answer: str  # the right answer, without a box; empty where it is not known
    key: str  # names the problem in any batch or file
    solution: str = ""  # the text after the chain, if it is more than the boxed answer
    given_steps: tuple[str, ...] = ()  # steps of the first chain where the data cuts it; joined, they are the chain
    grader: str = "math"  # how an answer is compared with the right one, see `unspoken.tasks.grading.graded`

    def __post_init__(self) -> None:
        assert not self.given_steps or "".join(self.given_steps) == self.chains[0], "the steps are not the first chain"

    @property
    def steps(self) -> tuple[str, ...]:
        """The first chain cut into steps: those given, or else equations ``<<5+3=8>>``, sentences or lines."""
        if self.given_steps:
            return self.given_steps
        return tuple(_STEP_END.split(self.chains[0])) if self.chains else ()


def check_numbers(key: str, numbers: tuple[int, ...], most: int) -> None:
    """Refuse a setting that does not list different numbers from 1 to ``most``, by a ValueError."""
    if not numbers or len(set(numbers)) < len(numbers) or not all(1 <= number <= most for number in numbers):
        raise ValueError(f"{key} is {numbers}; it must list different numbers from 1 to {most}")


class ReasoningTask(Task):
    """A task whose problems are asked in words."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """None: the backbone brings its own."""
        return None

    @abstractmethod
    def sample(self, split: str, indices: Indices, seed: int = 0) -> ProblemList[ReasoningProblem]:
        """The problems with the given indices, see `Task.sample`."""

    def parse(self, text: str) -> ProblemList[ReasoningProblem]:
        """A question typed by a person, as a batch of one problem without chain and answer."""
        question = text.strip()
        if not question:
            raise ValueError("the question is empty; type one")
        return ProblemList([ReasoningProblem(question=question, chains=(), answer="", key="typed")])

    def questions(self, problems: Sequence[ReasoningProblem]) -> list[str]:
        return [problem.question for problem in problems]

    @cached_property
    def _own_format(self) -> PromptFormat | None:
        from unspoken.tasks.prompt_format import PromptFormat

        return None if self.tokenizer is None else PromptFormat(tokenizer=self.tokenizer)

    def _format(self, given: PromptFormat | None) -> PromptFormat:
        chosen = given or self._own_format
        if chosen is None:
            raise ValueError(
                f"the task {self.config.kind} brings no tokenizer; give the prompt_format of a pretrained backbone"
            )
        return chosen

    def spans(self, problems: Sequence[ReasoningProblem], prompt_format: PromptFormat | None = None) -> list[Spans]:
        """The tokens of each problem, see `PromptFormat.spans`."""
        return self._format(prompt_format).spans_of(problems)

    def prompts(
        self, problems: Sequence[ReasoningProblem], prompt_format: PromptFormat | None = None
    ) -> tuple[Tensor, Tensor]:
        """Questions as token ids ``[B, T]``, padded on the left, and their mask; see `PromptFormat.prompts`."""
        return self._format(prompt_format).prompts(problems)

    def rows(
        self, problems: Sequence[ReasoningProblem], prompt_format: PromptFormat | None = None, *, chain: bool = True
    ) -> dict[str, Tensor]:
        """Rows of plain text, padded on the right: ``prompt | open | chain | end | answer``.

        Without the chain, the end marker stands right after the open one and is not learned.
        """
        import torch

        layout = self._format(prompt_format)
        markers, ids, given, lengths = layout.markers, [], [], []
        for spans in layout.spans_of(problems):
            head = spans.prompt + markers.open if chain else spans.prompt + markers.open + markers.end
            tail = spans.chain + markers.end + spans.answer if chain else spans.answer
            ids.append(torch.tensor(head + tail))
            given.append(len(head))
            lengths.append(len(head + tail))
        column = torch.arange(max(lengths))[None]
        attended = column < torch.tensor(lengths)[:, None]
        return {
            "input_ids": torch.nn.utils.rnn.pad_sequence(
                ids, batch_first=True, padding_value=layout.tokenizer.pad_token_id
            ),
            "attention_mask": attended.long(),
            "answer_mask": attended & (column >= torch.tensor(given)[:, None]),
        }

    def _rows_of_several(
        self, beginnings: Sequence[str], problems: Sequence[Sequence[ReasoningProblem]]
    ) -> dict[str, Tensor]:
        """Rows with several questions each, see `AsksSeveral`, padded on the right.

        Args:
            beginnings: what the questions of each row have in common.
            problems: those of each row, their questions without this beginning.
        """
        import torch

        layout = self._format(None)
        markers, rows = layout.markers, []
        every = iter(layout.spans_of([one for several in problems for one in several]))
        for shared, several in zip(layout.encode_all(beginnings), problems, strict=True):
            tokens = [(token, False, 0, place) for place, token in enumerate(shared)]
            for number, spans in enumerate(islice(every, len(several)), start=1):
                head, tail = spans.prompt + markers.open, spans.chain + markers.end + spans.answer
                learned = [False] * len(head) + [True] * len(tail)
                tokens += zip(head + tail, learned, repeat(number), count(len(shared)), strict=False)
            rows.append(torch.tensor(tokens))
        lengths = torch.tensor([len(row) for row in rows])
        ids, answers, question, places = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).unbind(dim=2)
        attended = torch.arange(ids.shape[1])[None] < lengths[:, None]
        return {
            "input_ids": ids.masked_fill(~attended, layout.tokenizer.pad_token_id),
            "attention_mask": attended.long(),
            "answer_mask": answers.bool(),
            "question": question,
            "position_ids": places,
        }

    def grade(self, answers: Tensor | Sequence[str], problems: Sequence[ReasoningProblem]) -> Grades:
        """Which texts hold the right answer in their last box."""
        import torch

        from unspoken.tasks.grading import graded

        if isinstance(answers, torch.Tensor):
            raise ValueError("this task grades texts, not tokens; decode them first (PromptFormat.decode)")
        return Grades(correct=torch.from_numpy(graded(answers, problems)))


@dataclass(frozen=True, kw_only=True)
class MadeUpConfig:
    """What problems look like that are made and not read, with an explicit chain between two markers."""

    @property
    def traits(self) -> Traits:
        return Traits(markers=(OPEN, END))


class MadeUpTask(ReasoningTask):
    """A task that makes its problems one by one."""

    def sample(self, split: str, indices: Indices, seed: int = 0) -> ProblemList[ReasoningProblem]:
        self.size(split)
        return ProblemList(self._make(split, int(index), seed) for index in indices)

    @abstractmethod
    def _make(self, split: str, index: int, seed: int) -> ReasoningProblem:
        """One problem, a pure function of (configuration, seed, split, index)."""
