"""A user's own problems: questions with answers, and with chains of thought if there are any.

A file has one problem per row (JSON lines, a JSON list, CSV or Parquet, or a data set on the Hugging Face hub)::

    {"question": "Ann has 3 pears and finds 2. How many has she?", "steps": ["3+2=5"], "answer": "5"}

==============  ======================================================================================================
column          what it holds
==============  ======================================================================================================
``question``    text
``steps``       the chain of thought as a list of steps, or as one text, which is cut after equations ``<<3+2=5>>``,
                sentences and lines; ``cot`` is another name for it. In CSV a list is written as JSON. Test rows need
                none, and training rows have all of them one, or none
``answer``      text or a number; what a model is to write in its box
==============  ======================================================================================================

Where no test set is named, one is cut from the training rows and called "held_out". Training rows that ask a question
of a test set are left out and counted in ``dropped``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.ranges import require_value
from unspoken.storage import parse_json
from unspoken.tasks.files import FileConfig, FileTask, row_fields, tenth_of, text_of
from unspoken.tasks.grading import answer_fault, check_name, grader_of
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.spans import END, OPEN
from unspoken.tasks.task import Traits, digest
from unspoken.tasks.tokenizing import EOS_TOKEN, PAD_TOKEN, byte_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HELD_OUT = "held_out"

_MARKERS = (PAD_TOKEN, EOS_TOKEN, OPEN, END)
_SMALLEST = len(_MARKERS) + 256


@dataclass(frozen=True, kw_only=True)
class JsonlConfig(FileConfig):
    """How the files of `FileConfig` are read."""

    kind: ClassVar[str] = "jsonl"

    test_rows: int | None = None  # as validation_rows, of the "held_out" test set that is cut where tests names none
    # question_column, answer_column: columns of question and answer
    question_column: str = "question"
    chain_column: str | None = None  # column of the chain; null reads "steps", or else "cot"
    answer_column: str = "answer"
    # How answers are compared: "math" (in value, as Math-Verify has it), "number", "string", "choice", or a function of
    # your own as "module:function", called with the answer and the problem. It is imported and run, so use only recipes
    # that you trust.
    grader: str = "math"
    # Entries of a byte-pair tokenizer that is trained on the training rows, for a backbone that is trained from random
    # weights; null leaves the tokenizer to a pretrained backbone.
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train is None and self.vocabulary is not None:
            raise ValueError("vocabulary is set, but train names no rows to learn it from; set it to null")
        if self.test_rows is not None and self.tests:
            raise ValueError("test_rows is set, but tests names test sets, so none is cut from train; leave it out")
        if self.test_rows is not None and self.test_rows < 1:
            raise ValueError(f"test_rows is {self.test_rows}; it must be at least 1")
        require_value(
            self,
            "vocabulary",
            lambda value: value is None or _SMALLEST <= value <= 2**16,
            f"from {_SMALLEST} ({len(_MARKERS)} markers and 256 bytes) to {2**16}, or null",
        )
        check_name(self.grader)

    @property
    def traits(self) -> Traits:
        """Natural language out of files, unless a tokenizer is trained on them."""
        return Traits(
            own_vocabulary=self.vocabulary is not None,
            natural_language=self.vocabulary is None,
            from_files=True,
            markers=(OPEN, END),
            vocabulary_size=self.vocabulary,
        )

    def build(self) -> JsonlTask:
        """The task of this configuration, see `FileTask`: the same object as long as its files do not change."""
        sources = (*(() if self.train is None else (self.train,)), *self.tests)
        return _task(self, tuple(map(_state, sources)))


def _state(source: str) -> tuple[str, int, int] | None:
    """What changes when a file does; None of a data set on the hub."""
    path = Path(source)
    if not path.is_file():
        return None
    return str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size


@lru_cache(maxsize=4)
def _task(config: JsonlConfig, _states: tuple[tuple[str, int, int] | None, ...]) -> JsonlTask:
    """Cached, since training builds the task often, and reading files and training a tokenizer take long."""
    return JsonlTask(config)


class JsonlTask(FileTask):
    """Reads and serves a user's own problems."""

    config: JsonlConfig

    def __init__(self, config: JsonlConfig) -> None:
        grader_of(config.grader)  # before anything is read or trained
        self._chained: bool | None = None  # whether training rows have chains; the first row decides
        super().__init__(config)

    @cached_property
    def fingerprint(self) -> str:
        config = self.config
        columns = [config.question_column, config.chain_column, config.answer_column]
        held_out = [config.validation_rows, config.test_rows]
        return digest([config.kind, self._digests, columns, held_out, config.grader, config.skip_malformed])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """Byte pairs learned from the training rows with digits single, or None where the backbone brings its own."""
        if self.config.vocabulary is None:
            return None
        texts = (
            text
            for problem in self._rows("train")
            for text in (problem.question, *problem.steps, f"\\boxed{{{problem.answer}}}")
        )
        return byte_pairs(texts, self.config.vocabulary, _MARKERS, what="training rows", single_digits=True)

    def _held_out(self, rows: int) -> dict[str, tuple[str, int]]:
        sizes = super()._held_out(rows)
        if not self.config.tests:
            count = self.config.test_rows
            sizes[HELD_OUT] = ("test_rows", tenth_of(rows) if count is None else count)
        return sizes

    def _hold_out(self, source: str) -> None:
        tested = {problem.question for test in self.tests for problem in self._problems[test]}
        rows = self._problems["train"]
        untested = [problem for problem in rows if problem.question not in tested]
        for problem in rows:
            if problem.question in tested:
                self._leave_out("train: question of a test set", problem.question)
        if not untested:
            raise ValueError(f"every question of {source} is one of a test set; give other rows to train or test on")
        self._problems["train"] = untested
        super()._hold_out(source)
        if not self.config.tests:
            self.tests = (HELD_OUT,)

    def _problem(self, row: Any, split: str) -> ReasoningProblem:
        config, fields = self.config, row_fields(row)
        for key in ("question_column", "answer_column"):
            name = getattr(config, key)
            if name not in fields:
                listed = ", ".join(map(repr, fields))
                others = f"the row has {listed}; set task.{key} to one of them" if fields else "the row has no columns"
                raise ValueError(f"column {name!r} is missing ({others})")
        question, answer = text_of(fields, config.question_column), _answer(fields, config.answer_column)
        if (fault := answer_fault(config.grader, answer)) is not None:
            raise ValueError(fault)
        chain, steps = self._chain(fields, split)
        return ReasoningProblem(
            question=question,
            chains=(chain,) if chain else (),
            answer=answer,
            key=f"{split}:{digest([question, chain, answer])}",
            given_steps=steps,
            grader=config.grader,
        )

    def _chain(self, fields: dict[str, Any], split: str) -> tuple[str, tuple[str, ...]]:
        """The chain, and its steps if they are a list; both empty where the row has no chain."""
        name = self.config.chain_column or ("steps" if "steps" in fields else "cot")
        steps, listed = _steps_of(fields.get(name), name)
        if split == "train":
            self._chained = bool(steps) if self._chained is None else self._chained
            if self._chained != bool(steps):
                there, others = ("no chain", "have one") if self._chained else ("a chain", "have none")
                raise ValueError(
                    f"the row has {there} in column {name!r}, but the earlier rows {others} (every training row must "
                    "have a chain, or none)"
                )
        # The line break belongs to the step after it, as in `ReasoningProblem.steps`.
        steps = tuple(step if number == 0 else f"\n{step}" for number, step in enumerate(steps))
        return "".join(steps), steps if listed else ()


