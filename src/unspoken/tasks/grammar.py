"""Continuing the strings of a context-free grammar (JEPA-Reasoner, sections 5.2 and 5.3; after Allen-Zhu and Li,
arXiv 2305.13673).

A string is made by expanding a root through a fixed number of levels; each symbol has a few rules of three or four
symbols of the next level, all equally likely. A problem is the beginning of a string, the answer its next symbols. The
paper prints no rules: ours are drawn from a seed, and a grammar is kept if the mean length of its strings is that of
the paper, 600 to 700 at five levels, and the same factor a level with fewer levels.

Sample i is a pure function of (config, seed, split, i): its random numbers are a stream of Philox, a counter-based
generator (Salmon et al., 2011), that is named by seed, split and i. A string belongs to exactly one split, by its hash.

Axes: B strings, T tokens, P prompt tokens or positions between tokens, N steps of a completion, W lengths of a span,
C bytes of eight strings each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, reduce
from itertools import pairwise
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unspoken.tasks.tokenizing import by_character
from unspoken.tasks.tree_search import Array

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

Rules: TypeAlias = tuple[tuple[tuple[int, ...], ...], ...]
Bits: TypeAlias = NDArray[np.uint8]
Truth: TypeAlias = NDArray[np.bool_]

PAD, EOS = range(2)
MARKERS = ("[PAD]", "[EOS]")
TERMINALS = "abc"
FIRST_TERMINAL = len(MARKERS)

_SYMBOLS = (2, 2, 3, 6)  # on levels 1 to 4 of the paper's grammar; a smaller one keeps those next to the terminals
_MEAN_LENGTH = (600.0, 700.0)  # at five levels
_LEVELS = len(_SYMBOLS) + 1
_SPLIT_CLASSES = {"train": range(14), "validation": range(14, 15), "test": range(15, 16)}
_TOGETHER = 128  # strings recognised at once: their tables still fit a cache


class _Spans(NamedTuple):
    """Where a symbol, or a row of symbols, can stand.

    Attributes:
        shortest: the least length of what it derives.
        bits: ``[W, P, C]``; a bit of ``[w, p]`` is set for a string whose ``shortest + w`` tokens from p on it derives.
    """

    shortest: int
    bits: Bits


def _join(first: _Spans, second: _Spans) -> _Spans:
    """Where the first can stand with the second right behind it."""
    places = first.bits.shape[1]
    bits = np.zeros((len(first.bits) + len(second.bits) - 1, *first.bits.shape[1:]), dtype=np.uint8)
    for more, starts_PC in enumerate(first.bits[: max(places - first.shortest, 0)]):
        length = first.shortest + more
        both = starts_PC[: places - length] & second.bits[:, length:]
        bits[more : more + len(second.bits), : places - length] |= both
    return _Spans(first.shortest + second.shortest, bits)


def _before(spans: _Spans, goal_PC: Bits) -> Bits:
    """The positions ``[P, C]`` at which such a span starts that ends on a goal."""
    places = len(goal_PC)
    found_PC = np.zeros_like(goal_PC)
    for more, starts_PC in enumerate(spans.bits[: max(places - spans.shortest, 0)]):
        length = spans.shortest + more
        found_PC[: places - length] |= starts_PC[: places - length] & goal_PC[length:]
    return found_PC


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A levelled context-free grammar over three terminals.

    Symbols are numbered level by level: 0 is the root, and behind the last symbol that has rules come the terminals.

    Attributes:
        rules: of each symbol, the rows of symbols that it may become, each equally likely. All derivations of a symbol
            take the same number of levels.

    Raises:
        ValueError: the rules are not levelled.
    """

    rules: Rules

    def __post_init__(self) -> None:
        ids = len(self.rules) + len(TERMINALS)
        height = [0] * ids
        for symbol in reversed(range(len(self.rules))):
            parts = [part for rule in self.rules[symbol] for part in rule]
            below = {height[part] for part in parts if symbol < part < ids}
            if len(below) != 1 or not all(self.rules[symbol]) or not all(symbol < part < ids for part in parts):
                raise ValueError(
                    f"the rules of symbol {symbol} are {self.rules[symbol]}; "
                    f"they must be made of symbols {symbol + 1} to {ids - 1} that are all on one level"
                )
            height[symbol] = below.pop() + 1

    @classmethod
    def draw(cls, *, levels: int, rules: int, seed: int) -> Grammar:
        """The first grammar of a seed in which every symbol occurs, none share a rule, and the mean length is right.

        Args:
            levels: of production, 2 to 5.
            rules: of each symbol, 2 to 4.
        """
        assert 2 <= levels <= _LEVELS and 2 <= rules <= 4
        random = Random(f"{levels}:{rules}:{seed}")
        sizes = (1, *_SYMBOLS[_LEVELS - levels :], len(TERMINALS))
        least, most = (length ** (levels / _LEVELS) for length in _MEAN_LENGTH)
        while True:
            made: list[tuple[tuple[int, ...], ...]] = []
            for size, below in pairwise(sizes):
                parts = range(len(made) + size, len(made) + size + below)
                rows: list[tuple[int, ...]] = []
                while len(rows) < size * rules:
                    row = tuple(random.choices(parts, k=random.choice((3, 4))))
                    if row not in rows:
                        rows.append(row)
                made += [tuple(rows[first : first + rules]) for first in range(0, len(rows), rules)]
            grammar = cls(rules=tuple(made))
            used = {part for choices in made for rule in choices for part in rule}
            if least <= grammar.mean_length <= most and len(used) == sum(sizes) - 1:
                return grammar

    def _over_rules(self, choose: Callable[[list[float]], float], leaf: float = 1, inner: float = 0) -> list[float]:
        """Of each symbol, a number that adds up over the nodes below it, chosen among its rules."""
        sums = [0.0] * len(self.rules) + [leaf] * len(TERMINALS)
        for symbol in reversed(range(len(self.rules))):
            sums[symbol] = choose([inner + sum(sums[part] for part in rule) for rule in self.rules[symbol]])
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
        """The rules as an array ``[symbol, rule, place]`` filled up with -1, and how many each symbol has."""
        most = max(len(choices) for choices in self.rules)
        longest = max(len(rule) for choices in self.rules for rule in choices)
        table = np.full((len(self.rules), most, longest), -1, dtype=np.int64)
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
            count_B = np.add.reduceat((made >= 0).sum(axis=1), first_B)
            symbols = made[made >= 0]
        ids_BT = np.full((len(noise), count_B.max(initial=0)), PAD, dtype=np.int64)
        ids_BT[_last(ids_BT.shape[1], count_B)] = symbols - len(self.rules) + FIRST_TERMINAL
        return ids_BT, count_B

    def accepts(self, ids_BT: Array) -> Truth:
        """Whether each string is in the language, ``[B]``: exact, by dynamic programming over spans, terminals first.

        Args:
            ids_BT: token ids, padded on the left. Behind the padding, whatever is not a terminal derives from nothing.
        """
        return self._recognise(ids_BT, self._whole)

    def accepts_prefix(self, ids_BT: Array) -> Truth:
        """Whether each string begins some string of the language, or is one; the empty string does. See `accepts`."""
        return self._recognise(ids_BT, self._begun)

    def _recognise(self, ids_BT: Array, decide: Callable[[list[_Spans], Bits], Bits]) -> Truth:
        verdicts = [np.zeros(0, dtype=np.bool_)]
        for first in range(0, len(ids_BT), _TOGETHER):
            part_BT = ids_BT[first : first + _TOGETHER]
            # One more position than tokens: the end, where no terminal starts.
            tokens_PB = np.pad(part_BT.T, ((0, 1), (0, 0)), constant_values=PAD)
            end_PC = np.packbits(np.indices(tokens_PB.shape)[0] == ids_BT.shape[1], axis=1)
            start_B = np.argmax(np.pad(part_BT, ((0, 0), (0, 1)), constant_values=EOS) != PAD, axis=1)
            found_PB = np.unpackbits(decide(self._chart(tokens_PB), end_PC), axis=1, count=len(part_BT))
            verdicts.append(found_PB[start_B, np.arange(len(part_BT))] == 1)
        return np.concatenate(verdicts)

    def _chart(self, tokens_PB: Array) -> list[_Spans]:
        """Spans of every symbol. The root's stay empty: nobody asks where it stands but at the start."""
        kinds = range(FIRST_TERMINAL, FIRST_TERMINAL + len(TERMINALS))
        leaves = [_Spans(1, np.packbits(tokens_PB == kind, axis=1)[None]) for kind in kinds]
        none = leaves[0].bits[:0]
        chart = [_Spans(1, none)] * len(self.rules) + leaves
        for symbol in reversed(range(1, len(self.rules))):
            shortest, longest = self.lengths[symbol]
            bits = np.zeros((longest - shortest + 1, *none.shape[1:]), dtype=np.uint8)
            for rule in self.rules[symbol]:
                # From the right: the loop is over lengths of the first, which are then the fewest.
                spans = (chart[part] for part in reversed(rule))
                row = reduce(lambda behind, span: _join(span, behind), spans)
                bits[row.shortest - shortest :][: len(row.bits)] |= row.bits
            chart[symbol] = _Spans(shortest, bits)
        return chart

    def _whole(self, chart: list[_Spans], end_PC: Bits) -> Bits:
        """Positions from which the root derives all that follows."""
        found_PC = np.zeros_like(end_PC)
        for rule in self.rules[0]:
            found_PC |= reduce(lambda goal_PC, part: _before(chart[part], goal_PC), reversed(rule), end_PC)
        return found_PC

    def _begun(self, chart: list[_Spans], end_PC: Bits) -> Bits:
        """Positions from which all that follows begins something that the root derives."""
        # A symbol is begun at the end by nothing at all; a rule is, by whole parts and then a part that is begun.
        begun = [end_PC | _before(spans, end_PC) for spans in chart]
        for symbol in reversed(range(len(self.rules))):
            for rule in self.rules[symbol]:
                goal_PC = np.zeros_like(end_PC)
                for part in reversed(rule):
                    goal_PC = begun[part] | _before(chart[part], goal_PC)
                begun[symbol] = begun[symbol] | goal_PC
        return begun[0]


