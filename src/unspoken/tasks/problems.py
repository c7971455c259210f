"""Word problems: what every task shares that asks in words and is answered by a number in a box.

A model reads a question, reasons over an explicit or a latent chain, and says ``\\boxed{18}``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Indices: TypeAlias = Sequence[int] | NDArray[np.int64]

_TIME_LIMIT = 5  # seconds for one comparison: a model may well say 9^{9^9}
# White space stays with the step behind it, as tokenizers have it.
_STEP_END = re.compile(r"(?:(?<=>>)|(?<=[.!?]))(?=\s+\S)|(?<=\S)(?=[ \t]*\n\s*\S)")


@dataclass(frozen=True, kw_only=True)
class ReasoningProblem:
    """One problem.

    Attributes:
        question: what is asked.
        chains: explicit chains of thought, all valid; the first is the one trained on. Empty where none is known.
        answer: the right answer, without a box; empty where it is not known.
        key: names the row, whatever its place in a batch or a file.
        solution: what is said behind the chain, if it is more than the boxed answer.
    """

    question: str
    chains: tuple[str, ...]
    answer: str
    key: str
    solution: str = ""

    @property
    def steps(self) -> tuple[str, ...]:
        """The first chain cut into equations ``<<5+3=8>>``, sentences or lines; joined, they are the chain again."""
        return tuple(_STEP_END.split(self.chains[0])) if self.chains else ()


@runtime_checkable
class ReasoningTask(Protocol):
    """Where word problems come from. Splits are "train", "validation" and the names of the test sets."""

    @property
    def config(self) -> Any:
        """The configuration that built this task."""

    @property
    def fingerprint(self) -> str:
        """Identifies the data of this task: sixteen hexadecimal digits."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """The tokenizer made for this task, or None where the backbone brings its own."""

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the test sets."""

    def size(self, split: str) -> int | None:
        """Problems in a split; None if it never ends.

        Raises:
            ValueError: there is no such split.
        """

    def sample(self, split: str, indices: Indices, seed: int = 0) -> list[ReasoningProblem]:
        """The problems with the given indices, a pure function of (configuration, seed, split, index).

        Raises:
            ValueError: there is no such split.
            IndexError: an index lies outside a split that ends.
        """

    def parse(self, text: str) -> ReasoningProblem:
        """A question typed by a person, as a problem without chain and answer.

        Raises:
            ValueError: the question is empty or cannot be read.
        """


def boxed(text: str) -> str | None:
    """The text inside the last complete ``\\boxed{...}``, whose braces balance; None if there is none."""
    for box in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth = 1
        for brace in re.compile(r"\\.|[{}]").finditer(text, box.end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped brace is not a brace
            if depth == 0:
                return text[box.end() : brace.start()]
    return None


@lru_cache(maxsize=2**16)
def _equal(said: str, answer: str) -> bool:
    """Whether two boxed texts are the same, or mean the same number or expression."""
    if said == answer:
        return True
    # Words are compared as they are: read as a product of letters, a word would equal its anagrams.
    if (said + answer).isalpha() and len(said) > 1 and len(answer) > 1:
        return False
    from math_verify import parse, verify

    # The library's time limit is a signal, which Python delivers to the main thread only.
    seconds = _TIME_LIMIT if threading.current_thread() is threading.main_thread() else None
    # Both are in a box: outside one the library would look for an answer among other words.
    right, given = (parse(f"\\boxed{{{text}}}", parsing_timeout=seconds) for text in (answer, said))
    return verify(right, given, timeout_seconds=seconds)


def graded(said: Sequence[str], problems: Sequence[ReasoningProblem]) -> NDArray[np.bool_]:
    """Grade what was said.

    A row is right if its boxed text is the answer, letter by letter or in value as Math-Verify has it (so ``18.0``,
    ``\\frac{36}{2}`` and ``9*2`` all mean 18, and numbers agree up to the sixth decimal place). Without a box it is
    wrong. A comparison that takes longer than five seconds is wrong too; outside the main thread nothing limits it.

    Args:
        said: everything that was said for each problem, ``[B]``.
        problems: ``[B]``.

    Returns:
        ``[B]``, true where right.

    Raises:
        ValueError: there are not as many texts as problems.
    """
    if len(said) != len(problems):
        raise ValueError(f"{len(said)} texts for {len(problems)} problems; every problem needs one text")
    found = [boxed(text) for text in said]
    right = [
        text is not None and _equal(text.strip(), problem.answer.strip())
        for text, problem in zip(found, problems, strict=True)
    ]
    return np.array(right, dtype=np.bool_)
