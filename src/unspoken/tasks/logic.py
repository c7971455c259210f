"""Made-up questions about what is a kind of what, in the form of ProsQA (Hao et al., arXiv 2412.06769).

Sentences list the edges of a directed graph without cycles, in any order; the question asks which of two concepts a
person is::

    Every dax is a wug. Bo is a fep. Every fep is a klib. Ann is a dax. Is Ann a klib or wug?
    Ann is a dax. Every dax is a wug.        the chain
    wug                                      the answer

Each problem has two people, each at the head of a line of concepts that ends in one of the two options. The right
option is reached from the person asked about, the wrong one only from the other person. Nothing but the path
distinguishes the options, unless ``like_prosqa`` draws problems like the published ones:

- both are as many steps away from their own person, lead nowhere, and stand in equally many sentences. In
  published files the wrong option stands in more sentences, and nearer to its person, than the right one;
- who is asked about is drawn last, by a fair coin, and so is the order of the options and of the sentences;
- the other concepts branch off both lines alike, with sentences that join branches and some that both people reach.

Where several shortest chains exist, all are known, up to eight; the first takes at every fork the earlier sentence.

Sample i is a pure function of (config, seed, split, i). A problem belongs to exactly one split, by a hash of its graph
and options; names, the order of sentences and who is asked about do not enter. So no graph that is tested was ever
trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from string import ascii_letters, ascii_lowercase
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from unspoken.ranges import require_value
from unspoken.tasks.arithmetic import NAMES
from unspoken.tasks.files import check_split_names, chosen, read_rows, row_fields, text_of, texts_of
from unspoken.tasks.logic_graphs import (
    Graph,
    even_graph,
    even_questions,
    graph_like_prosqa,
    shortest_paths,
    split_of_question,
)
from unspoken.tasks.problems import MadeUpConfig, MadeUpTask, ReasoningProblem, check_numbers
from unspoken.tasks.task import Indices, ProblemList, Traits, digest
from unspoken.tasks.tokenizing import padded_left

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

# No two have the same letters: a grader of mathematics takes a word for a product. All are shorter than spelled names.
# fmt: off
CONCEPTS = (
    "bimp", "blick", "brask", "cheb", "clorn", "dax", "drenk", "fep", "flonk", "frush", "gadge",
    "glarp", "grelt", "hask", "hune", "jalt", "jomb", "kelm", "klib", "lorch", "mab", "mulp",
    "nald", "neft", "plov", "quib", "rulf", "shelb", "skon", "slerm", "snup", "stroy", "tazz",
    "thrin", "tulk", "varp", "vosh", "wug", "yent", "zill", "zork",
)
# fmt: on

_SPECIAL = ("[PAD]", "[EOS]")
_MARKERS = ("<think>", "</think>", "\\boxed{", "}")
_WORDS = ("Every", "Is", "is", "a", "or", ".", "?")
# What a sentence is about is one token with its frame, so the name that is to be looked up follows at once. Three words
# between the two names hide the look-up from small models trained from random weights (docs/log.md).
_SUBJECTS = (*(f"Every {name} is a" for name in CONCEPTS), *(f"{name} is a" for name in NAMES))
_TOKEN = (
    rf"\[PAD\]|\[EOS\]|</?think>|\\boxed\{{|(?:Every (?:{'|'.join(CONCEPTS)})|{'|'.join(NAMES)}) is a(?![A-Za-z])"
    r"|[A-Za-z]+|\S"
)
_INSIDE = "##"  # before a letter that is not the first of its name
_FACT = re.compile(r"(?:Every ([a-z]+)|((?!Every )[A-Z][a-z]*)) is a ([a-z]+)\.")
_ASKED = re.compile(r"Is ([A-Z][a-z]*) a ([a-z]+) or ([a-z]+)\?")
_CHAINS = 8  # shortest chains that are written out
_SPARE = 4  # concepts beside the two lines, without which there are too few graphs for three splits
_QUESTIONS = 16  # about one graph in a row, at most


@dataclass(frozen=True, kw_only=True)
class LogicConfig(MadeUpConfig):
    """What a question looks like; the sizes of the defaults are about those of ProsQA."""

    kind: ClassVar[str] = "logic"

    # Numbers of steps from the person to the answer that occur, each equally often; 1 to 8.
    hops: tuple[int, ...] = (3, 4, 5, 6)
    concepts: int = 20  # how many there are, the options included; at least four more than the two lines need
    edges: int = 36  # sentences before the question, at most; not every graph allows as many. At least one per concept.
    # Graphs like those of ProsQA, which give most answers away: the option farther from all people is the right one in
    # nine of ten (docs/log.md). They have sizes of their own: leave out ``hops``, ``concepts`` and ``edges``.
    like_prosqa: bool = False
    # Fraction of the problems with invented names, which are read letter by letter. Without any, a model never learns
    # to read the names in published files.
    spelled: float = 0.0
    # Each chain states all sentences again, in another order, in place of those that lead to the answer. A stage that
    # learns such chains first learns to look a name up (docs/log.md).
    restated: bool = False
    # Published files (a JSON list, or one JSON object per line, with ``question``, ``steps`` and ``answer``). Each is a
    # test set named after its file without the suffix, beside the made-up one named "test".
    tests: tuple[str, ...] = ()
    # People and concepts of published files get names of this task, one for one. The graphs stay as they are, and a
    # model that never learned to spell can read them.
    renamed: bool = False

    def __post_init__(self) -> None:
        check_numbers("hops", self.hops, 8)
        fewest = 2 * max(self.hops) + _SPARE
        if not fewest <= self.concepts <= len(CONCEPTS):
            raise ValueError(
                f"concepts is {self.concepts}; it must be {fewest} to {len(CONCEPTS)} for {max(self.hops)} hops"
            )
        if self.edges < self.concepts:
            raise ValueError(f"edges is {self.edges}; it must be at least the {self.concepts} of concepts")
        require_value(self, "spelled", lambda value: 0 <= value <= 1, "a fraction from 0 to 1")
        for name in ("hops", "concepts", "edges"):
            if self.like_prosqa and getattr(self, name) != getattr(LogicConfig, name):
                raise ValueError(f"{name} is set, but like_prosqa draws graphs of its own sizes; leave {name} out")
        if self.renamed and not self.tests:
            raise ValueError("renamed is true, but tests lists no published files to rename; leave it out")
        check_split_names(["train", "validation", "test", *(Path(path).stem for path in self.tests)])

    @property
    def traits(self) -> Traits:
        # A chain that states everything has nothing to do with what else could be asked, and other questions about a
        # graph like those of ProsQA would be even ones.
        return replace(super().traits, questions=1 if self.restated or self.like_prosqa else _QUESTIONS)

    def build(self) -> LogicTask:
        """The task of this configuration, which reads its files."""
        return LogicTask(self)


class _Asked(NamedTuple):
    """A question as it is read."""

    pairs: list[tuple[str, str]]  # in the order of the sentences
    person: str
    options: tuple[str, str]


class LogicTask(MadeUpTask):
    """Makes and reads questions about what is a kind of what."""

    def __init__(self, config: LogicConfig) -> None:
        self.config = config
        self._digests: dict[str, str] = {}
        self._published: dict[str, list[ReasoningProblem]] = {}
        for path in config.tests:
            name = Path(path).stem
            try:
                rows, self._digests[name] = read_rows(path)
            except FileNotFoundError:
                raise ValueError(f"there is no file {path}; tests lists JSON files of ProsQA questions") from None
            self._published[name] = []
            for where, row in rows:
                try:
                    self._published[name].append(_problem(row, name, renamed=config.renamed))
                except ValueError as error:
                    raise ValueError(f"{where}: {error}; fix the row") from None
            if not self._published[name]:
                raise ValueError(f"{path} has no rows; tests lists JSON files of ProsQA questions")
        self.tests = ("test", *self._published)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the data: the settings and what the files hold, but not where they lie."""
        return digest({"kind": self.config.kind, **asdict(self.config), "tests": self._digests})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per word, stop and name of this task, and one for the start of a sentence about a name, up to its
        object; other names are one token per letter. It raises on the rest.
        """
        letters = [*ascii_letters, *(_INSIDE + letter for letter in ascii_lowercase)]
        # "a" is a letter too.
        tokens = dict.fromkeys([*_SPECIAL, *_MARKERS, *_WORDS, *NAMES, *CONCEPTS, *_SUBJECTS, *letters])
        tokenizer = Tokenizer(
            models.BPE(
                vocab={token: index for index, token in enumerate(tokens)},
                merges=[],
                ignore_merges=True,  # whole words first
                continuing_subword_prefix=_INSIDE,
                unk_token="[UNK]",  # not in the vocabulary, so that what is no letter raises instead of vanishing
            )
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.WordPiece(prefix=_INSIDE, cleanup=False),
                decoders.Fuse(),
                decoders.Replace(Regex(r" (?=[.?}])"), ""),
                decoders.Replace(Regex(r"(?<=\{) "), ""),
            ]
        )
        return padded_left(tokenizer)

    def size(self, split: str) -> int | None:
        """Problems in a published test set; the other splits are endless."""
        return len(self._published[split]) if split in self._published else super().size(split)

    def sample(self, split: str, indices: Indices, seed: int = 0) -> ProblemList[ReasoningProblem]:
        """The problems with the given indices; a published test set has the order of its file."""
        if split in self._published:
            return chosen(self._published[split], indices, split)
        return super().sample(split, indices, seed)

    def parse(self, text: str) -> ProblemList[ReasoningProblem]:
        """A question typed by a person, with any names: those that this task does not know are spelled."""
        problems = super().parse(" ".join(text.split()))
        _read(problems[0].question)
        return problems

    def question_rows(self, problems: Sequence[ReasoningProblem], questions: int) -> dict[str, Tensor]:
        """Rows of one graph each: the problem's own question, and others about one step away and more."""
        facts = [problem.question.rpartition("Is ")[0] for problem in problems]
        return self._rows_of_several(facts, [_about_one_graph(problem, questions) for problem in problems])

    def _make(self, split: str, index: int, seed: int) -> ReasoningProblem:
        random = Random(f"{seed}:{split}:{index}")
        # Before the split is known, so that all splits have the same distribution.
        hops = random.choice(self.config.hops)
        graph = self._draw(random, hops)
        while split_of_question(graph.pairs, graph.options) != split:
            graph = self._draw(random, hops)
        concepts = len({node for pair in graph.pairs for node in pair}) - graph.people
        names = [*random.sample(NAMES, graph.people), *random.sample(CONCEPTS, concepts)]
        if random.random() < self.config.spelled:
            names = _coin(random, len(names))
            names[: graph.people] = [name.capitalize() for name in names[: graph.people]]
        pairs = [(names[old], names[new]) for old, new in graph.pairs]
        random.shuffle(pairs)
        person_number = 0 if self.config.like_prosqa else random.randrange(2)
        person, answer = names[person_number], names[graph.options[person_number]]
        options = [names[option] for option in graph.options]
        random.shuffle(options)
        if self.config.restated:
            chains = [" ".join(map(_sentence, random.sample(pairs, len(pairs))))]
        else:
            chains = [_chain(path) for path in islice(shortest_paths(pairs, person, answer), _CHAINS)]
        return ReasoningProblem(
            question=_question(_Asked(pairs, person, (options[0], options[1]))),
            chains=tuple(chains),
            answer=answer,
            key=f"{split}:{seed}:{index}",
        )

    def _draw(self, random: Random, hops: int) -> Graph:
        if self.config.like_prosqa:
            return graph_like_prosqa(random)
        return even_graph(random, hops, self.config.concepts, self.config.edges)


