"""Measures finished seeds: every system answers every test set once, and every probe looks at it.

Results (``schema`` 3) hold ``seeds``; ``problems``, of the first test set; ``baseline``, the system that others are
compared with; ``systems`` (name -> ``exact_match`` with interval; ``ended``, the rate of chains that ended by
themselves; ``cost``, a mean problem's; ``chain``, what a step is, None without one); ``tests``
(test set -> system -> ``exact_match``); ``differences``, paired tests against
the baseline; ``outcomes`` (`unspoken.evaluation.outcomes`); ``probes`` (key -> what the probe of that key summarises);
``training``, a curve for each stage of each seed. What a run measured also has ``made`` (`unspoken.provenance.made`).

Axes: B problems.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from unspoken.chain import StopReason
from unspoken.evaluation.answering import Graded, answer, first_problems
from unspoken.evaluation.cost import counted, seconds
from unspoken.evaluation.curves import curve, has_curve
from unspoken.evaluation.outcomes import compared, fingerprint, outcomes_of
from unspoken.evaluation.results import SCHEMA
from unspoken.evaluation.seeds import SeedModels, measured_systems
from unspoken.evaluation.significance import Outcomes, paired_difference, rate
from unspoken.evaluation.teacher_forcing import read_back, sentence_pairs
from unspoken.methods import catalogue
from unspoken.probes.probe import Probe, View
from unspoken.reasoning.latents import Sampling
from unspoken.reasoning.system import System
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.task import Problems, Task

LogLine = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How systems are measured, the same for all."""

    task: Task  # whose test sets are answered
    prompt_format: PromptFormat  # how its problems become tokens
    problems: int  # of each test set; smaller sets are used in full
    batch_size: int  # problems answered at once
    max_answer: int  # cap of an answer, where the task has none of its own
    sampling: Sampling | None = None  # how answers are drawn; None takes the most likely tokens
    baseline: str | None = None  # the stage that others are compared with

    def tests(self) -> dict[str, TestSet]:
        """The test sets by name; of running text, its sentences."""
        if self.task.traits.continues:
            return {"test": TestSet(sentence_pairs(self.task, self.problems))}
        return {test: TestSet(first_problems(self.task, test, self.problems)) for test in self.task.tests}

    def answer(self, system: System, problems: Problems, batch_size: int) -> Graded | None:
        """The answers of a system; None of one that only reads."""
        if self.task.traits.continues:
            return read_back(system, self.task, problems, batch_size) if system.has_talker else None
        return answer(system, self.task, problems, self.prompt_format, batch_size=batch_size)