def _last(width: int, count_B: Array) -> Truth:
    """A mask ``[B, width]`` of the last places of each row."""
    return np.arange(width) >= width - count_B[:, None]


@dataclass(frozen=True, kw_only=True)
class GrammarConfig:
    """What a grammar problem looks like.

    Attributes:
        grammar_seed: names the grammar among those of its size.
        levels: of production; 5 is the paper's. Strings have 600 to 700 symbols in the mean, 167 to 189 with four
            levels, 46 to 51 with three.
        rules: of each symbol. More of them leave more to chance: fewer next symbols can be known. With two rules and
            three levels strings are so few that training strings begin like test strings; three rules are better there.
        steps: symbols to say; 4 in the paper's test of token noise, 8 in its test of latent noise.
    """

    kind: ClassVar[str] = "grammar"

    grammar_seed: int = 0
    levels: int = 5
    rules: int = 2
    steps: int = 4

    def __post_init__(self) -> None:
        if not 3 <= self.levels <= _LEVELS:
            raise ValueError(f"levels is {self.levels}; 3 to {_LEVELS} make enough strings for three splits")
        if not 2 <= self.rules <= 4:
            raise ValueError(f"rules is {self.rules}; every symbol has 2 to 4 rules")
        # Half of the shortest string that rules of three symbols make.
        if not 1 <= self.steps <= 3**self.levels // 2:
            raise ValueError(f"steps is {self.steps}; it must lie between 1 and {3**self.levels // 2}, half a string")

    def build(self) -> GrammarTask:
        """The task of this configuration."""
        return GrammarTask(self)