# --- making ----------------------------------------------------------------------------------------------------


def _coin(random: Random, count: int) -> list[str]:
    """Different names of six letters, no two of the same letters."""
    names: dict[str, str] = {}
    while len(names) < count:
        name = "".join(random.choice(letters) for letters in ("bcdfghjklmnprstvwyz", "aeiou", "lmnprst") * 2)
        names.setdefault("".join(sorted(name)), name)
    return list(names.values())


def _about_one_graph(problem: ReasoningProblem, count: int) -> list[ReasoningProblem]:
    """A problem and others about its graph, all without the sentences: a random choice seeded by the problem's key.

    The numbers of steps of the others are drawn evenly from those that occur. All belong to the same split.
    """
    random, (pairs, person, options) = Random(problem.key), _read(problem.question)
    split, possible = split_of_question(pairs, options), even_questions(pairs)
    problems = [replace(problem, question=_last(_Asked(pairs, person, options)))]
    while len(problems) < count:
        person, right, wrong = random.choice(possible[random.choice([*possible])])
        if split_of_question(pairs, (right, wrong)) == split:
            options = (right, wrong) if random.random() < 0.5 else (wrong, right)
            problems.append(
                ReasoningProblem(
                    question=_last(_Asked(pairs, person, options)),
                    chains=(_chain(next(shortest_paths(pairs, person, right))),),
                    answer=right,
                    key=f"{problem.key}:{len(problems)}",
                )
            )
    return problems


