"""How well does a stage that only reads know the next token of running text?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from unspoken.draw.charts import rate_bar
from unspoken.draw.formats import PERCENT_1, TWO_DECIMALS, count
from unspoken.draw.section import Section
from unspoken.draw.table import Column, Table, drawing, estimate, text
from unspoken.evaluation.results import Results, label
from unspoken.evaluation.significance import bootstrap_means, interval
from unspoken.probes.probe import Probe, System, Task, View

_DRAWS = 2000


class NextTokenProbe(Probe):
    """Accuracy and perplexity of the next token, on as many test texts as the recipe asks for problems."""

    key = "next_token"

    def applies(self, system: System, task: Task) -> bool:
        return task.traits.continues and not system.has_talker

    def measure(self, view: View) -> dict[str, Any] | None:
        """What `next_tokens` reads, with ``tokens``, how many; a Reasoner that has a Talker is a stage of its own."""
        if not view.as_trained:
            return None
        from unspoken.evaluation.answering import first_problems
        from unspoken.evaluation.teacher_forcing import next_tokens

        batch = view.task.rows(first_problems(view.task, "test", view.most or len(view.problems)))
        return {"tokens": batch["input_ids"].numel(), **next_tokens(view.system, batch, view.batch_size)}

    def summarise(self, readings: Mapping[str, Sequence[dict[str, Any]]], *, baseline: str | None) -> dict[str, Any]:
        """How many ``rows`` and ``tokens``; ``systems`` with ``accuracy`` and, given logits, ``perplexity``."""
        first = next(iter(readings.values()))[0]
        return {
            "rows": len(first["accuracy"]),
            "tokens": first["tokens"],
            "systems": {name: _with_intervals(seeds) for name, seeds in readings.items()},
        }

    def draw(self, summary: Any, results: Results) -> Section | None:
        return Section(self.key, "Next-token prediction", [_table(summary)])


def _with_intervals(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = [key for key in ("accuracy", "loss") if key in seeds[0]]
    values = np.stack([np.stack([entry[key] for key in keys], axis=1) for entry in seeds])
    drawn, means = bootstrap_means(values, draws=_DRAWS), values.mean(axis=(0, 1))
    summary = {"accuracy": asdict(interval(float(means[0]), drawn[:, 0], least=0, most=1))}
    if "loss" in keys:
        summary["perplexity"] = asdict(interval(float(np.exp(means[1])), np.exp(drawn[:, 1])))
    return summary


def _table(summary: Mapping[str, Any]) -> Table:
    columns = [
        Column("Stage", lambda row: text(label(row[0]))),
        Column("Perplexity", lambda row: estimate(row[1].get("perplexity"), TWO_DECIMALS), "perplexity|95 % interval"),
        Column("Next token right", lambda row: estimate(row[1]["accuracy"], PERCENT_1), "right|95 % interval"),
        Column(
            "|0 to 100 %", lambda row: drawing(rate_bar(row[1]["accuracy"], "c1", bar=False)), "", classes="graphic"
        ),
    ]
    rows = f"{count(summary['rows'], 'test text')} of {count(summary['tokens'], 'token')} together"
    note = (
        f"{rows}, with 95 % intervals. A language model picks its most likely token; a Reasoner has no head, and the "
        "nearest row of its table is taken."
    )
    return Table.of(summary["systems"].items(), columns, title=f"the next token, on {rows}", note=note)
