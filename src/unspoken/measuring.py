"""One open system, measured on problems: accuracy, and what becomes of it when the chain is altered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unspoken.draw.formats import POINTS
from unspoken.draw.table import Cell, Column, Table, estimate, text
from unspoken.evaluation.answering import first_problems
from unspoken.evaluation.results import Results, summary_of
from unspoken.evaluation.seeds import SeedModels
from unspoken.probes.controls import MEANING, ControlsProbe
from unspoken.probes.evaluate import EvaluationSettings, evaluate
from unspoken.reasoning.system import System
from unspoken.tasks.catalogue import task_configs
from unspoken.tasks.files import FileConfig
from unspoken.tasks.grading import name_of
from unspoken.tasks.jsonl import JsonlConfig
from unspoken.tasks.task import Task, TaskConfig
from unspoken.training.settings import one_of


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """What was measured of one system.

    Attributes:
        name: of the system.
        results: as `unspoken.probes.evaluate.evaluate` gives them.
    """

    name: str
    results: Results

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    @property
    def accuracy(self) -> float:
        """Rate of right answers on the first test set."""
        return float(self.results["systems"][self.name]["exact_match"]["mean"])

    def table(self) -> Table:
        """A row for each test set, then one for each control of the first of them."""
        tests = self.results["tests"]
        rows = [[text(test), estimate(tests[test][self.name]["exact_match"]), Cell(), text("")] for test in tests]
        for name, entry in summary_of(self.results, ControlsProbe.key).get(self.name, {}).items():
            meaning = text(MEANING.get(name, ("",))[0])
            rows.append([text(name), estimate(entry["exact_match"]), _change(entry["difference"]), meaning])
        columns = [
            Column("on, or with the chain"),
            Column("exact match", short="exact match|95 % interval"),
            Column("points", short="points|95 % interval"),
            Column("what is changed", classes=""),
        ]
        return Table(columns=columns, rows=rows, title=f"{self.name}, {self.results['problems']} problems")


def _change(difference: Mapping[str, float]) -> Cell:
    """Points more or fewer than with the system's own chains."""
    return Cell(difference["mean"], POINTS, interval=(difference["low"], difference["high"]))


def measured(
    system: System,
    data: Any,
    *,
    grader: str | Callable[..., bool] | None,
    problems: int,
    controls: bool,
    batch_size: int,
    seed: int,
) -> Evaluation:
    """See `System.evaluate`."""
    task = _task(system, data, grader)
    if (reader := system.texts.task) is not None and task.config != system.texts.trained_on:
        for test in task.tests:
            for question in task.questions(first_problems(task, test, problems)):
                reader.parse(question)
    settings = EvaluationSettings(
        task=task,
        prompt_format=system.texts.prompt_format,
        problems=problems,
        batch_size=batch_size,
        max_answer=system.max_tokens,
    )
    probes = [ControlsProbe()] if controls else []
    results = evaluate([SeedModels(seed=seed, opened=system)], settings, probes, log=lambda _: None)
    return Evaluation(name=system.name, results=results)


def _grader(given: str | Callable[..., bool] | None, trained_on: TaskConfig | None) -> str:
    """Name of the grader of a file: the given one, or that of what a system has learned from, if it names one."""
    if given is None:
        return str(getattr(trained_on, "grader", JsonlConfig.grader))
    return name_of(given) if callable(given) else given


def _task(system: System, data: Any, grader: str | Callable[..., bool] | None) -> Task:
    """What a system is measured on.

    Raises:
        ValueError: nothing is given and none is known, it cannot be read, its tokens are not those of the system, or
            the system has learned from it.
    """
    trained_on = system.texts.trained_on
    if grader is not None and not isinstance(data, str | Path):
        raise ValueError("grader needs a file of problems; give one as data, or set the key 'grader' of the task")
    if data is None:
        if trained_on is None:
            raise ValueError(f"{system.name} records no task to be measured on; give a file, or the task of a recipe")
        return trained_on.build()
    if isinstance(data, str | Path):
        files = trained_on if isinstance(trained_on, FileConfig) else None
        if files is not None and files.train is not None and Path(files.train).resolve() == Path(data).resolve():
            raise ValueError(
                f"{system.name} has learned from rows of {data}; leave it out to measure on those that were held out, "
                "or give other problems"
            )
        return JsonlConfig(tests=(str(data),), grader=_grader(grader, trained_on)).build()
    if isinstance(data, Mapping):
        data = one_of(task_configs(), data, "data")
    if not isinstance(data, TaskConfig):
        raise ValueError(f"data is {data!r}; give a file, the task of a recipe as a mapping, or a configuration")
    if data.traits.own_vocabulary and data != trained_on:
        own = data.build().tokenizer
        if own is None or own.get_vocab() != system.texts.tokenizer.get_vocab():
            raise ValueError(f"the task {data.kind} has tokens that {system.name} does not know; give another one")
    return data.build()
