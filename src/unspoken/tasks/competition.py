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

Answers are expressions, not only numbers; `unspoken.tasks.words.graded` compares them in value.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from unspoken.tasks.files import epoch_order, field_of, read_source, row_fields, set_name, text_of
from unspoken.tasks.words import Indices, WordProblem, boxed

Profile = Literal["as_released", "boxed_only"]

_OPEN, _END = "<think>", "</think>"


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

    def build(self) -> CompetitionTask:
        """The task of this configuration; reads all files.

        Raises:
            ValueError: a file is missing, a row is malformed, or too few training rows are left.
        """
        return CompetitionTask(self)


class CompetitionTask:
    """Reads and serves competition problems; the backbone brings the tokenizer.

    Attributes:
        dropped: how many rows were left out, for instance ``{"train: malformed": 3}``.
    """

    tokenizer = None

    def __init__(self, config: CompetitionConfig) -> None:
        self.config = config
        self.tests = tuple(set_name(source) for source in config.tests)
        self.dropped: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._problems: dict[str, list[WordProblem]] = {}
        if config.train is not None:
            self._load("train", config.train)
            self._hold_out(config.train)
        for name, source in zip(self.tests, config.tests, strict=True):
            self._load(name, source)

    def _load(self, name: str, source: str) -> None:
        found, copies, malformed = [], Counter[str](), 0
        try:
            rows, self._digests[name] = read_source(source, "train" if name == "train" else "test")
        except ValueError:
            # The one split that AIME has on the hub is called "train".
            rows, self._digests[name] = read_source(source, "train")
        for where, row in rows:
            try:
                problem = _problem(row, name, self.config.profile)
            except ValueError as error:
                if not self.config.skip_malformed:
                    raise ValueError(
                        f"{where}: {error}; mend the row, or set skip_malformed to leave such rows out"
                    ) from None
                malformed += 1
                continue
            copies[problem.key] += 1
            if copies[problem.key] > 1:  # a key names one row, even of two that are alike
                problem = replace(problem, key=f"{problem.key}:{copies[problem.key]}")
            found.append(problem)
        if malformed:
            self.dropped[f"{name}: malformed"] = malformed
        if not found:
            raise ValueError(f"{source} has no row that can be used ({malformed} are malformed)")
        self._problems[name] = found

    def _hold_out(self, source: str) -> None:
        """Move the questions with the smallest hashes to validation, whatever their place in the file."""
        rows = self._problems["train"]
        hashes = [hashlib.sha256(problem.question.encode()).hexdigest() for problem in rows]
        held = set(sorted(hashes)[: self.config.validation_rows])
        for split in ("train", "validation"):
            kept = [row for row, key in zip(rows, hashes, strict=True) if (key in held) == (split == "validation")]
            self._problems[split] = kept
        if not self._problems["train"]:
            raise ValueError(
                f"validation_rows is {self.config.validation_rows}, which leaves nothing of the {len(rows)} rows of "
                f"{source} to train on; hold out fewer"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the data: what the files hold and how they are read, but not where they lie."""
        config = self.config
        how = [config.kind, self._digests, config.validation_rows, config.profile, config.skip_malformed]
        return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:16]

    def size(self, split: str) -> int:
        """Problems in a split; training goes on after them with the next epoch.

        Raises:
            ValueError: there is no such split.
        """
        return len(self._rows(split))

    def sample(self, split: str, indices: Indices, seed: int = 0) -> list[WordProblem]:
        """The problems with the given indices.

        Training index i is row i mod n of epoch i div n, and every epoch has an order of its own, drawn with the seed.
        The other splits have the order of their file.

        Raises:
            ValueError: there is no such split.
            IndexError: an index is negative, or outside a split that is not "train".
        """
        rows = self._rows(split)
        count = len(rows)
        for index in indices:
            if index < 0 or (split != "train" and index >= count):
                raise IndexError(f"index {index} is outside split {split!r} of {count} problems")
        if split == "train":
            return [rows[epoch_order(seed, int(index) // count, count)[int(index) % count]] for index in indices]
        return [rows[int(index)] for index in indices]

    def parse(self, text: str) -> WordProblem:
        """A problem typed by a person.

        Raises:
            ValueError: it is empty.
        """
        if not text.strip():
            raise ValueError("the problem is empty; type one")
        return WordProblem(question=text.strip(), chains=(), answer="", key="typed")

    def _rows(self, split: str) -> list[WordProblem]:
        if split not in self._problems:
            raise ValueError(f"there is no split {split!r}; this task has {', '.join(sorted(self._problems))}")
        return self._problems[split]


def _problem(row: Any, source: str, profile: Profile) -> WordProblem:
    """One row as a problem; ``source`` is the first part of its key.

    Raises:
        ValueError: the row cannot be read; the message says why, but not where.
    """
    fields, chain, solution = row_fields(row), "", ""
    if "cot" in fields:
        question, said = text_of(fields, "problem"), text_of(fields, "cot_answer")
        chain = text_of(fields, "cot").removeprefix(_OPEN).removesuffix(_END).strip()
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
    return WordProblem(
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
