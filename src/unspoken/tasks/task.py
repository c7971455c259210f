"""What every task offers: problems, their tokens, and grades.

Axes: B problems, N tokens of an answer, M symbols of a right answer, T tokens of a row.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from unspoken.tasks.prompt_format import PromptFormat
    from unspoken.tasks.spans import Spans

Array: TypeAlias = NDArray[np.int64]
Indices: TypeAlias = Sequence[int] | Array
Item = TypeVar("Item")

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Properties of a task that are known before any problem is made or read.

    Which stages can train a task follows from these: a method with an explicit chain needs ``has_chain``, one that
    replaces steps by latents needs ``has_steps``.
    """

    own_vocabulary: bool = False  # the vocabulary is the task's alone, so a pretrained backbone cannot be used
    natural_language: bool = False  # problems need the tokenizer of a pretrained backbone
    # An explicit chain stands before the answer, which can be compressed or left out. Where it is false, the answer
    # itself is the chain.
    has_chain: bool = True
    has_lengths: bool = True  # rows differ in length, so batches of like length can be made
    answerable: bool = True  # a person can type a problem, which `Task.parse` reads
    # Rows are running text without problem and answer; models are compared by how well they predict it.
    continues: bool = False
    from_files: bool = False  # training and test rows come from files, so they may overlap
    # What checkpoints are selected by: right answers ("exact_match"), right symbols ("symbols"), or the loss, where the
    # prompt does not determine the answer.
    selected_by: Literal["exact_match", "symbols", "loss"] = "exact_match"
    # Texts around a chain; None where the answer itself is the chain, and a method that needs a marker uses the
    # end-of-sequence token.
    markers: tuple[str, str] | None = None
    # Steps of every chain, each one token, where the task's measurements fix their number; a method that replaces steps
    # then replaces all of them.
    fixed_steps: int | None = None
    # chain_cap, answer_cap: the most steps of a chain and tokens of an answer; None leaves them to the recipe
    chain_cap: int | None = None
    answer_cap: int | None = None
    # Mean tokens of a training row before its answer and from there on; None where they must be measured.
    row_tokens: tuple[float, float] | None = None
    # Mean tokens of a row of `Task.talker_rows` that are read, and that are learned; None where those are the chain and
    # the answer of a plain row.
    talker_tokens: tuple[float, float] | None = None
    vocabulary_size: int | None = None  # entries of the tokenizer, where it takes long to train
    questions: int = 1  # problems with the same beginning that one row can hold; more than 1 only of an `AsksSeveral`

    @property
    def has_steps(self) -> bool:
        """There are steps that latents can replace."""
        return self.has_chain or self.fixed_steps is not None


@dataclass(frozen=True, kw_only=True)
class Grades:
    """Which answers are right."""

    correct: Tensor  # ``[B]``, true where the whole answer is right
    # ``[B, M]``, true where a symbol is; None where an answer is not compared symbol by symbol.
    per_symbol: Tensor | None = None


@runtime_checkable
class Problems(Protocol):
    """A batch of problems, whose content only the task knows."""

    def __len__(self) -> int:
        """Problems in the batch."""

    def select(self, rows: Indices) -> Problems:
        """Some of the problems, in the order of ``rows``."""


class ProblemList(list[Item], Generic[Item]):
    """A batch of problems that are objects of their own."""

    def select(self, rows: Indices) -> ProblemList[Item]:
        """Some of the problems, in the order of ``rows``."""
        return ProblemList(self[int(row)] for row in rows)


@runtime_checkable
class Task(Protocol):
    """Makes or reads problems, tokenises them, and grades answers.

    ``problems`` are always a batch that the same task's `sample` or `parse` gave. The splits are "train", "validation"
    and the names of the test sets. By default they are endless, a fingerprint is of the settings alone, and no problem
    can be typed.

    Attributes:
        config: the configuration that built this task, see `TaskConfig`.
        tests: names of the test sets.
        dropped: how many rows of a file were left out, and why, for instance ``{"train: malformed": 3}``.
        left_out: the first of these rows, by the same reasons.
    """

    config: Any
    tests: tuple[str, ...] = ("test",)
    dropped: Mapping[str, int] = MappingProxyType({})
    left_out: Mapping[str, Sequence[str]] = MappingProxyType({})

    @property
    def traits(self) -> Traits:
        """Those of the configuration."""
        return self.config.traits

    @property
    def fingerprint(self) -> str:
        """Identifies the data of this task: sixteen hexadecimal digits."""
        return digest({"kind": self.config.kind, **asdict(self.config)})

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """The tokenizer made for this task, or None where the backbone brings its own."""

    def size(self, split: str) -> int | None:
        """Problems in a split; None if it never ends.

        Raises:
            ValueError: there is no such split.
        """
        check_split(split, ("train", "validation", *self.tests))
        return None

    def sizes(self) -> dict[str, int | None]:
        """Problems in each split, by its name."""
        return {split: self.size(split) for split in ("train", "validation", *self.tests)}

    def sample(self, split: str, indices: Indices, seed: int = 0) -> Problems:
        """The problems with the given indices, a pure function of (configuration, seed, split, index).

        Raises:
            ValueError: there is no such split.
            IndexError: an index lies outside a split that ends.
        """

    def questions(self, problems: Any) -> list[str]:
        """The problems as text; where the task is answerable, `parse` reads it back."""

    def spans(self, problems: Any, prompt_format: PromptFormat | None = None) -> list[Spans]:
        """The tokens of each problem.

        Args:
            prompt_format: of the backbone's tokenizer; the task's own tokenizer is used without it.

        Raises:
            ValueError: there is neither.
        """

    def prompts(self, problems: Any, prompt_format: PromptFormat | None = None) -> tuple[Tensor, Tensor]:
        """The prompts of `spans` as token ids ``[B, T]``, padded on the left, and their mask ``[B, T]``.

        Chains and answers are not tokenised.
        """

    def rows(
        self, problems: Any, prompt_format: PromptFormat | None = None, *, chain: bool = True
    ) -> dict[str, Tensor]:
        """Problems with their answers as rows of plain text, for next-token reading.

        Args:
            chain: False leaves the explicit chain out, where there is one.

        Returns:
            ``input_ids``, ``attention_mask`` and ``answer_mask``, ``[B, T]`` each; the last is true on the tokens that
            a model learns to give: chain, end marker and answer, without the chain the answer alone.
        """

    def talker_rows(
        self, indices: Indices, seed: int = 0, split: str = "train", prompt_format: PromptFormat | None = None
    ) -> dict[str, Tensor]:
        """Samples as rows that a Talker learns from: like `rows`, ``answer_mask`` being true on what it learns to give.

        By default these are the chains and answers of `rows`.
        """
        return self.rows(self.sample(split, indices, seed), prompt_format)

    def grade(self, answers: Tensor | Sequence[str], problems: Any) -> Grades:
        """Which answers are right; also the reward of reinforcement learning.

        Args:
            answers: tokens ``[B, N]`` of a task with a vocabulary of its own, otherwise a text each.

        Raises:
            ValueError: answers of the other kind, or not as many as problems.
        """

    def parse(self, text: str) -> Problems:
        """A problem typed by a person, as a batch of one.

        Raises:
            ValueError: it cannot be read, or the task is not answerable.
        """
        raise ValueError(f"no problem of {self.config.kind} can be typed; take one from a split")


