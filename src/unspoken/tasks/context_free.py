"""Levelled context-free grammars: drawing one, deriving strings from it, and recognising strings and their beginnings
(after Allen-Zhu and Li, arXiv 2305.13673, whose rules the papers do not print).

Axes: B strings, T tokens, P positions between tokens, W lengths of a span, C bytes of eight strings each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import pairwise
from random import Random
from statistics import fmean
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unspoken.tasks.task import Array

Rules: TypeAlias = tuple[tuple[tuple[int, ...], ...], ...]
Bits: TypeAlias = NDArray[np.uint8]
Truth: TypeAlias = NDArray[np.bool_]

PAD, EOS = range(2)
MARKERS = ("[PAD]", "[EOS]")
TERMINALS = "abc"
FIRST_TERMINAL = len(MARKERS)
SYMBOLS = range(FIRST_TERMINAL, FIRST_TERMINAL + len(TERMINALS))  # ids of the terminals

_SYMBOLS = (2, 2, 3, 6)  # on levels 1 to 4 of the paper's grammar; a smaller one keeps those next to the terminals
_MEAN_LENGTH = (600.0, 700.0)  # at five levels
LEVELS = len(_SYMBOLS) + 1
_TOGETHER = 128  # strings recognised at once: their tables still fit a cache


class _Spans(NamedTuple):
    """Where a symbol, or a row of symbols, can stand."""

    shortest: int  # the least length of what it derives
    # ``[W, P, C]``; a bit of ``[w, p]`` is set for a string whose ``shortest + w`` tokens from p on it derives.
    bits: Bits


def _join(first: _Spans, second: _Spans) -> _Spans:
    """Where the first can stand with the second right after it."""
    positions = first.bits.shape[1]
    bits = np.zeros((len(first.bits) + len(second.bits) - 1, *first.bits.shape[1:]), dtype=np.uint8)
    for more, starts_PC in enumerate(first.bits[: max(positions - first.shortest, 0)]):
        length = first.shortest + more
        both = starts_PC[: positions - length] & second.bits[:, length:]
        bits[more : more + len(second.bits), : positions - length] |= both
    return _Spans(first.shortest + second.shortest, bits)


def _before(spans: _Spans, goal_PC: Bits) -> Bits:
    """The positions ``[P, C]`` at which such a span starts that ends on a goal."""
    positions = len(goal_PC)
    starts_at_PC = np.zeros_like(goal_PC)
    for more, starts_PC in enumerate(spans.bits[: max(positions - spans.shortest, 0)]):
        length = spans.shortest + more
        starts_at_PC[: positions - length] |= starts_PC[: positions - length] & goal_PC[length:]
    return starts_at_PC


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A levelled context-free grammar over three terminals.

    Symbols are numbered level by level: 0 is the root, and after the last symbol that has rules come the terminals.

    Raises:
        ValueError: the rules are not levelled.
    """

    # Of each symbol, the rows of symbols that it may become, each equally likely. All derivations of a symbol take the
    # same number of levels.
    rules: Rules

    def __post_init__(self) -> None:
        ids = len(self.rules) + len(TERMINALS)
        height = [0] * ids
        for symbol in reversed(range(len(self.rules))):
            children = [child for rule in self.rules[symbol] for child in rule]
            below = {height[child] for child in children if symbol < child < ids}
            if len(below) != 1 or not all(self.rules[symbol]) or not all(symbol < child < ids for child in children):
                raise ValueError(
                    f"the rules of symbol {symbol} are {self.rules[symbol]}; "
                    f"they must be made of symbols {symbol + 1} to {ids - 1} that are all on one level"
                )
            height[symbol] = below.pop() + 1

    @classmethod
    @lru_cache(maxsize=8)
    def draw(cls, *, levels: int, rules: int, seed: int) -> Grammar:
        """The first grammar of a seed in which every symbol occurs, none share a rule, and the mean length is right.

        Args:
            levels: of production, 2 to 5.
            rules: of each symbol, 2 to 4.
        """
        assert 2 <= levels <= LEVELS and 2 <= rules <= 4
        random = Random(f"{levels}:{rules}:{seed}")
        sizes = (1, *_SYMBOLS[LEVELS - levels :], len(TERMINALS))
        least, most = (length ** (levels / LEVELS) for length in _MEAN_LENGTH)
        while True:
            made: list[tuple[tuple[int, ...], ...]] = []
            for size, below in pairwise(sizes):
                symbols = range(len(made) + size, len(made) + size + below)
                rows: list[tuple[int, ...]] = []
                while len(rows) < size * rules:
                    row = tuple(random.choices(symbols, k=random.choice((3, 4))))
                    if row not in rows:
                        rows.append(row)
                made += [tuple(rows[first : first + rules]) for first in range(0, len(rows), rules)]
            grammar = cls(rules=tuple(made))
            used = {symbol for choices in made for rule in choices for symbol in rule}
            if least <= grammar.mean_length <= most and len(used) == sum(sizes) - 1:
                return grammar

    def _over_rules(self, choose: Callable[[list[float]], float], leaf: float = 1, inner: float = 0) -> list[float]:
        """Of each symbol, a number that adds up over the nodes below it, chosen among its rules."""
        sums = [leaf] * (len(self.rules) + len(TERMINALS))
        for symbol in reversed(range(len(self.rules))):
            sums[symbol] = choose([inner + sum(sums[child] for child in rule) for rule in self.rules[symbol]])
        return sums

    @cached_property
    def mean_length(self) -> float:
        """Expected number of terminals of a string."""
        return self._over_rules(fmean)[0]

    @cached_property
    def lengths(self) -> list[tuple[int, int]]:
        """The fewest and the most terminals that each symbol derives."""
        pairs = zip(self._over_rules(min), self._over_rules(max), strict=True)
        return [(int(least), int(most)) for least, most in pairs]

    @cached_property
    def choices(self) -> int:
        """The most choices of a rule that one string takes."""
        return int(self._over_rules(max, leaf=0, inner=1)[0])

    @cached_property
    def _table(self) -> tuple[Array, NDArray[np.uint64]]:
        """The rules as an array ``[symbol, rule, place]``, and how many each symbol has.

        It is filled up with 0, the root, which no rule holds.
        """
        most = max(len(choices) for choices in self.rules)
        longest = max(len(rule) for choices in self.rules for rule in choices)
        table = np.zeros((len(self.rules), most, longest), dtype=np.int64)
        for symbol, choices in enumerate(self.rules):
            for number, rule in enumerate(choices):
                table[symbol, number, : len(rule)] = rule
        return table, np.array([len(choices) for choices in self.rules], dtype=np.uint64)

    def derive(self, noise: NDArray[np.uint64]) -> tuple[Array, Array]:
        """Make strings.

        Args:
            noise: ``[B, choices]`` uniform 64-bit integers, one for each choice of a rule, level by level.

        Returns:
            Token ids ``[B, T]``, padded on the left, and lengths ``[B]``.
        """
        assert noise.shape == (len(noise), self.choices), f"noise of shape {noise.shape} for {self.choices} choices"
        table, rules = self._table
        symbols = np.zeros(len(noise), dtype=np.int64)
        count_B = np.ones(len(noise), dtype=np.int64)
        used_B = np.zeros(len(noise), dtype=np.int64)
        while len(symbols) and symbols[0] < len(self.rules):
            first_B = np.cumsum(count_B) - count_B
            row = np.repeat(np.arange(len(noise)), count_B)
            column = np.arange(len(symbols)) - first_B[row] + used_B[row]
            made = table[symbols, (noise[row, column] % rules[symbols]).astype(np.int64)]
            used_B = used_B + count_B
            count_B = np.add.reduceat((made != 0).sum(axis=1), first_B)
            symbols = made[made != 0]
        ids_BT = np.full((len(noise), count_B.max(initial=0)), PAD, dtype=np.int64)
        ids_BT[last_places(ids_BT.shape[1], count_B)] = symbols - len(self.rules) + FIRST_TERMINAL
        return ids_BT, count_B

    def accepts(self, ids_BT: Array) -> Truth:
        """Whether each string is in the language, ``[B]``: exact, by dynamic programming over spans, terminals first.

        Args:
            ids_BT: token ids, padded on the left. After the padding, whatever is not a terminal derives from nothing.
        """
        return self._recognise(ids_BT, self._complete)

    def accepts_prefix(self, ids_BT: Array) -> Truth:
        """Whether each string begins some string of the language, or is one; the empty string does. See `accepts`."""
        return self._recognise(ids_BT, self._begun)

    def _recognise(self, ids_BT: Array, decide: Callable[[dict[int, _Spans], Bits], Bits]) -> Truth:
        verdicts = [np.zeros(0, dtype=np.bool_)]
        for first in range(0, len(ids_BT), _TOGETHER):
            some_BT = ids_BT[first : first + _TOGETHER]
            # One more position than tokens: the end, where no terminal starts.
            tokens_PB = np.vstack([some_BT.T, np.full(len(some_BT), PAD)])
            end_PC = np.packbits(np.indices(tokens_PB.shape)[0] == ids_BT.shape[1], axis=1)
            start_B = (some_BT == PAD).cumprod(axis=1).sum(axis=1)
            verdict_PB = np.unpackbits(decide(self._chart(tokens_PB, end_PC.shape), end_PC), axis=1, count=len(some_BT))
            verdicts.append(verdict_PB[start_B, np.arange(len(some_BT))] == 1)
        return np.concatenate(verdicts)

    def _chart(self, tokens_PB: Array, shape_PC: tuple[int, ...]) -> dict[int, _Spans]:
        """Spans of every symbol but the root, which stands at the start alone."""
        leaves = enumerate(SYMBOLS, start=len(self.rules))
        chart = {leaf: _Spans(1, np.packbits(tokens_PB == token, axis=1)[None]) for leaf, token in leaves}
        for symbol in reversed(range(1, len(self.rules))):
            shortest, longest = self.lengths[symbol]
            bits = np.zeros((longest - shortest + 1, *shape_PC), dtype=np.uint8)
            for rule in self.rules[symbol]:
                # From the right: the loop is over lengths of the first, which are then the fewest.
                spans = (chart[child] for child in reversed(rule))
                row = reduce(lambda after, span: _join(span, after), spans)
                bits[row.shortest - shortest :][: len(row.bits)] |= row.bits
            chart[symbol] = _Spans(shortest, bits)
        return chart

    def _complete(self, chart: dict[int, _Spans], end_PC: Bits) -> Bits:
        """Positions from which the root derives all that follows."""
        starts_at_PC = np.zeros_like(end_PC)
        for rule in self.rules[0]:
            starts_at_PC |= reduce(lambda goal_PC, child: _before(chart[child], goal_PC), reversed(rule), end_PC)
        return starts_at_PC

    def _begun(self, chart: dict[int, _Spans], end_PC: Bits) -> Bits:
        """Positions from which all that follows begins something that the root derives."""
        # The empty rest begins every symbol; a rule is begun by complete symbols and then one that is begun.
        begun = {0: end_PC, **{symbol: end_PC | _before(spans, end_PC) for symbol, spans in chart.items()}}
        for symbol in reversed(range(len(self.rules))):
            for rule in self.rules[symbol]:
                goal_PC = np.zeros_like(end_PC)
                for child in reversed(rule):
                    goal_PC = begun[child] | _before(chart[child], goal_PC)
                begun[symbol] = begun[symbol] | goal_PC
        return begun[0]


def last_places(width: int, count_B: Array) -> Truth:
    """A mask ``[B, width]`` of the last places of each row."""
    return np.arange(width) >= width - count_B[:, None]