# --- writing and reading ---------------------------------------------------------------------------------------


def _sentence(pair: tuple[str, str]) -> str:
    old, new = pair
    return f"{old} is a {new}." if old[0].isupper() else f"Every {old} is a {new}."


def _question(asked: _Asked) -> str:
    return " ".join([*map(_sentence, asked.pairs), _last(asked)])


def _last(asked: _Asked) -> str:
    return f"Is {asked.person} a {asked.options[0]} or {asked.options[1]}?"


def _chain(path: Sequence[str]) -> str:
    return " ".join(map(_sentence, pairwise(path)))


def _fact(sentence: str) -> tuple[str, str]:
    match = _FACT.fullmatch(sentence)
    if match is None:
        raise ValueError(f"cannot read {sentence!r}; write 'Ann is a dax.' or 'Every dax is a wug.'")
    return match[1] or match[2], match[3]


def _read(question: str) -> _Asked:
    """A question with single spaces; a ValueError where a sentence has another form."""
    *facts, last = re.split(r"(?<=[.?]) ", question)
    pairs = [_fact(sentence) for sentence in facts]
    asked = _ASKED.fullmatch(last)
    if asked is None:
        raise ValueError(f"cannot read {last!r} at the end; ask 'Is Ann a wug or klib?'")
    return _Asked(pairs, asked[1], (asked[2], asked[3]))