@dataclass(frozen=True, kw_only=True)
class GrammarProblems:
    """A batch of problems.

    Attributes:
        ids_BT: token ids of the whole strings, padded on the left.
        length_B: symbols of each string.
        prompt_B: how many of them are given.
    """

    ids_BT: Array
    length_B: Array
    prompt_B: Array

    def __len__(self) -> int:
        return len(self.length_B)

    def window(self, before: int, behind: int) -> Array:
        """Tokens ``[B, before + behind]`` around the end of each prompt; padding where the string has none."""
        width = self.ids_BT.shape[1]
        columns = (width - self.length_B + self.prompt_B)[:, None] + np.arange(-before, behind)
        inside = (columns >= 0) & (columns < width)
        return np.where(inside, np.take_along_axis(self.ids_BT, np.where(inside, columns, 0), axis=1), PAD)


class GrammarTask:
    """Makes, prints and grades grammar problems."""

    def __init__(self, config: GrammarConfig) -> None:
        self.config = config
        self.grammar = Grammar.draw(levels=config.levels, rules=config.rules, seed=config.grammar_seed)

    @property
    def fingerprint(self) -> str:
        """Identifies the data that this task makes, by the rules themselves and not by their seed alone."""
        text = json.dumps(
            {"kind": self.config.kind, **asdict(self.config), "grammar": self.grammar.rules}, sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def answer_length(self) -> int:
        """Tokens of an answer. A completion has a fixed length and no end."""
        return self.config.steps

    @property
    def longest(self) -> int:
        """Tokens of the longest string that there is, its end included."""
        return self.grammar.lengths[0][1] + 1

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a terminal and a marker, 5 in all."""
        return by_character((*MARKERS, *TERMINALS))

    # --- making ------------------------------------------------------------------------------------------------

    def sample(self, split: str, indices: Array, seed: int = 0) -> GrammarProblems:
        """Make the problems with the given indices.

        The prompt ends anywhere between the middle of the string and the last place that leaves a whole answer.

        Raises:
            ValueError: there is no such split.
        """
        if split not in _SPLIT_CLASSES:
            raise ValueError(f"there is no split {split!r}; this task has {', '.join(_SPLIT_CLASSES)}")
        indices = np.asarray(indices, dtype=np.int64)
        strings: list[Array] = [np.zeros(0, dtype=np.int64)] * len(indices)
        length_B = np.zeros(len(indices), dtype=np.int64)
        cut_B = np.zeros(len(indices), dtype=np.uint64)
        pending, attempt = list(range(len(indices))), 0
        # Draw until the string falls in the wanted split; the number of draws is itself a function of the index.
        while pending:
            noise = self._noise(split, indices[pending], seed, attempt)
            ids, lengths = self.grammar.derive(noise[:, 1:])
            for row, string, length, cut in zip(pending, ids, lengths, noise[:, 0], strict=True):
                if _class_of(string[-length:]) in _SPLIT_CLASSES[split]:
                    strings[row], length_B[row], cut_B[row] = string[-length:], length, cut
            pending, attempt = [row for row in pending if not length_B[row]], attempt + 1
        ids_BT = np.full((len(indices), length_B.max(initial=0)), PAD, dtype=np.int64)
        ids_BT[_last(ids_BT.shape[1], length_B)] = np.concatenate([*strings, np.zeros(0, dtype=np.int64)])
        places_B = length_B - self.config.steps - length_B // 2 + 1
        prompt_B = length_B // 2 + (cut_B % places_B.astype(np.uint64)).astype(np.int64)
        return GrammarProblems(ids_BT=ids_BT, length_B=length_B, prompt_B=prompt_B)

    def _noise(self, split: str, index_B: Array, seed: int, attempt: int) -> NDArray[np.uint64]:
        """Uniform 64-bit integers ``[B, 1 + choices]``: a stream of its own for every index and attempt."""
        key = np.frombuffer(hashlib.sha256(f"{seed}:{split}".encode()).digest()[:16], dtype="<u8")
        # A stream counts in the first of the counter's four words.
        counters = np.array([[0, 0, attempt, index] for index in index_B], dtype=np.uint64)
        streams = [np.random.Philox(key=key, counter=counter) for counter in counters]
        return np.stack([stream.random_raw(1 + self.grammar.choices) for stream in streams])

    # --- printing ----------------------------------------------------------------------------------------------

    def encode(self, problems: GrammarProblems) -> dict[str, Tensor]:
        """Whole strings with their end: what a model trains on.

        Returns:
            ``input_ids`` ``[B, T]``, padded on the left, ``attention_mask`` ``[B, T]`` and ``answer_mask`` ``[B, T]``,
            true on the symbols to say.
        """
        import torch

        ids = np.pad(problems.ids_BT, ((0, 0), (0, 1)), constant_values=EOS)
        behind_B = problems.length_B + 1 - problems.prompt_B
        answer = _last(ids.shape[1], behind_B) & ~_last(ids.shape[1], behind_B - self.config.steps)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(_last(ids.shape[1], problems.length_B + 1).astype(np.int64)),
            "answer_mask": torch.from_numpy(answer),
        }

    def prompts(self, problems: GrammarProblems) -> dict[str, Tensor]:
        """What is given: ``input_ids`` and ``attention_mask`` ``[B, P]``, padded on the left."""
        import torch

        width = int(problems.prompt_B.max(initial=0))
        return {
            "input_ids": torch.from_numpy(problems.window(width, 0)),
            "attention_mask": torch.from_numpy(_last(width, problems.prompt_B).astype(np.int64)),
        }

    def text(self, problems: GrammarProblems) -> list[str]:
        """The whole strings."""
        return self.tokenizer.batch_decode(problems.ids_BT.tolist(), skip_special_tokens=True)

    # --- grading -----------------------------------------------------------------------------------------------

    def answers(self, problems: GrammarProblems) -> Tensor:
        """How the strings go on: ``[B, N]``."""
        import torch

        return torch.from_numpy(problems.window(0, self.config.steps))

    def right_steps(self, spoken_BN: Tensor, problems: GrammarProblems) -> Tensor:
        """Whether each symbol is the string's own, ``[B, N]``; one that was not said is wrong."""
        return self._said(spoken_BN) == self.answers(problems)

    def grade(self, spoken_BN: Tensor, problems: GrammarProblems) -> Tensor:
        """Exact match ``[B]`` of all steps; whatever follows them is ignored."""
        return self.right_steps(spoken_BN, problems).all(dim=1)

    def valid(self, spoken_BN: Tensor, problems: GrammarProblems) -> Tensor:
        """Whether prompt and completion begin *some* string of the language, ``[B]``.

        A string may go on in several ways, so an answer that does not match can still be valid. One that ends early,
        with end-of-sequence, is valid if the string is complete there.
        """
        import torch

        prompt_BP = problems.window(int(problems.prompt_B.max(initial=0)), 0)
        said_BN = self._said(spoken_BN).cpu().numpy()
        strings = np.concatenate([prompt_BP, said_BN], axis=1)
        valid_B = self.grammar.accepts_prefix(strings)
        ended = said_BN == EOS
        for step in range(self.config.steps):
            rows = ended[:, step] & ~ended[:, :step].any(axis=1)
            valid_B[rows] = self.grammar.accepts(strings[rows, : prompt_BP.shape[1] + step])
        return torch.from_numpy(valid_B)

    def _said(self, spoken_BN: Tensor) -> Tensor:
        """Cut or filled up to the number of steps."""
        from torch.nn.functional import pad

        return pad(spoken_BN, (0, self.config.steps - spoken_BN.shape[1]), value=PAD)


def _class_of(string: Array) -> int:
    """The sixteenth of all strings that a string belongs to."""
    return hashlib.sha256(string.astype(np.uint8).tobytes()).digest()[0] % 16
