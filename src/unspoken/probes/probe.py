"""What a probe is: one question about a system's chains or answers on a task, measured, summed up over seeds and drawn.

Pages are made without torch, so nothing heavy is imported here or at the top of a probe's file: `Probe.measure` imports
what it computes with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from unspoken.chain import LatentChain
    from unspoken.draw.section import Section
    from unspoken.evaluation.answering import Graded
    from unspoken.evaluation.results import Results
    from unspoken.reasoning.system import System
    from unspoken.reasoning.teacher import Teacher
    from unspoken.tasks.problems import ReasoningProblem
    from unspoken.tasks.prompt_format import PromptFormat
    from unspoken.tasks.task import Problems, Task


@dataclass(frozen=True, kw_only=True)
class View:
    """One system of one seed, with its answers to the first test set.

    Attributes:
        system: what is looked at.
        task: what it was trained on.
        problems: of the first test set. Where the task is running text they are sentences.
        answers: the system's own, free answers to them; None where there is nothing to answer.
        prompt_format: how problems become tokens.
        batch_size: problems answered at once.
        seed: of the training run, and of everything random that a probe draws.
        first_seed: of several seeds this is the first, of which examples are shown.
        as_trained: it answers as its stage was trained to, not in another way that is compared with that.
        teacher: what made the latents that it learned from, if anything did.
        most: how many problems the recipe asks for, of which there may be fewer; None for as many as there are.
    """

    system: System
    task: Task
    problems: Problems
    answers: Graded | None
    prompt_format: PromptFormat
    batch_size: int
    seed: int
    first_seed: bool = True
    as_trained: bool = True
    teacher: Teacher | None = None
    most: int | None = None

    @cached_property
    def graded(self) -> Graded:
        """The answers, where a probe asks for systems that have some."""
        assert self.answers is not None
        return self.answers

    @property
    def questions(self) -> Sequence[ReasoningProblem]:
        """The problems, of a task that asks in words."""
        problems: Any = self.problems
        asked: Sequence[ReasoningProblem] = problems
        return asked

    @property
    def has_chain(self) -> bool:
        """At least one problem was answered from a chain that is not empty."""
        return self.answers is not None and bool(self.answers.chain.lengths.any())

    @cached_property
    def forced(self) -> LatentChain:
        """Teacher-forced latents of the right answers, of systems whose latents point at rows of a table."""
        from unspoken.evaluation.teacher_forcing import forced_chain

        return forced_chain(self.system, self.task.rows(self.problems, self.prompt_format), self.batch_size)

    def first(self, most: int) -> View:
        """The same view of the first problems alone."""
        if len(self.problems) <= most:
            return self
        rows = np.arange(most)
        answers = None if self.answers is None else self.answers.select(rows)
        return replace(self, problems=self.problems.select(rows), answers=answers)

    def answer(self, *, chain: LatentChain | None = None, boxed: bool = False) -> Graded:
        """The problems answered anew, see `unspoken.evaluation.answering.answer`."""
        from unspoken.evaluation.answering import answer

        return answer(
            self.system,
            self.task,
            self.problems,
            self.prompt_format,
            batch_size=self.batch_size,
            chain=chain,
            boxed=boxed,
        )


class Probe:
    """One question. A subclass is one file in `unspoken.probes` and one line of its catalogue.

    Attributes:
        key: of its summary in results, and the anchor of its section.
        optional: measured only where it is asked for by name, since it takes long.
    """

    key: ClassVar[str]
    optional: ClassVar[bool] = False

    def applies(self, system: System, task: Task) -> bool:
        """Whether the question makes sense for a system on a task."""
        return True

    def measure(self, view: View) -> Any:
        """The reading of one system of one seed; None where its answers leave nothing to measure."""
        return None

    def summarise(self, readings: Mapping[str, Sequence[Any]], *, baseline: str | None) -> dict[str, Any] | None:
        """What results keep, as plain values.

        Args:
            readings: of every system that has any, one a seed.
            baseline: the system that others are compared with, if there is one.

        Returns:
            None if nothing is worth keeping.
        """
        return None

    def section(self, results: Results) -> Section | None:
        """The part of the page about results that hold a summary; None where there is nothing to show."""
        return None