class SymbolTask(Task):
    """A task whose answers are tokens of its own vocabulary, graded one by one; id 0 is padding."""

    @abstractmethod
    def answers(self, problems: Any) -> Tensor:
        """Right answers ``[B, M]``, without padding."""

    def grade(self, answers: Tensor | Sequence[str], problems: Any) -> Grades:
        """Which tokens are those of the right answer; later ones are ignored, and a missing one is wrong."""
        per_symbol = exact_tokens(answers, self.answers(problems), filler=0)
        return Grades(correct=per_symbol.all(dim=1), per_symbol=per_symbol)


@runtime_checkable
class AsksSeveral(Protocol):
    """A task with several problems whose prompts have the same beginning."""

    def question_rows(self, problems: Any, questions: int) -> dict[str, Tensor]:
        """Rows of a shared beginning, each followed by the rest of several problems, the given one first.

        Args:
            questions: at most ``traits.questions``.

        Returns:
            As `Task.rows`, of the longer rows; ``question`` ``[B, T]``, 0 on what is shared and r on the rest of the
            r-th problem; and ``position_ids`` ``[B, T]``, the places of tokens in their own problems.
        """


@runtime_checkable
class TaskConfig(Protocol):
    """A frozen dataclass: what a recipe's ``task`` mapping may hold, named by its ``kind``."""

    kind: ClassVar[str]

    def __hash__(self) -> int:
        """Equal settings are one task."""

    @property
    def traits(self) -> Traits:
        """What is known before the task is built."""

    def build(self) -> Task:
        """The task of this configuration; reads files, if it has any.

        Raises:
            ValueError: the data cannot be read.
        """


def digest(content: Any) -> str:
    """A hash of what JSON can hold: sixteen hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def split_of(number: int, classes: int) -> str:
    """The split of a problem by its hash: the last of the equal classes is test, the one before it validation."""
    return {classes - 2: "validation", classes - 1: "test"}.get(number % classes, "train")


def check_split(split: str, splits: Sequence[str] = SPLITS) -> None:
    """Refuse a split that a task does not have, by a ValueError."""
    if split not in splits:
        raise ValueError(f"there is no split {split!r}; this task has {', '.join(splits)}")


def require_as_many(answers: Sized, problems: Sized) -> None:
    """Refuse answers of another number than the problems, by a ValueError."""
    if len(answers) != len(problems):
        raise ValueError(f"{len(answers)} answers for {len(problems)} problems; every problem needs one answer")


def exact_tokens(answers: Tensor | Sequence[str], right: Tensor, *, filler: int) -> Tensor:
    """Which tokens of right answers ``[B, M]`` were given, ``[B, M]``; later tokens are ignored.

    Args:
        answers: ``[B, N]``; what is missing counts as ``filler``, which no right answer holds.

    Raises:
        ValueError: texts, or not as many answers as right ones.
    """
    import torch
    from torch.nn.functional import pad

    if not isinstance(answers, torch.Tensor):
        raise ValueError("this task grades tokens [B, N], not texts; give the ids that the model wrote")
    require_as_many(answers, right)
    return pad(answers, (0, right.shape[1] - answers.shape[1]), value=filler) == right.to(answers.device)


def rows_in_words(task: Task) -> str:
    """How many rows each split of a task out of files has, and how many were left out."""
    sizes = ", ".join(f"{size:,} {split}" for split, size in task.sizes().items())
    dropped = ", ".join(f"{count:,} ({why})" for why, count in task.dropped.items())
    return f"rows: {sizes}" + (f"; left out: {dropped}" if dropped else "")


def left_out_in_words(task: Task) -> list[str]:
    """The first rows that were left out for each reason, a line each."""
    return [f"left out ({why}): {row}" for why, rows in task.left_out.items() for row in rows]
