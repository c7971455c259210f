"""Competition mathematics out of files: MATH-500 and AIME 2024 as tests, long chains to train on.

MATH-500 is the subset of MATH (Hendrycks et al., arXiv 2103.03874) chosen by Lightman et al. (arXiv 2305.20050). On the
Hugging Face hub the sets are ``HuggingFaceH4/MATH-500`` and ``HuggingFaceH4/aime_2024``. A row's format is told by its
fields:

==================================================  ========================================================
fields                                              source
==================================================  ========================================================
``problem``, ``answer``                             the names on the hub
``prompt`` (one user turn), ``final_answer``        the same sets as chat turns
``problem``, ``cot``, ``cot_answer``                training rows of Latent-SFT: the chain alone, and the text
                                                    behind it, which ends in a box
==================================================  ========================================================

Answers are expressions, not only numbers; `unspoken.tasks.grading.graded` compares them in value.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from unspoken.tasks.files import FileTask, Source, field_of, read_source, row_fields, set_name, text_of
from unspoken.tasks.grading import boxed
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.spans import END, OPEN
from unspoken.tasks.task import Traits

Profile = Literal["as_released", "boxed_only"]


@dataclass(frozen=True, kw_only=True)
class CompetitionConfig:
    """Which files, and what is said behind a chain.

    Attributes:
        train: a file (a JSON list, or one JSON object a line), or a name on the hub, as in `GradeSchoolConfig`; null
            if nothing is trained.
        validation_rows: training rows held out, chosen by a hash of the problem.
        tests: files or names on the hub. A test set is named after its file without the suffix, or by the name on the
            hub without the owner.
        profile: what training rows say behind the chain. "as_released" is the whole solution in prose, as in the
            authors' data, where most of the reasoning may well happen; "boxed_only" is the boxed answer alone.
        skip_malformed: leave out rows that cannot be read, with a count, instead of refusing the file.
    """

    kind: ClassVar[str] = "competition"

    train: str | None = None
    validation_rows: int = 500
    tests: tuple[str, ...] = ()
    profile: Profile = "boxed_only"
    skip_malformed: bool = False

    def __post_init__(self) -> None:
        if self.validation_rows < 0:
            raise ValueError(f"validation_rows is {self.validation_rows}; it cannot be negative")
        if self.train is None and not self.tests:
            raise ValueError("neither train nor tests names a file; give at least one")
        for name, count in Counter(["train", "validation", *map(set_name, self.tests)]).items():
            if count > 1:
                raise ValueError(f"{count} splits are named {name!r}; rename the file, since a test set is named by it")

    @property
    def traits(self) -> Traits:
        """Natural language out of files."""
        return Traits(natural_language=True, from_files=True, markers=(OPEN, END))

    def build(self) -> CompetitionTask:
        """The task of this configuration; reads all files.

        Raises:
            ValueError: a file is missing, a row is malformed, or too few training rows are left.
        """
        return CompetitionTask(self)


class CompetitionTask(FileTask):
    """Reads and serves competition problems."""

    nothing_typed = "the problem is empty; type one"

    def __init__(self, config: CompetitionConfig) -> None:
        self.config = config
        super().__init__(config)

    def _problem(self, row: Any, split: str) -> ReasoningProblem:
        return _problem(row, split, self.config.profile)

    def _open(self, source: str, name: str) -> Source:
        try:
            return super()._open(source, name)
        except ValueError:
            # The one split that AIME has on the hub is called "train".
            return read_source(source, "train")

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the data: what the files hold and how they are read, but not where they lie."""
        config = self.config
        how = [config.kind, self._digests, config.validation_rows, config.profile, config.skip_malformed]
        return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:16]


def _problem(row: Any, source: str, profile: Profile) -> ReasoningProblem:
    """One row as a problem; ``source`` is the first part of its key.

    Raises:
        ValueError: the row cannot be read; the message says why, but not where.
    """
    fields, chain, solution = row_fields(row), "", ""
    if "cot" in fields:
        question, said = text_of(fields, "problem"), text_of(fields, "cot_answer")
        chain = text_of(fields, "cot").removeprefix(OPEN).removesuffix(END).strip()
        answer = boxed(said)
        if answer is None:
            raise ValueError("field 'cot_answer' has no complete \\boxed{...}")
        if not chain:
            raise ValueError("field 'cot' is empty between its markers")
        solution = said if profile == "as_released" else ""
    elif source == "train":
        raise ValueError("a training row needs the fields problem, cot and cot_answer")
    elif "final_answer" in fields:
        question, answer = _asked(field_of(fields, "prompt")), _short(fields, "final_answer")
    elif "problem" in fields:
        question, answer = text_of(fields, "problem"), _short(fields, "answer")
    else:
        raise ValueError(
            f"unknown fields {', '.join(map(repr, fields)) or '(none)'}; known are problem, answer; prompt, "
            "final_answer; and problem, cot, cot_answer"
        )
    content = hashlib.sha256(json.dumps([question, chain, solution, answer]).encode()).hexdigest()[:16]
    return ReasoningProblem(
        question=question,
        chains=(chain,) if chain else (),
        answer=answer.strip(),
        key=f"{source}:{content}",
        solution=solution,
    )


def _asked(turns: Any) -> str:
    """What the one user turn of a chat asks."""
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], dict):
        raise ValueError("field 'prompt' must be a list of one turn")
    return text_of(turns[0], "value")


def _short(fields: dict[str, Any], name: str) -> str:
    """An answer: text, or a whole number."""
    value = field_of(fields, name)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_of(fields, name)
