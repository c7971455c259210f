"""Competition mathematics from files: MATH-500 and AIME 2024 as tests, long chains to train on.

MATH-500 is the subset of MATH (Hendrycks et al., arXiv 2103.03874) chosen by Lightman et al. (arXiv 2305.20050). On the
Hugging Face hub the sets are ``HuggingFaceH4/MATH-500`` and ``HuggingFaceH4/aime_2024@train``, which is its one split.
The fields of a row determine its format:

==================================================  ========================================================
fields                                              source
==================================================  ========================================================
``problem``, ``answer``                             the names on the hub
``prompt`` (one user turn), ``final_answer``        the same sets as chat turns
``problem``, ``cot``, ``cot_answer``                training rows of Latent-SFT: the chain alone, and the text
                                                    after it, which ends in a box
==================================================  ========================================================

Answers are expressions, not only numbers; `unspoken.tasks.grading.graded` compares them in value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from unspoken.tasks.files import (
    FileConfig,
    FileTask,
    field_of,
    row_fields,
    text_of,
    unknown_fields,
)
from unspoken.tasks.grading import boxed
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.spans import END, OPEN
from unspoken.tasks.task import digest

Profile = Literal["as_released", "boxed_only"]


@dataclass(frozen=True, kw_only=True)
class CompetitionConfig(FileConfig):
    """Which files, see `FileConfig`, and what follows a chain."""

    kind: ClassVar[str] = "competition"

    validation_rows: int = 500
    # What follows the chain in training rows. "as_released" is the whole solution in prose, as in the authors' data,
    # where most of the reasoning may well happen; "boxed_only" is the boxed answer alone.
    profile: Profile = "boxed_only"

    def build(self) -> CompetitionTask:
        return CompetitionTask(self)


class CompetitionTask(FileTask):
    """Competition problems."""

    config: CompetitionConfig

    def _problem(self, row: Any, split: str) -> ReasoningProblem:
        fields, chain, solution = row_fields(row), "", ""
        if "cot" in fields:
            question, written = text_of(fields, "problem"), text_of(fields, "cot_answer")
            chain = text_of(fields, "cot").removeprefix(OPEN).removesuffix(END).strip()
            answer = boxed(written)
            if answer is None:
                raise ValueError("field 'cot_answer' has no complete \\boxed{...}")
            if not chain:
                raise ValueError("field 'cot' is empty between its markers")
            solution = written if self.config.profile == "as_released" else ""
        elif split == "train":
            raise ValueError("a training row needs the fields problem, cot and cot_answer")
        elif "final_answer" in fields:
            question, answer = _asked(field_of(fields, "prompt")), _short(fields, "final_answer")
        elif "problem" in fields:
            question, answer = text_of(fields, "problem"), _short(fields, "answer")
        else:
            raise unknown_fields(fields, "problem, answer; prompt, final_answer; and problem, cot, cot_answer")
        return ReasoningProblem(
            question=question,
            chains=(chain,) if chain else (),
            answer=answer.strip(),
            key=f"{split}:{digest([question, chain, solution, answer])}",
            solution=solution,
        )

    @cached_property
    def fingerprint(self) -> str:
        config = self.config
        return digest([config.kind, self._digests, config.validation_rows, config.profile, config.skip_malformed])


def _asked(turns: Any) -> str:
    """What the one user turn of a chat asks."""
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], dict):
        raise ValueError("field 'prompt' must be a list of one turn")
    return text_of(turns[0], "value")


def _short(fields: dict[str, Any], name: str) -> str:
    """An answer: text, or a whole number."""
    value = field_of(fields, name)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_of(fields, name)