def _own_names(question: _Asked, key: str) -> dict[str, str]:
    """A name of this task for every name of a question, a random choice seeded by the key."""
    random, own_name_of = Random(key), dict[str, str]()
    every = sorted({question.person, *question.options, *(name for pair in question.pairs for name in pair)})
    for kind, own in (("people", NAMES), ("concepts", CONCEPTS)):
        names = [name for name in every if name[0].isupper() == (kind == "people")]
        if len(names) > len(own):
            raise ValueError(f"it has {len(names)} {kind}, and there are only {len(own)} names to give them")
        own_name_of |= zip(names, random.sample(own, len(names)), strict=True)
    return own_name_of


def _problem(row: Any, source: str, *, renamed: bool) -> ReasoningProblem:
    """One row of a published file as a problem; graph and symbols beside the text are not needed.

    Args:
        row: see `row_fields`.
        source: first part of the key.
        renamed: give it names of this task.

    Raises:
        ValueError: the row cannot be read, or its fields do not agree; the message does not name the row.
    """
    fields = row_fields(row)
    question = " ".join(text_of(fields, "question").split())
    read = _read(question)
    person, answer = _fact(text_of(fields, "answer"))
    if person != read.person or answer not in read.options:
        raise ValueError(f"the answer {fields['answer']!r} is none of the two that are asked about")
    wrong = read.options[1 - read.options.index(answer)]
    shortest = list(islice(shortest_paths(read.pairs, person, answer), _CHAINS))
    if not shortest or any(shortest_paths(read.pairs, person, wrong)):
        raise ValueError(f"the sentences must make {person} a {answer}, and not a {wrong}")
    steps = [_fact(step) for step in texts_of(fields, "steps")]
    way = (person, *(new for _, new in steps))
    if way[-1] != answer or list(pairwise(way)) != steps or not set(steps) <= set(read.pairs):
        raise ValueError(f"the steps do not lead from {person} to {answer} by sentences of the question")
    content, ways = hashlib.sha256(question.encode()).hexdigest()[:16], [way, *shortest]
    if renamed:
        own = _own_names(read, content)
        pairs = [(own[old], own[new]) for old, new in read.pairs]
        question = _question(_Asked(pairs, own[person], (own[read.options[0]], own[read.options[1]])))
        ways, answer = [tuple(own[name] for name in names) for names in ways], own[answer]
    chains = dict.fromkeys(map(_chain, ways))
    return ReasoningProblem(question=question, chains=tuple(chains)[:_CHAINS], answer=answer, key=f"{source}:{content}")
