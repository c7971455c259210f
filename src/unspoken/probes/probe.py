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

from unspoken.draw.section import Section
from unspoken.evaluation.results import Results, summary_of

if TYPE_CHECKING:
    from unspoken.chain import LatentChain
    from unspoken.evaluation.answering import Graded
    from unspoken.reasoning.system import System
    from unspoken.reasoning.teacher import Teacher
    from unspoken.tasks.problems import ReasoningProblem
    from unspoken.tasks.prompt_format import PromptFormat
    from unspoken.tasks.task import Problems, Task
else:
    System = Task = Any

__all__ = ["Probe", "System", "Task", "View"]


@dataclass(frozen=True, kw_only=True)
class View:
    """One system of one seed, with its answers to the first test set."""

    system: System  # what is looked at
    task: Task  # what it was trained on
    problems: Problems  # of the first test set. Where the task is running text they are sentences.
    answers: Graded | None  # the system's own, free answers to them; None where there is nothing to answer
    prompt_format: PromptFormat  # how problems become tokens
    batch_size: int  # problems answered at once
    seed: int  # of the training run, and of everything random that a probe draws
    first_seed: bool = True  # of several seeds this is the first, of which examples are shown
    as_trained: bool = True  # it answers as its stage was trained to, not in another way that is compared with that
    teacher: Teacher | None = None  # what made the latents that it learned from, if anything did
    # How many problems the recipe asks for, of which there may be fewer; None for as many as there are.
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
        return problems

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

    def answer(self, **how: Any) -> Graded:
        """The problems answered anew, from another chain for instance, see `unspoken.evaluation.answering.answer`."""
        from unspoken.evaluation.answering import answer

        asked = (self.system, self.task, self.problems, self.prompt_format)
        return answer(*asked, batch_size=self.batch_size, **how)


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

    def summarise(self, readings: Mapping[str, Sequence[Any]], *, baseline: str | None) -> Any:
        """What results keep, as plain values: by default `over_seeds` of each system.

        Args:
            readings: of every system that has any, one a seed.
            baseline: the system that others are compared with, if there is one.

        Returns:
            None if nothing is worth keeping.
        """
        summaries = {name: self.over_seeds(seeds) for name, seeds in readings.items()}
        return {name: summary for name, summary in summaries.items() if summary is not None} or None

    def over_seeds(self, seeds: Sequence[Any]) -> Any:
        """The readings of one system as plain values; None if nothing is worth keeping."""
        return None

    def section(self, results: Results) -> Section | None:
        """The part of the page about results that hold a summary; None where there is nothing to show."""
        summary = summary_of(results, self.key)
        return self.draw(summary, results) if summary else None

    def draw(self, summary: Any, results: Results) -> Section | None:
        """The section of a summary that holds something."""
        return None
