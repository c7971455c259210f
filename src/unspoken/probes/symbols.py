"""How strings go on without any disturbance: accuracy of each symbol, and of continuations as such.

The summary holds ``symbols`` (of an answer), ``half`` (those that latents may stand for), ``steps`` (system -> accuracy
of each symbol, None where a latent stands for it) and ``valid`` (system -> rate of whole continuations that begin some
string of the grammar).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from unspoken.draw.formats import BARE_PERCENT_1, PERCENT_1
from unspoken.draw.section import Section
from unspoken.draw.table import Cell, Column, Table, number, text
from unspoken.evaluation.results import Results, label
from unspoken.evaluation.significance import Outcomes, rate
from unspoken.probes.probe import Probe, System, Task, View

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The symbols of one model."""

    hits: Outcomes  # ``[B, W]``, which are right
    replaced: int  # symbols that a latent stands for; they come first
    half: int  # of all symbols
    valid: Outcomes | None  # ``[B]``; None where some symbols are not given


def valid_continuations(view: View, tokens: Tensor) -> Outcomes:
    """Whether prompts and tokens ``[B, M]`` begin some string of the grammar, ``[B]``."""
    grammar: Any = view.task  # the only task that fixes the length of its answers
    return grammar.valid(tokens, view.problems).numpy().astype(np.float64)


class SymbolsProbe(Probe):
    """Which symbols are right, and which continuations are possible?"""

    key = "symbols"

    def applies(self, system: System, task: Task) -> bool:
        return task.traits.fixed_steps is not None

    def measure(self, view: View) -> Reading:
        half, replaced = view.task.traits.fixed_steps, view.system.replaced
        assert half is not None
        valid = None if replaced else valid_continuations(view, view.graded.tokens)
        return Reading(hits=view.graded.hits, replaced=replaced, half=half, valid=valid)

    def summarise(self, readings: Mapping[str, Sequence[Reading]], *, baseline: str | None) -> dict[str, Any]:
        first = next(iter(readings.values()))[0]
        steps, valid = {}, {}
        for name, seeds in readings.items():
            replaced = seeds[0].replaced
            means = np.mean([reading.hits[:, replaced:].mean(axis=0) for reading in seeds], axis=0)
            steps[name] = [None] * replaced + means.tolist()
            outcomes = [reading.valid for reading in seeds if reading.valid is not None]
            if outcomes:
                valid[name] = asdict(rate(np.stack(outcomes)))
        return {"symbols": first.hits.shape[1], "half": first.half, "steps": steps, "valid": valid}

    def draw(self, summary: Any, results: Results) -> Section | None:
        def symbol(name: str, step: int) -> Cell:
            return number(summary["steps"][name][step], BARE_PERCENT_1)

        def valid(name: str) -> Cell:
            return number((summary["valid"].get(name) or {}).get("mean"), PERCENT_1)

        columns = [Column("System", lambda name: text(label(name)))]
        columns += [Column(str(step + 1), partial(symbol, step=step)) for step in range(summary["symbols"])]
        columns.append(Column("Valid|as a whole", valid))
        note = (
            "Symbols that are the string’s own, in per cent, step by step without any noise. A string can go on in "
            "several ways, so no system can be right every time; a valid continuation is one that begins some string "
            "of the grammar. Coconut’s latents stand for symbols that it does not give."
        )
        title = "right symbols in per cent, and continuations that begin some string of the grammar"
        table = Table.of(summary["steps"], columns, title=title, note=note)
        return Section(self.key, "Continuations without noise", [table])
