"""How often does the first letter of a word occur? ``babcb``: three times.

The explicit chain counts along, a digit a letter: ``11223``. Sample i is a pure function of (settings, seed, split, i);
a word belongs to one split, by its hash.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, ClassVar

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from unspoken.tasks.problems import ReasoningProblem, ReasoningTask
from unspoken.tasks.spans import END, OPEN
from unspoken.tasks.task import Indices, ProblemList, Traits, check_split
from unspoken.tasks.tokenizing import EOS_TOKEN, PAD_TOKEN, padded_left

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LETTERS, DIGITS = "abc", "0123456789"


@dataclass(frozen=True, kw_only=True)
class CountingConfig:
    """What a recipe's ``task`` mapping may hold.

    Attributes:
        longest: letters of the longest word; the shortest has two.
    """

    kind: ClassVar[str] = "counting"

    longest: int = 9

    def __post_init__(self) -> None:
        if not 2 <= self.longest <= 9:
            raise ValueError(f"longest is {self.longest}; a word has 2 to 9 letters, so that a count is one digit")

    @property
    def traits(self) -> Traits:
        """Words of its own vocabulary, with a chain between markers."""
        return Traits(own_vocabulary=True, markers=(OPEN, END))

    def build(self) -> CountingTask:
        """The task of these settings."""
        return CountingTask(self)


class CountingTask(ReasoningTask):
    """Makes and reads words."""

    tests = ("test",)

    def __init__(self, config: CountingConfig) -> None:
        self.config = config

    @property
    def fingerprint(self) -> str:
        """Identifies the data that this task makes."""
        return hashlib.sha256(repr(self.config).encode()).hexdigest()[:16]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a character, a marker, and the opening of a box."""
        tokens = [PAD_TOKEN, EOS_TOKEN, OPEN, END, "\\boxed{", "}", *LETTERS, *DIGITS]
        known = {token: index for index, token in enumerate(tokens)}
        made = Tokenizer(models.WordLevel(known, unk_token=PAD_TOKEN))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(r"</?think>|\\boxed\{|\[[A-Z]+\]|."), behavior="isolated")
        made.decoder = decoders.Fuse()
        return padded_left(made)

    def size(self, split: str) -> None:
        """Every split is endless."""
        check_split(split)

    def sample(self, split: str, indices: Indices, seed: int = 0) -> ProblemList[ReasoningProblem]:
        """The problems with the given indices."""
        self.size(split)
        return ProblemList(self._make(split, int(index), seed) for index in indices)

    def parse(self, text: str) -> ProblemList[ReasoningProblem]:
        """A word typed by a person, without its answer."""
        word = text.strip()
        if not word or set(word) - set(LETTERS):
            raise ValueError(f"{text!r} is not a word of the letters {LETTERS}; type one, such as babcb")
        return ProblemList([ReasoningProblem(question=word, chains=(), answer="", key="typed")])

    def _make(self, split: str, index: int, seed: int) -> ReasoningProblem:
        random, word = Random(f"{seed}:{split}:{index}"), ""
        while not word or _split_of(word) != split:
            word = "".join(random.choices(LETTERS, k=random.randint(2, self.config.longest)))
        counts = [str(word[: place + 1].count(word[0])) for place in range(len(word))]
        return ReasoningProblem(
            question=word,
            chains=("".join(counts),),
            given_steps=tuple(counts),
            answer=counts[-1],
            key=f"{split}:{seed}:{index}",
        )


def _split_of(word: str) -> str:
    return {0: "validation", 1: "test"}.get(hashlib.sha256(word.encode()).digest()[0] % 8, "train")
