"""Grade-school word problems out of files: GSM8K and its relatives.

Training rows come from GSM8k-Aug (Deng et al., arXiv 2311.01460: chains of bare equations) or GSM8K (Cobbe et al.,
arXiv 2110.14168: prose with annotated equations); tests also from GSM-Hard, SVAMP and MultiArith. A row's format is
told by its fields:

==============================================  =======================================================
fields                                          source
==============================================  =======================================================
``question``, ``steps`` (list), ``answer``      GSM8k-Aug
``question``, ``answer`` ending in ``#### 18``  GSM8K
``input``, ``target``                           GSM-Hard, MultiArith
``Body``, ``Question``, ``Answer``              SVAMP
==============================================  =======================================================
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, ClassVar, Literal

from unspoken.tasks.files import FileTask, field_of, row_fields, set_name, text_of, texts_of
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.spans import END, OPEN
from unspoken.tasks.task import Traits

Chains = Literal["equations", "prose"]

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_PROSE_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True, kw_only=True)
class GradeSchoolConfig:
    """Which files, and what is read out of them.

    Attributes:
        train: a file (a JSON list, or one JSON object a line), or ``owner/name[:config]`` on the Hugging Face hub,
            whose "train" split is read.
        validation_rows: training rows held out, chosen by a hash of the question. A question that occurs several
            times goes as a whole, so there may be a few more.
        tests: files, or names on the hub, whose "test" split is read. A test set is named after its file without the
            suffix, or by the name on the hub without the owner.
        chains: "equations" like ``<<5+3=8>> <<8*2=16>>``, or GSM8K's "prose" without them. GSM8k-Aug has equations.
        skip_malformed: leave out rows that cannot be read, with a count, instead of refusing the file.
    """

    kind: ClassVar[str] = "grade_school"

    train: str
    validation_rows: int = 500
    tests: tuple[str, ...] = ()
    chains: Chains = "equations"
    skip_malformed: bool = False

    def __post_init__(self) -> None:
        if self.validation_rows < 0:
            raise ValueError(f"validation_rows is {self.validation_rows}; it cannot be negative")
        names = Counter(set_name(source) for source in self.tests)
        for name, count in names.items():
            if count > 1 or name in ("train", "validation"):
                reason = f"{count} test sets are named {name!r}" if count > 1 else f"a test set is named {name!r}"
                raise ValueError(f"{reason}; rename the file, since a test set is named after its file")

    @property
    def traits(self) -> Traits:
        """Natural language out of files."""
        return Traits(natural_language=True, from_files=True, markers=(OPEN, END))

    def build(self) -> GradeSchoolTask:
        """The task of this configuration; reads all files.

        Raises:
            ValueError: a file is missing, a row is malformed, or too few training rows are left.
        """
        return GradeSchoolTask(self)


class GradeSchoolTask(FileTask):
    """Reads and serves grade-school problems; a training row is left out if its chain does not end in its answer."""

    nothing_typed = "the question is empty; type a word problem"

    def __init__(self, config: GradeSchoolConfig) -> None:
        self.config = config
        super().__init__(config)

    def _problem(self, row: Any, split: str) -> ReasoningProblem:
        return _problem(row, self.config.chains, split)

    def _fault(self, problem: ReasoningProblem) -> str | None:
        return _chain_fault(problem, self.config.chains)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the data: what the files hold and how they are read, but not where they lie."""
        text = json.dumps(
            {
                "kind": self.config.kind,
                "files": self._digests,
                "validation_rows": self.config.validation_rows,
                "chains": self.config.chains,
                "skip_malformed": self.config.skip_malformed,
            },
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- reading ---------------------------------------------------------------------------------------------------


def _problem(row: Any, kind: Chains, source: str) -> ReasoningProblem:
    """One row as a problem.

    Args:
        row: an object, or the line of text that should hold one.
        kind: which chains are wanted.
        source: first part of the key.

    Raises:
        ValueError: the row cannot be read; the message says why, but not where.
    """
    row = row_fields(row)
    chain = ""
    if "steps" in row:
        question, answer = text_of(row, "question"), _number(field_of(row, "answer"), "answer")
        chain = _steps(row, kind)
    elif "Body" in row:
        question = f"{text_of(row, 'Body')} {text_of(row, 'Question')}"
        answer = _number(field_of(row, "Answer"), "Answer")
    elif "input" in row:
        question, answer = text_of(row, "input"), _number(field_of(row, "target"), "target")
    elif "question" in row:
        question = text_of(row, "question")
        told, mark, number = text_of(row, "answer").rpartition("####")
        if not mark:
            raise ValueError("the answer has no '#### number' at its end, and there are no steps")
        answer = _number(number, "answer")
        equations = " ".join(_ANNOTATION.findall(told))
        chain = equations if kind == "equations" else _ANNOTATION.sub("", told).strip()
    else:
        raise ValueError(
            f"unknown fields {', '.join(map(repr, row)) or '(none)'}; known are question, steps, answer (GSM8k-Aug), "
            "question, answer (GSM8K), input, target (GSM-Hard, MultiArith) and Body, Question, Answer (SVAMP)"
        )
    content = hashlib.sha256(json.dumps([question, chain, answer]).encode()).hexdigest()[:16]
    return ReasoningProblem(
        question=question, chains=(chain,) if chain else (), answer=answer, key=f"{source}:{content}"
    )


def _steps(row: dict[str, Any], kind: Chains) -> str:
    """The chain of a GSM8k-Aug row."""
    steps = texts_of(row, "steps")
    found = "equations" if all(_ANNOTATION.fullmatch(step) for step in steps) else "prose"
    if steps and found != kind:
        raise ValueError(f"the steps are {found}, but chains is {kind!r}")
    return " ".join(steps)


def _number(value: Any, name: str) -> str:
    """An answer as text; whatever is a plain number has one spelling, the rest ("4/5", "5:45") stays as it is."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"field {name!r} is {value!r}; it must be a number or text")
    if not re.search(r"\d", str(value)):
        raise ValueError(f"field {name!r} is {value!r}; there is no number in it")
    return _plain(str(value))


def _plain(text: str) -> str:
    """One spelling for a number: "$1,234.50" is "1234.5", "18.0" and "18." are "18"."""
    text = text.strip()
    bare = text.replace("$", "", 1)
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d*)?", bare):
        bare = bare.replace(",", "")
    if not _NUMBER.fullmatch(bare):
        return text
    number = Decimal(bare)
    spelled = format(number, "f")
    if "." in spelled:
        spelled = spelled.rstrip("0").rstrip(".")
    return spelled if number else "0"


def _chain_fault(problem: ReasoningProblem, kind: Chains) -> str | None:
    """Why a problem cannot be trained on: its chain must end in its answer."""
    if not problem.chains:
        return "no chain"
    if kind == "equations":
        last = problem.chains[0].rpartition("=")[2].removesuffix(">>")
    else:
        last = (_PROSE_NUMBER.findall(problem.chains[0]) or [""])[-1]
    return None if _plain(last) == problem.answer else "chain does not end in the answer"
