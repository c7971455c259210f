"""What a page shows of a chain: read, changed, and answered from, each time by the model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from unspoken.draw import trees
from unspoken.explorer.edits import Edit, ProblemName, edits
from unspoken.reasoning.inspection import Chain
from unspoken.reasoning.system import System
from unspoken.reasoning.text_answers import TextAnswer
from unspoken.report.answers import verdict
from unspoken.tasks.grading import boxed
from unspoken.tasks.task import Task
from unspoken.tasks.tree_search import FIRST_LETTER, LETTERS, searches_trees
from unspoken.training.settings import read

TOKENS = 6  # of a latent that are shown
_KEPT = 64  # problems whose own answers are kept
_EDITS = 32  # of a request
_POINTS = 41  # between two problems


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A problem, and changes of its chain one after another."""

    problem: ProblemName
    edits: tuple[Edit, ...] = field(default=(), metadata={"choices": edits})

    def __post_init__(self) -> None:
        if len(self.edits) > _EDITS:
            raise ValueError(f"there are {len(self.edits)} edits; at most {_EDITS} are made one after another")


@dataclass(frozen=True, kw_only=True)
class Between:
    """Two problems, and how many chains between theirs are answered from, the first problem's prompt before each."""

    problem: ProblemName
    other: ProblemName
    points: int = 21

    def __post_init__(self) -> None:
        if not 2 <= self.points <= _POINTS:
            raise ValueError(f"points is {self.points}; it must be from 2 to {_POINTS}")


@dataclass(frozen=True, kw_only=True)
class _Problem:
    question: str
    problems: Any  # as a batch of one; None where the model reads any question
    answer: TextAnswer  # the model's own

    @property
    def chain(self) -> Chain:
        return self.answer.chain


