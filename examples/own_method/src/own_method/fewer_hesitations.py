"""How many hesitations does the answer need? The same model answers after the first so many of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unspoken.draw.section import Section
from unspoken.draw.table import Column, Table, estimate, text
from unspoken.evaluation.results import Results, label, summary_of
from unspoken.evaluation.significance import Outcomes, rate
from unspoken.probes.probe import Probe, View

if TYPE_CHECKING:
    from unspoken.reasoning.system import System
    from unspoken.tasks.task import Task


class FewerHesitationsProbe(Probe):
    """Accuracy by the number of hesitations."""

    key: ClassVar[str] = "fewer_hesitations"

    def applies(self, system: System, task: Task) -> bool:
        """Of systems whose chain is written in one pass."""
        return system.iterations == 0

    def measure(self, view: View) -> dict[int, Outcomes]:
        """Whether each problem is answered right ``[B]``, by the number of hesitations: none, half of them, all."""
        chain = view.graded.chain
        times = chain.mask.shape[1]
        outcomes = {}
        for kept in (0, times // 2, times):
            shorter = replace(chain, latents=chain.latents[:, :kept], mask=chain.mask[:, :kept])
            outcomes[kept] = view.answer(chain=shorter).correct.numpy().astype(np.float64)
        return outcomes

    def summarise(
        self, readings: Mapping[str, Sequence[dict[int, Outcomes]]], *, baseline: str | None
    ) -> dict[str, Any]:
        """``exact_match`` by system and number of hesitations."""
        return {
            system: {
                str(kept): {"exact_match": asdict(rate(np.stack([seed[kept] for seed in seeds])))} for kept in seeds[0]
            }
            for system, seeds in readings.items()
        }

    def section(self, results: Results) -> Section | None:
        """A row for each number, a column for each system."""
        summary = summary_of(results, self.key)
        if not summary:
            return None
        numbers = list(dict.fromkeys(kept for entries in summary.values() for kept in entries))
        rows = [
            [
                text(kept),
                *(estimate(entries[kept]["exact_match"] if kept in entries else None) for entries in summary.values()),
            ]
            for kept in numbers
        ]
        columns = [Column("Hesitations"), *(Column(f"{label(system)}|exact match") for system in summary)]
        return Section(self.key, "How many hesitations does the answer need?", [Table(columns=columns, rows=rows)])


FEWER_HESITATIONS = FewerHesitationsProbe()
