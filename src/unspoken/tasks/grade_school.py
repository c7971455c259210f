"""Grade-school word problems from files: GSM8K and its relatives.

Training rows come from GSM8k-Aug (Deng et al., arXiv 2311.01460: chains of bare equations) or GSM8K (Cobbe et al.,
arXiv 2110.14168: prose with annotated equations); tests also from GSM-Hard, SVAMP and MultiArith. On the hub, GSM-Hard
has one split, so its name there is ``reasoning-machines/gsm-hard@train``. The fields of a row determine its format:

==============================================  =======================================================
fields                                          source
==============================================  =======================================================
``question``, ``steps`` (list), ``answer``      GSM8k-Aug
``question``, ``answer`` ending in ``#### 18``  GSM8K
``input``, ``target``                           GSM-Hard, MultiArith
``question``, ``final_ans``                     MultiArith on the hub
``Body``, ``Question``, ``Answer``              SVAMP
==============================================  =======================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, ClassVar, Literal

from unspoken.tasks.files import FileConfig, FileTask, field_of, row_fields, text_of, texts_of, unknown_fields
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.task import digest

Chains = Literal["equations", "prose"]

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_PROSE_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True, kw_only=True)
class GradeSchoolConfig(FileConfig):
    """Which files, see `FileConfig`, and what is read out of them."""

    kind: ClassVar[str] = "grade_school"

    train: str
    validation_rows: int = 500
    # "equations" like ``<<5+3=8>> <<8*2=16>>``, or GSM8K's "prose" without them. GSM8k-Aug has equations.
    chains: Chains = "equations"

    def build(self) -> GradeSchoolTask:
        return GradeSchoolTask(self)


class GradeSchoolTask(FileTask):
    """Grade-school problems; a training row is left out if its chain does not end in its answer."""

    config: GradeSchoolConfig

    def _problem(self, row: Any, split: str) -> ReasoningProblem:
        fields, chain = row_fields(row), ""
        if "steps" in fields:
            question, answer = text_of(fields, "question"), _number(field_of(fields, "answer"), "answer")
            chain = _steps(fields, self.config.chains)
        elif "Body" in fields:
            question = f"{text_of(fields, 'Body')} {text_of(fields, 'Question')}"
            answer = _number(field_of(fields, "Answer"), "Answer")
        elif "final_ans" in fields:
            question, answer = text_of(fields, "question"), _number(field_of(fields, "final_ans"), "final_ans")
        elif "input" in fields:
            question, answer = text_of(fields, "input"), _number(field_of(fields, "target"), "target")
        elif "question" in fields:
            question = text_of(fields, "question")
            solution, mark, number = text_of(fields, "answer").rpartition("####")
            if not mark:
                raise ValueError("the answer has no '#### number' at its end, and there are no steps")
            answer = _number(number, "answer")
            equations = " ".join(_ANNOTATION.findall(solution))
            chain = equations if self.config.chains == "equations" else _ANNOTATION.sub("", solution).strip()
        else:
            raise unknown_fields(
                fields,
                "question, steps, answer (GSM8k-Aug), question, answer (GSM8K), input, target (GSM-Hard, MultiArith), "
                "question, final_ans (MultiArith) and Body, Question, Answer (SVAMP)",
            )
        key = f"{split}:{digest([question, chain, answer])}"
        return ReasoningProblem(question=question, chains=(chain,) if chain else (), answer=answer, key=key)

    def _fault(self, problem: ReasoningProblem) -> str | None:
        return _chain_fault(problem, self.config.chains)

    @cached_property
    def fingerprint(self) -> str:
        read = {name: getattr(self.config, name) for name in ("kind", "validation_rows", "chains", "skip_malformed")}
        # Another rule for prose leaves in other rows.
        rule = {"answer": "in the last sentence"} if self.config.chains == "prose" else {}
        return digest({**read, **rule, "files": self._digests})


def _steps(row: dict[str, Any], kind: Chains) -> str:
    """The chain of a GSM8k-Aug row."""
    steps = texts_of(row, "steps")
    form = "equations" if all(_ANNOTATION.fullmatch(step) for step in steps) else "prose"
    if steps and form != kind:
        raise ValueError(f"the steps are {form}, but chains is {kind!r}")
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
    bare = text.replace("$", "")
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
        last = [problem.chains[0].rpartition("=")[2].removesuffix(">>")]
    else:
        # Its last sentence may go on after the answer: "It takes 5 hours to read 120 pages."
        last = _PROSE_NUMBER.findall(problem.steps[-1])
    return None if problem.answer in map(_plain, last) else "chain does not end in the answer"
