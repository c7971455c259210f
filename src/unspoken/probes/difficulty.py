"""Does accuracy fall with the number of reasoning steps that a problem needs?

The summary holds ``problems`` (number of steps -> how many test problems need them) and ``systems`` (system -> number of
steps -> rate of right answers). A problem needs as many steps as its explicit chain has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspoken.draw.charts import rate_bar
from unspoken.draw.formats import count
from unspoken.draw.section import Section
from unspoken.draw.table import Cell, Column, Table, estimate, text
from unspoken.evaluation.results import Results, label
from unspoken.evaluation.significance import Outcomes, rate
from unspoken.probes.colours import system_colours
from unspoken.probes.probe import Probe, System, Task, View


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of every problem the steps ``[B]`` of its explicit chain, and whether it was answered rightly ``[B]``."""

    steps: NDArray[np.int64]
    correct: Outcomes


class DifficultyProbe(Probe):
    """Accuracy by the number of steps of the explicit chain."""

    key = "difficulty"

    def applies(self, system: System, task: Task) -> bool:
        return task.traits.has_chain

    def measure(self, view: View) -> Reading | None:
        """None where all problems need the same number of steps, or their chains are not known."""
        steps = np.array([len(problem.steps) for problem in view.questions])
        if len(np.unique(steps[steps > 0])) < 2:
            return None
        return Reading(steps=steps, correct=view.graded.outcomes)

    def summarise(self, readings: Mapping[str, Sequence[Reading]], *, baseline: str | None) -> dict[str, Any]:
        """See the top of this file; problems without a known chain are left out."""
        steps = next(iter(readings.values()))[0].steps
        every = [int(number) for number in np.unique(steps) if number]
        return {
            "problems": {str(number): int((steps == number).sum()) for number in every},
            "systems": {
                name: {
                    str(number): asdict(rate(np.stack([seed.correct[steps == number] for seed in seeds])))
                    for number in every
                }
                for name, seeds in readings.items()
            },
        }

    def draw(self, summary: Any, results: Results) -> Section | None:
        colours = system_colours(results)

        def read(name: str, number: str) -> Cell:
            entry = summary["systems"][name][number]
            return estimate(entry, bar=rate_bar(entry, colours[name]))

        columns = [Column("System", lambda name: text(label(name)))]
        columns += [
            Column(f"{count(int(number), 'step')}|{problems:,} problems", partial(read, number=number), number)
            for number, problems in summary["problems"].items()
        ]
        note = (
            "Exact match with its 95 % interval by the number of steps of a problem’s explicit chain; the bar goes from 0 to "
            "100 %. A method whose silent steps stand for the explicit ones should not fall faster than the explicit chain."
        )
        title = "exact match by the steps that a problem needs"
        table = Table.of(summary["systems"], columns, title=title, note=note, classes="matrix")
        return Section(self.key, "Accuracy by the steps of a problem", [table])
