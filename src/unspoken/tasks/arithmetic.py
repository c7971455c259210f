"""Made-up word problems about who has how many things, in two to four steps of whole-number arithmetic.

A problem is a small directed graph of quantities. Each belongs to a person and is either given or made by one step out
of one or two earlier ones; the last step makes the answer, and every other quantity is used on the way to it::

    Ann has 5 pears. Bo has 3 more pears than Ann. Cy has 2 times as many pears as Ann.
    How many pears do Bo and Cy have together?          <<5+3=8>> <<5*2=10>> <<8+10=18>>

Steps that do not need each other may be taken in either order, so a problem often has several valid chains, all of
which are known. Without ``joins`` a problem is about one person, and there is one chain::

    Ann has 12 pears. Ann finds 5 more. Ann loses 3. How many pears are left?          <<12+5=17>> <<17-3=14>>

The chains have the form of GSM8k-Aug (Deng et al., arXiv 2311.01460).

Sample i is a pure function of (config, seed, split, i). A problem belongs to exactly one split, by a hash of its
answer written as one expression of the given numbers; names, things and the order of sentences do not enter. So no
calculation that is tested was ever trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache, cached_property
from itertools import combinations, islice
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from unspoken.tasks.problems import MadeUpConfig, MadeUpTask, ReasoningProblem, check_numbers
from unspoken.tasks.task import ProblemList, digest, split_of
from unspoken.tasks.tokenizing import WORD, by_word

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Operation = Literal["add", "subtract", "multiply", "divide"]

SYMBOLS: dict[Operation, str] = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
# fmt: off
NAMES = (
    "Ann", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal", "Ida", "Jan", "Kit", "Lea",
    "Max", "Ned", "Ola", "Pam", "Quin", "Ray", "Sue", "Tom", "Una", "Val", "Wes", "Zoe",
)
THINGS = (
    "apples", "balls", "beads", "books", "cards", "coins", "cups", "eggs",
    "kites", "marbles", "nuts", "pears", "pens", "plums", "shells", "stamps",
)
# fmt: on

# {new} is the person that a sentence introduces, {old} and {other} are known by then.
_GIVEN = ("{new} has {number} {things}.", "{new} owns {number} {things}.", "The bag of {new} holds {number} {things}.")
_FROM_ONE: dict[Operation, tuple[str, ...]] = {
    "add": (
        "{new} has {number} more {things} than {old}.",
        "{new} has as many {things} as {old} would have after finding {number} more.",
        "{new} owns the same number of {things} as {old} and {number} more.",
    ),
    "subtract": (
        "{new} has {number} fewer {things} than {old}.",
        "{new} has as many {things} as {old} would have after giving away {number}.",
        "{new} owns {number} {things} less than {old} does.",
    ),
    "multiply": (
        "{new} has {number} times as many {things} as {old}.",
        "For each of the {things} that {old} has, {new} has {number}.",
        "{new} owns {number} times the number of {things} that {old} owns.",
    ),
    "divide": (
        "{new} has as many {things} as there are in one of {number} equal shares of what {old} has.",
        "If {old} filled {number} bags with the same number of {things}, each bag would hold as many as {new} has.",
    ),
}
_FROM_TWO: dict[Operation, tuple[str, ...]] = {
    "add": (
        "{new} has as many {things} as {old} and {other} together.",
        "{new} owns the same number of {things} as {old} and {other} put together.",
    ),
    "subtract": (
        "{new} has as many {things} as {other} would need to catch up with {old}.",
        "What {new} has is the difference between the {things} of {old} and the {things} of {other}.",
    ),
}
_ASK_TWO: dict[Operation, tuple[str, ...]] = {
    "add": (
        "How many {things} do {old} and {other} have together?",
        "{old} and {other} put all their {things} in one box. How many {things} are in the box?",
        "How many {things} do {old} and {other} own in all?",
    ),
    "subtract": (
        "How many more {things} does {old} have than {other}?",
        "How many fewer {things} does {other} have than {old}?",
        "How many {things} must {other} find to have as many as {old}?",
    ),
}
_ASK_ONE = ("How many {things} does {old} have?", "How many {things} does {old} own?")
# Without joins, one person's number changes from sentence to sentence.
_CHANGE: dict[Operation, tuple[str, ...]] = {
    "add": ("{new} finds {number} more.", "{new} buys {number} more.", "A friend gives {new} {number}."),
    "subtract": ("{new} loses {number}.", "{new} sells {number} of them.", "{new} gives away {number}."),
    "multiply": ("Then {new} has {number} times as many.", "{new} makes {number} out of each."),
    "divide": ("{new} keeps one of {number} equal shares.", "{new} swaps every {number} for one."),
}
_ASK_NOW = ("How many {things} does {old} have now?", "How many {things} are left?")

_SPECIAL = ("[PAD]", "[EOS]")
_MARKERS = ("<think>", "</think>", "\\boxed{", "}", "<<", ">>", "=", *SYMBOLS.values())
_SPLIT_CLASSES = 8  # six for training, one for validation, one for test
_CHAINS = 8  # orders of steps that are written out
_TRIES = 4  # for one step, before the whole problem is drawn anew
_LARGEST_NUMBER = 10**5
_LARGEST_FACTOR = 9  # "23 times as many" is not how people talk


def _words(joins: bool) -> list[str]:
    """Every word and stop of a question, names and things included."""
    groups = (_FROM_ONE, _FROM_TWO, _ASK_TWO) if joins else (_CHANGE,)
    several = [text for group in groups for texts in group.values() for text in texts]
    sentences = " ".join([*_GIVEN, *several, *(_ASK_ONE if joins else _ASK_NOW), *NAMES, *THINGS])
    return sorted(set(re.findall(r"[A-Za-z]+|[.?,]", re.sub(r"\{\w+\}", " ", sentences))))


@dataclass(frozen=True, kw_only=True)
class ArithmeticConfig(MadeUpConfig):
    """What a made-up word problem looks like."""

    kind: ClassVar[str] = "arithmetic"

    steps: tuple[int, ...] = (2, 3, 4)  # numbers of steps that occur, each equally often; 1 to 6
    largest: int = 99  # no number in a problem, given or computed, is above it; at least 20. Each number is one token.
    # What a step may be. Only adding and subtracting join two people's quantities, so one of them is needed.
    operations: tuple[Operation, ...] = ("add", "subtract", "multiply")
    # Whether a step may be made of two earlier quantities. If not, a problem is about one person, whose number each
    # step changes: no names need be looked up, and steps have one order.
    joins: bool = True

    def __post_init__(self) -> None:
        check_numbers("steps", self.steps, 6)
        if not 20 <= self.largest <= _LARGEST_NUMBER:
            raise ValueError(
                f"largest is {self.largest}; it must be from 20 (below, there are too few problems) to "
                f"{_LARGEST_NUMBER} (each number is a token)"
            )
        if len(set(self.operations)) < len(self.operations):
            raise ValueError(f"operations is {self.operations}; it must list each operation once")
        if not {"add", "subtract"} & set(self.operations):
            raise ValueError(
                f"operations is {self.operations}; it must contain add or subtract: only these join the quantities of "
                "two people, and multiplying and dividing alone soon exceed largest"
            )

    def build(self) -> ArithmeticTask:
        return ArithmeticTask(self)


class _Quantity(NamedTuple):
    """A number of things: given, or made by one step out of earlier quantities."""

    value: int
    operation: Operation | None = None
    sources: tuple[int, ...] = ()  # the quantities it is made of, by their index in the problem
    number: int | None = None  # the number in the sentence, if it is made of one quantity


@cache
def _choices(count: int, unused: frozenset[int], left: int, joins: bool) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """What the next step may be made of: the ways to take one of ``count`` quantities, and the ways to take two.

    Every quantity must be used in the end. Each of the ``left`` steps after this one can bring the number of unused
    quantities down by one if it may join two, and the answer alone may be left over.
    """
    spare, sizes = (left, (1, 2)) if joins else (0, (1,))
    ways = [
        tuple(sources for sources in combinations(range(count), size) if len(unused.difference(sources)) <= spare)
        for size in sizes
    ]
    return tuple(way for way in ways if way)


def _orders(needs: Sequence[frozenset[int]], done: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """All orders of the steps in which each comes after those that it needs, the order of the text first."""
    if len(done) == len(needs):
        yield done
    for step in range(len(needs)):
        if step not in done and needs[step] <= frozenset(done):
            yield from _orders(needs, (*done, step))


class ArithmeticTask(MadeUpTask):
    """Makes and reads made-up word problems."""

    def __init__(self, config: ArithmeticConfig) -> None:
        self.config = config

    @property
    def fingerprint(self) -> str:
        settings = {"kind": self.config.kind, **asdict(self.config)}
        if self.config.joins:  # as in runs from before there was a choice
            del settings["joins"]
        return digest(settings)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per word, number, stop and sign."""
        return by_word([*_SPECIAL, *_MARKERS, *map(str, range(self.config.largest + 1)), *_words(self.config.joins)])

    def parse(self, text: str) -> ProblemList[ReasoningProblem]:
        """A question typed by a person, of words that this task knows."""
        problems = super().parse(text)
        known = {*_words(self.config.joins), *map(str, range(self.config.largest + 1))}
        for word in re.findall(WORD, problems[0].question):
            if word not in known:
                raise ValueError(
                    f"unknown word {word!r} in the question; use whole numbers up to {self.config.largest} and "
                    f"sentences like {self.sample('train', [0])[0].question!r}"
                )
        return problems

    # --- making ------------------------------------------------------------------------------------------------

    def _make(self, split: str, index: int, seed: int) -> ReasoningProblem:
        random = Random(f"{seed}:{split}:{index}")
        # Chosen once: long problems fail more often, and would else be rarer.
        steps = random.choice(self.config.steps)
        while True:
            quantities = self._draw(random, steps)
            if quantities is not None and _split_of(quantities) == split and not _has_idle(quantities):
                break
        return ReasoningProblem(
            question=_tell(random, quantities) if self.config.joins else _tell_of_one(random, quantities),
            chains=_chains(quantities),
            answer=str(quantities[-1].value),
            key=f"{split}:{seed}:{index}",
        )

    def _draw(self, random: Random, steps: int) -> list[_Quantity] | None:
        """The quantities of a problem, in the order of the text; None if the draw came to a dead end."""
        # Small numbers are more likely, since the products of large ones would exceed the limit.
        givens = range(2, self.config.largest + 1)
        given = random.choice((1, 2)) if self.config.joins else 1
        quantities = [_Quantity(givens[int(random.random() ** 2 * len(givens))]) for _ in range(given)]
        unused = frozenset(range(len(quantities)))
        seen = {quantity.value for quantity in quantities}
        if len(seen) < len(quantities):
            return None
        for left in reversed(range(steps)):
            choices = _choices(len(quantities), unused, left, self.config.joins)
            for _ in range(_TRIES):
                sources = random.choice(random.choice(choices))
                made = self._one_step(random, quantities, sources)
                # A number that stands in the text already could be guessed.
                if made and made.value <= self.config.largest and made.value not in seen and made.value != made.number:
                    break
            else:
                return None
            seen |= {made.value} if made.number is None else {made.value, made.number}
            unused = unused.difference(sources) | {len(quantities)}
            quantities.append(made)
        return quantities

    def _one_step(self, random: Random, quantities: list[_Quantity], sources: tuple[int, ...]) -> _Quantity | None:
        """A step from one quantity by a number, or from two quantities; None if no number fits."""
        values = [quantities[source].value for source in sources]
        if len(sources) == 2:
            operation = random.choice([joining for joining in _FROM_TWO if joining in self.config.operations])
            if operation == "add":
                swapped = random.random() < 0.5
                return _Quantity(sum(values), operation, sources[::-1] if swapped else sources)
            more, less = sorted(sources, key=lambda source: quantities[source].value, reverse=True)
            return _Quantity(quantities[more].value - quantities[less].value, operation, (more, less))
        value, operation = values[0], random.choice(self.config.operations)
        # Numbers start at two, so that every thing is in the plural.
        if operation == "add":
            numbers: Sequence[int] = range(2, self.config.largest - value + 1)
        elif operation == "subtract":
            numbers = range(2, value)
        elif operation == "multiply":
            numbers = range(2, min(_LARGEST_FACTOR, self.config.largest // value) + 1)
        else:
            numbers = [number for number in range(2, _LARGEST_FACTOR + 1) if value % number == 0]
        if not numbers:
            return None
        number = numbers[int(random.random() ** 2 * len(numbers))]
        results = {
            "add": value + number,
            "subtract": value - number,
            "multiply": value * number,
            "divide": value // number,
        }
        return _Quantity(results[operation], operation, sources, number)


def _has_idle(quantities: Sequence[_Quantity]) -> bool:
    """Whether some quantity cancels out, as what Ann has does in (Ann + 7) - (Ann + 3).

    That is a derivative of the answer that is zero; they are summed up from the answer backwards.
    """
    slopes: list[int | Fraction] = [int(quantity is quantities[-1]) for quantity in quantities]
    for index in reversed(range(len(quantities))):
        quantity, slope = quantities[index], slopes[index]
        if not slope:
            return True
        factors: list[int | Fraction] = [1, -1 if quantity.operation == "subtract" else 1]
        if quantity.number is not None:
            by_number: dict[str, int | Fraction] = {"multiply": quantity.number, "divide": Fraction(1, quantity.number)}
            factors = [by_number.get(quantity.operation or "", 1)]
        for source, factor in zip(quantity.sources, factors, strict=False):
            slopes[source] += slope * factor
    return False


def _split_of(quantities: Sequence[_Quantity]) -> str:
    """The split of a problem: a hash of the answer's expression, blind to the order of what is added or multiplied."""
    expressions: list[str] = []
    for quantity in quantities:
        if quantity.operation is None:
            expressions.append(str(quantity.value))
            continue
        terms = [expressions[source] for source in quantity.sources]
        if quantity.number is not None:
            terms.append(str(quantity.number))
        if quantity.operation in ("add", "multiply"):
            terms.sort()
        expressions.append(f"({SYMBOLS[quantity.operation].join(terms)})")
    return split_of(hashlib.blake2b(expressions[-1].encode(), digest_size=8).digest()[0], _SPLIT_CLASSES)


def _chains(quantities: Sequence[_Quantity]) -> tuple[str, ...]:
    """The equations in every valid order, the order of the text first."""
    given = sum(quantity.operation is None for quantity in quantities)
    equations = []
    for quantity in quantities[given:]:
        terms = [quantities[source].value for source in quantity.sources]
        terms += [] if quantity.number is None else [quantity.number]
        assert quantity.operation is not None
        equations.append(f"<<{terms[0]}{SYMBOLS[quantity.operation]}{terms[1]}={quantity.value}>>")
    needs = [
        frozenset(source - given for source in quantity.sources if source >= given) for quantity in quantities[given:]
    ]
    return tuple(" ".join(equations[step] for step in order) for order in islice(_orders(needs), _CHAINS))


def _tell(random: Random, quantities: Sequence[_Quantity]) -> str:
    """The problem in words."""
    people = random.sample(NAMES, len(quantities))
    things = random.choice(THINGS)
    sentences = []
    last = len(quantities) - 1
    for index, (new, quantity) in enumerate(zip(people, quantities, strict=True)):
        if quantity.operation is None:
            texts: tuple[str, ...] = _GIVEN
        elif len(quantity.sources) == 1:
            texts = _FROM_ONE[quantity.operation]
        else:
            texts = (_ASK_TWO if index == last else _FROM_TWO)[quantity.operation]
        known = dict(zip(("old", "other"), (people[source] for source in quantity.sources), strict=False))
        number = quantity.value if quantity.operation is None else quantity.number
        sentences.append(random.choice(texts).format(new=new, number=number, things=things, **known))
    if len(quantities[last].sources) == 1:
        sentences.append(random.choice(_ASK_ONE).format(old=people[last], things=things))
    return " ".join(sentences)


def _tell_of_one(random: Random, quantities: Sequence[_Quantity]) -> str:
    """The problem in words, where each quantity is what the same person has after a change."""
    person, things = random.choice(NAMES), random.choice(THINGS)
    sentences = []
    for quantity in quantities:
        texts = _GIVEN if quantity.operation is None else _CHANGE[quantity.operation]
        number = quantity.value if quantity.operation is None else quantity.number
        sentences.append(random.choice(texts).format(new=person, number=number, things=things))
    sentences.append(random.choice(_ASK_NOW).format(old=person, things=things))
    return " ".join(sentences)
