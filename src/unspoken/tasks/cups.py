"""Balls under cups that are swapped: state tracking, whose state is a permutation.

    Cups hold A B C. Swap 1 3. Swap 2 3. Which ball is in cup 2?          C B A. C A B.   A

The explicit chain holds the state after every swap. With five cups the states are the permutations of five things,
whose composition a Transformer of fixed depth cannot do for any number of swaps in one pass unless TC0 = NC1 (Merrill
and Sabharwal, arXiv 2310.07923), so a chain is needed and cannot be skipped by depth alone.

Sample i is a pure function of (config, seed, split, i). A problem belongs to one split, by a hash of its swaps and of
the cup that is asked for.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from random import Random
from string import ascii_uppercase
from typing import TYPE_CHECKING, ClassVar

from unspoken.tasks.problems import MadeUpConfig, MadeUpTask, ReasoningProblem, check_numbers
from unspoken.tasks.spans import END, OPEN
from unspoken.tasks.task import ProblemList, split_of
from unspoken.tasks.tokenizing import by_word

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPLIT_CLASSES = 8  # six for training, one for validation, one for test
_MARKERS = ("[PAD]", "[EOS]", OPEN, END, "\\boxed{", "}")
_WORDS = (*_MARKERS, ".", "?", "Cups", "hold", "Swap", "Which", "ball", "is", "in", "cup")
_SWAP = re.compile(r"Swap (\d+) (\d+)\.")
_QUESTION = re.compile(r"Cups hold ((?:[A-Z] )*[A-Z])\.((?: Swap \d+ \d+\.)+) Which ball is in cup (\d+)\?")


@dataclass(frozen=True, kw_only=True)
class CupsConfig(MadeUpConfig):
    """What a problem looks like."""

    kind: ClassVar[str] = "cups"

    cups: int = 5  # how many; 2 to 9
    swaps: tuple[int, ...] = (2, 3, 4)  # numbers of swaps that occur, each equally often; 1 to 40, of two cups 3 to 40

    def __post_init__(self) -> None:
        if not 2 <= self.cups <= 9:
            raise ValueError(f"cups is {self.cups}; it must be from 2 to 9")
        check_numbers("swaps", self.swaps, 40)
        if self.cups == 2 and min(self.swaps) < 3:
            raise ValueError(
                f"swaps is {self.swaps}; with 2 cups each number must be at least 3, or there are too few problems"
            )

    def build(self) -> CupsTask:
        return CupsTask(self)


class CupsTask(MadeUpTask):
    """Makes and reads problems of swapped cups."""

    def __init__(self, config: CupsConfig) -> None:
        self.config = config

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per word, cup, ball and stop."""
        return by_word([*_WORDS, *map(str, range(1, self.config.cups + 1)), *ascii_uppercase[: self.config.cups]])

    def parse(self, text: str) -> ProblemList[ReasoningProblem]:
        """A question typed by a person, with its chain and its answer."""
        match = _QUESTION.fullmatch(text.strip())
        held, moves, number = match.groups() if match else ("", "", "0")
        balls, asked = held.split(" "), int(number)
        swaps = [(int(first), int(second)) for first, second in _SWAP.findall(moves)]
        numbers = {asked, *(cup for swap in swaps for cup in swap)}
        if sorted(balls) != list(ascii_uppercase[: self.config.cups]) or not numbers <= set(range(1, len(balls) + 1)):
            example = self.sample("train", [0])[0].question
            raise ValueError(f"this is no question about {self.config.cups} cups; ask like {example!r}")
        return ProblemList([_problem(balls, swaps, asked, "typed")])

    def _make(self, split: str, index: int, seed: int) -> ReasoningProblem:
        random = Random(f"{seed}:{split}:{index}")
        numbers, count = range(1, self.config.cups + 1), random.choice(self.config.swaps)
        while True:
            swaps = [tuple(random.sample(numbers, 2)) for _ in range(count)]
            asked = random.choice(numbers)
            digest = hashlib.sha256(repr((swaps, asked)).encode()).digest()
            if split_of(int.from_bytes(digest[:8], "big"), _SPLIT_CLASSES) == split:
                break
        balls = random.sample(ascii_uppercase[: self.config.cups], self.config.cups)
        return _problem(balls, [(first, second) for first, second in swaps], asked, f"{split}:{seed}:{index}")


def _problem(balls: list[str], swaps: list[tuple[int, int]], asked: int, key: str) -> ReasoningProblem:
    state, states = list(balls), []
    for first, second in swaps:
        state[first - 1], state[second - 1] = state[second - 1], state[first - 1]
        states.append(f"{' '.join(state)}.")
    steps = tuple(text if not number else f" {text}" for number, text in enumerate(states))
    moves = " ".join(f"Swap {first} {second}." for first, second in swaps)
    return ReasoningProblem(
        question=f"Cups hold {' '.join(balls)}. {moves} Which ball is in cup {asked}?",
        chains=("".join(steps),),
        answer=state[asked - 1],
        key=key,
        given_steps=steps,
        grader="string",
    )
