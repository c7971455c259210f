"""Which test problems were seen in training: shared n-grams of words.

The usual measure (Brown et al., arXiv 2005.14165, appendix C) calls a test problem contaminated if any of its 13-grams
stands in a training document. A question shorter than that is one n-gram of all its words.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from unspoken.tasks.problems import ReasoningProblem, ReasoningTask

_WORD = re.compile(r"\w+")
_Gram = tuple[str, ...]


def overlap(
    train: Iterable[ReasoningProblem], tests: Mapping[str, Iterable[ReasoningProblem]], *, words: int = 13
) -> dict[str, Any]:
    """Find questions of test sets in training rows.

    Case, punctuation and the form of letters do not count. A training row is searched in question, chains and solution,
    each by itself; of a test problem only the question is looked for, since other models' data may word the solution
    differently. Seven thousand rows against four thousand questions take about a second.

    Args:
        train: all training rows.
        tests: name to problems of each test set.
        words: length n of an n-gram. Questions about numbers share phrases: below about 8 words many hits are chance.

    Returns:
        Plain data for a manifest: ``words``; ``rows``, how many were searched; and for each of ``tests`` the number of
        ``problems``, the keys of those that overlap (``problem_keys``), and of the rows they overlap with
        (``row_keys``), both in the order given.
    """
    assert words > 0, f"words is {words}; an overlap has at least one word"
    asked: dict[str, list[ReasoningProblem]] = {name: list(problems) for name, problems in tests.items()}
    owners: dict[_Gram, set[tuple[str, int]]] = defaultdict(set)
    for name, problems in asked.items():
        for index, problem in enumerate(problems):
            tokens = _words(problem.question)
            for gram in _grams(tokens, min(words, len(tokens))):
                owners[gram].add((name, index))
    sizes = {len(gram) for gram in owners}
    rows: dict[str, dict[str, None]] = {name: {} for name in asked}  # keys in the order of training
    seen: dict[str, set[int]] = {name: set() for name in asked}
    count = 0
    for row in train:
        count += 1
        for text in (row.question, *row.chains, row.solution):
            tokens = _words(text)
            for size in sizes:
                for gram in _grams(tokens, size):
                    for name, index in owners.get(gram, ()):
                        rows[name][row.key] = None
                        seen[name].add(index)
    return {
        "words": words,
        "rows": count,
        "tests": {
            name: {
                "problems": len(problems),
                "problem_keys": [problems[index].key for index in sorted(seen[name])],
                "row_keys": list(rows[name]),
            }
            for name, problems in asked.items()
        },
    }


def seen_in_training(task: ReasoningTask) -> dict[str, Any] | None:
    """`overlap` of a task's own training rows with each of its test sets; None where either is endless or missing."""
    sizes = {split: task.size(split) for split in ("train", *task.tests)}
    problems = {split: task.sample(split, range(size)) for split, size in sizes.items() if size is not None}
    train = problems.pop("train", None)
    return None if train is None or not problems else overlap(train, problems)


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _grams(words: list[str], size: int) -> Iterator[_Gram]:
    """Runs of ``size`` words; none of an empty text."""
    if size:
        yield from (tuple(words[start : start + size]) for start in range(len(words) - size + 1))