@dataclass
class TestSet:
    """A test set and what every system did with it, by system."""

    problems: Problems
    prompt_lengths: Tensor | None = None  # tokens ``[B]`` of the prompts; None until an answer is counted
    right: dict[str, list[Outcomes]] = field(default_factory=lambda: defaultdict(list))  # outcomes ``[B]`` of each seed
    # Of each seed the rate of chains that ended by themselves; nothing where their length is fixed.
    ended: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    # Of each seed what its answers cost.
    spent: dict[str, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    # What the system and the first seed add to that: the number of parameters, and seconds.
    fixed: dict[str, dict[str, float]] = field(default_factory=dict)

    def answer(self, system: System, settings: EvaluationSettings, *, timed: bool, alone: bool) -> Graded | None:
        """Let a system of one seed answer all problems, and keep what it did.

        Args:
            timed: also take the time of a few problems in a batch.
            alone: and of a few one by one.
        """
        answers = settings.answer(system, self.problems, settings.batch_size)
        if answers is None:
            return None
        self.right[system.name].append(answers.outcomes)
        stop = answers.chain.stop
        if not bool((stop == StopReason.FIXED).all()):
            self.ended[system.name].append(float((stop == StopReason.END).double().mean()))
        if not settings.task.traits.continues:  # to read sentences and decode them again is no answer that has a cost
            if self.prompt_lengths is None:
                self.prompt_lengths = settings.task.prompts(self.problems, settings.prompt_format)[1].sum(dim=1)
            self.spent[system.name].append(counted(system, self.prompt_lengths, answers))
            if timed:
                timed_answer = partial(settings.answer, system)
                times = seconds(timed_answer, self.problems, settings.batch_size, alone=alone)
                self.fixed[system.name] = {"parameters": system.parameters, **times}
        return answers

    def cost(self, name: str) -> dict[str, float] | None:
        """Means over seeds, with the times of the first one; None where nothing has a cost."""
        if name not in self.spent:
            return None
        means = {key: float(np.mean([one[key] for one in self.spent[name]])) for key in self.spent[name][0]}
        return means | self.fixed[name]

    def rates(self) -> dict[str, dict[str, Any]]:
        """Exact match of every system."""
        return {name: {"exact_match": asdict(rate(np.stack(seeds)))} for name, seeds in self.right.items()}

    def outcomes(self, task: Task) -> dict[str, Any]:
        """What other runs are compared with, see `unspoken.evaluation.outcomes`."""
        costs = {name: compared(cost) for name in self.right if (cost := self.cost(name)) is not None}
        return outcomes_of(fingerprint(task, self.problems), self.right, costs)


def evaluate(
    seeds: Sequence[SeedModels], settings: EvaluationSettings, probes: Sequence[Probe], *, log: LogLine
) -> dict[str, Any]:
    """Measure every measured stage of every seed on the test problems, once.

    Args:
        seeds: finished folders.
        probes: what else is measured, each of the systems that it applies to.
        log: is given what is being done, a line at a time.

    Returns:
        The content described at the top of this file, without recipe and command.
    """
    tests = settings.tests()
    first = next(iter(tests.values()))
    readings: dict[str, dict[str, list[Any]]] = {probe.key: defaultdict(list) for probe in probes}
    chains: dict[str, str | None] = {}
    for view in _views(seeds, tests, settings, log):
        system = view.system
        chains[system.name] = system.chain_kind if view.has_chain else None
        for key, reading in _readings(view, settings, probes, log):
            readings[key][system.name].append(reading)
    baseline = settings.baseline if settings.baseline in first.right else None
    summaries = {
        probe.key: probe.summarise(readings[probe.key], baseline=baseline) for probe in probes if readings[probe.key]
    }
    rates = first.rates()
    return {
        "schema": SCHEMA,
        "seeds": [entry.seed for entry in seeds],
        "problems": len(first.problems),
        "baseline": baseline,
        "systems": {
            name: {
                **rates[name],
                "ended": float(np.mean(first.ended[name])) if name in first.ended else None,
                "cost": first.cost(name),
                "chain": chains[name],
            }
            for name in rates
        },
        "tests": {test: test_set.rates() for test, test_set in tests.items()},
        "differences": _differences(first.right, baseline),
        "outcomes": {test: test_set.outcomes(settings.task) for test, test_set in tests.items()},
        "probes": {key: summary for key, summary in summaries.items() if summary is not None},
        "training": [
            {
                "seed": entry.seed,
                "stages": {
                    name: curve(at, chains=entry is seeds[0]) for name, at in entry.stages.items() if has_curve(at)
                },
            }
            for entry in seeds
        ],
    }


def _readings(
    view: View, settings: EvaluationSettings, probes: Sequence[Probe], log: LogLine
) -> Iterator[tuple[str, Any]]:
    """Key and reading of every probe that applies to a system and has something to read."""
    for probe in probes:
        if probe.applies(view.system, settings.task):
            log(f"seed {view.seed}  {view.system.name}: {probe.key.replace('_', ' ')}")
            if (reading := probe.measure(view)) is not None:
                yield probe.key, reading


def _views(
    seeds: Sequence[SeedModels], tests: Mapping[str, TestSet], settings: EvaluationSettings, log: LogLine
) -> Iterator[View]:
    """Every system of every seed, after it has answered all test sets."""
    first = next(iter(tests.values()))
    for entry in seeds:
        for stage, models in measured_systems(entry, settings.task.traits, settings.max_answer, settings.prompt_format):
            systems = [replace(one, sampling=settings.sampling) for one in models]
            teacher = None
            if stage in entry.teachers:
                teacher = catalogue.teacher(entry.teachers[stage], settings.prompt_format, device=entry.device)
            for system in systems:
                answers = None
                for test, test_set in tests.items():
                    log(f"seed {entry.seed}  {system.name}: {len(test_set.problems)} problems of {test}")
                    given = test_set.answer(system, settings, timed=entry is seeds[0], alone=test_set is first)
                    answers = given if test_set is first else answers
                yield View(
                    system=system,
                    task=settings.task,
                    problems=first.problems,
                    answers=answers,
                    prompt_format=settings.prompt_format,
                    batch_size=settings.batch_size,
                    seed=entry.seed,
                    first_seed=entry is seeds[0],
                    as_trained=system is systems[0],
                    teacher=teacher,
                    most=settings.problems,
                )


def _differences(right: Mapping[str, Sequence[Outcomes]], baseline: str | None) -> dict[str, Any]:
    """Paired tests of every system against the baseline."""
    if baseline is None:
        return {}
    against = np.stack(right[baseline])
    return {
        f"{name} - {baseline}": asdict(paired_difference(np.stack(seeds), against))
        for name, seeds in right.items()
        if name != baseline
    }