def _steps_of(value: Any, name: str) -> tuple[tuple[str, ...], bool]:
    """Steps of a cell without markers and spaces around them, none of an empty one; and whether they are a list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _listed(value)
    steps = [value or ""] if value is None or isinstance(value, str) else value
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise ValueError(f"column {name!r} is {value!r}; it must be text or a list of texts")
    if isinstance(value, list) and any(not step.strip() for step in steps):
        raise ValueError(f"column {name!r} has a blank step; leave it out")
    bare = [step.strip().removeprefix(OPEN).removesuffix(END).strip() for step in steps]
    return tuple(step for step in bare if step), isinstance(value, list)


def _listed(text: str) -> Any:
    """A list of steps that is written as JSON, as in a cell of a table; the text itself if it is none.

    Args:
        text: begins with a bracket.
    """
    try:
        value = parse_json(text)
    except json.JSONDecodeError:
        return text
    return value if all(isinstance(step, str) for step in value) else text


def _answer(fields: dict[str, Any], name: str) -> str:
    """An answer as text: a number with nothing after its point is a whole one."""
    value = fields[name]
    unreal = isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))
    if unreal or not isinstance(value, str | int | float):
        raise ValueError(f"column {name!r} is {value!r}; it must be text or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not str(value).strip():
        raise ValueError(f"column {name!r} is blank; it must be text or a number")
    return str(value).strip()