class Explorer:
    """Chains of a model, and what becomes of its answer when they are changed. It computes: give it one thread.

    Args:
        system: reads text.
        task: whose test problems have numbers; None where no problem is known.
        rate: tokens of an explicit chain that one latent stands for, where something cut it.
        check: refuses a question that is too long, by a ValueError or an answer to the client.
        max_tokens: cap of an answer.
    """

    def __init__(
        self,
        system: System,
        *,
        task: Task | None = None,
        rate: int | None = None,
        check: Callable[[str], None] | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.system = system
        self.task = system.texts.task if task is None else task
        self._rate = 1 if system.explicit else rate
        self._check = check
        self._max_tokens = max_tokens
        self._read: OrderedDict[ProblemName, _Problem] = OrderedDict()

    # --- what the page asks for --------------------------------------------------------------------------------------

    def changed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The chain and the answer of a problem after some changes.

        Args:
            request: as `Changed`.

        Raises:
            ValueError: the request makes no sense, or a change of this chain does not.
        """
        asked = read(Changed, request, "request")
        problem = self._problem(asked.problem)
        answer = self._answered(problem, asked.edits)
        facts = self._verdict(problem.problems, answer)
        return {
            "question": problem.question,
            "expected": facts.get("expected"),
            "correct": facts.get("correct"),
            "text": answer.text,
            "value": boxed(answer.text),
            "own": {"text": problem.answer.text, "value": boxed(problem.answer.text)},
            "changed": answer.text != problem.answer.text,
            "cost": str(answer.cost),
            "stopped": answer.chain.stopped.name.lower(),
            "tree": self._tree(problem),
            "steps": self._steps(problem, answer),
        }

    def between(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answers to one problem from chains between its own and that of another.

        Args:
            request: as `Between`.

        Raises:
            ValueError: the request makes no sense.
        """
        asked = read(Between, request, "request")
        problem, other = self._problem(asked.problem), self._problem(asked.other)
        fractions = np.linspace(0, 1, asked.points).round(4).tolist()
        chains = [problem.chain.mixed(other.chain, fraction) for fraction in fractions]
        answers = self.system.answer([problem.question] * len(chains), chains, max_tokens=self._max_tokens)
        texts = [answer.text for answer in answers]
        pairs = zip(pairwise(fractions), pairwise(texts), strict=True)
        return {
            "points": [
                {"fraction": fraction, "text": text, "value": boxed(text)}
                for fraction, text in zip(fractions, texts, strict=True)
            ],
            "flips": [
                {"low": low, "high": high, "from": before, "to": after}
                for (low, high), (before, after) in pairs
                if before != after
            ],
            "lengths": [len(problem.chain), len(other.chain)],
        }

    # --- problems ----------------------------------------------------------------------------------------------------

    def question(self, number: int) -> str:
        """A test problem as text; a ValueError if there is none of that number."""
        return self._sampled(number)[0]

    def _problem(self, name: ProblemName) -> _Problem:
        """A problem with the model's own answer, which is kept."""
        if name not in self._read:
            question, problems = self._sampled(name) if isinstance(name, int) else self._typed(name)
            answer = self.system.answer(question, max_tokens=self._max_tokens)
            self._read[name] = _Problem(question=question, problems=problems, answer=answer)
            if len(self._read) > _KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(name)
        return self._read[name]

    def _sampled(self, number: int) -> tuple[str, Any]:
        if self.task is None:
            raise ValueError("this model records no task to take problems from; type one")
        test = self.task.tests[0]
        size = self.task.size(test)
        if number < 0 or (size is not None and number >= size):
            last = "" if size is None else f", to {size - 1}"
            raise ValueError(f"there is no test problem {number}; they are numbered from 0{last}")
        problems = self.task.sample(test, np.array([number]))
        return self.task.questions(problems)[0], problems

    def _typed(self, text: str) -> tuple[str, Any]:
        if self._check is not None:
            self._check(text)
        task = self.system.texts.task
        if task is None:
            return text, None
        problems = task.parse(text)
        return task.questions(problems)[0], problems

    # --- chains ------------------------------------------------------------------------------------------------------

    def _answered(self, problem: _Problem, changes: Sequence[Edit]) -> TextAnswer:
        answer = problem.answer
        for edit in changes:
            chain = edit.applied(answer.chain, lambda name: self._problem(name).chain)
            start = edit.written_from(chain)
            if start is not None:
                chain = chain.truncate(min(start, len(chain)))
            answer = self.system.answer(
                problem.question, chain, max_tokens=self._max_tokens, continue_chain=start is not None
            )
        return answer

    def _steps(self, problem: _Problem, answer: TextAnswer) -> list[dict[str, Any]]:
        """Every latent of a chain as it is read."""
        chain, tree = answer.chain, self._tree(problem) is not None
        pieces, tokenizer = self._pieces(problem), self.system.texts.tokenizer
        every = chain.steps(top=len(tokenizer) if tree else TOKENS)
        one_each = not self.system.speaker.same_stack
        read = []
        for index, (step, distance) in enumerate(zip(every, chain.distances(pieces), strict=True)):
            read.append(
                {
                    "tokens": _rounded(step.tokens[:TOKENS]),
                    "rows": _rounded(step.rows[:3]),
                    "entropy": None if step.entropy is None else round(step.entropy, 4),
                    "norm": round(step.norm, 4),
                    "piece": tokenizer.decode([*pieces[index]]) if index < len(pieces) else None,
                    "distance": None if distance is None else round(distance, 4),
                    "decoded": tokenizer.decode([answer.tokens[index]])
                    if one_each and index < len(answer.tokens)
                    else None,
                    "names": {name: weight for name, weight in _rounded(step.tokens) if abs(weight) >= trees.SHOWN_FROM}
                    if tree
                    else None,
                }
            )
        return read

    def _pieces(self, problem: _Problem) -> list[Sequence[int]]:
        """What the task's explicit chain has in the place of each latent; nothing where the task gives none.

        Where each token of an answer has a latent, these are the tokens. The words of a Latent-SFT latent are those of
        the chunk after its own, which it is trained to predict (docs/methods/latent_sft.md, open point 3).
        """
        if self.task is None or "expected" not in self._verdict(problem.problems, problem.answer):
            return []
        prompt_format = self.system.texts.prompt_format
        if not self.system.speaker.same_stack:
            rows = self.task.rows(problem.problems, prompt_format)
            return [[token] for token in rows["input_ids"][0][rows["answer_mask"][0].bool()].tolist()]
        if self._rate is None:
            return []
        chain = self.task.spans(problem.problems, prompt_format)[0].chain
        chunks = [chain[at : at + self._rate] for at in range(0, len(chain), self._rate)]
        return [*(chunks if self.system.explicit else chunks[1:])]

    def _verdict(self, problems: Any, answer: TextAnswer) -> dict[str, Any]:
        """What is known of an answer; nothing where a question was typed that no task has read."""
        return {} if problems is None else verdict(self.task, problems, answer)

    def _tree(self, problem: _Problem) -> dict[str, Any] | None:
        """Names and places of the nodes of a tree, in heap order."""
        if not searches_trees(self.task) or problem.problems is None:
            return None
        names = [LETTERS[token - FIRST_LETTER] for token in problem.problems.names_BM[0]]
        depth = len(names).bit_length()
        return {"names": names, "at": trees.layout(depth), "size": trees.size(depth), "radius": trees.RADIUS}


def _rounded(pairs: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(token, round(value, 4)) for token, value in pairs]
