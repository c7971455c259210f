"""Forced wrong symbols: what they do to later symbols and to latents (JEPA-Reasoner, section 6.6).

The summary holds ``half`` (the symbols that a primed Talker is given), ``systems`` (system -> what
`unspoken.evaluation.forcing.effect_summary` returns) and ``prime`` (``exact_match`` and ``symbol_accuracy`` of a
Dual-Talker's second half after a ``right`` and a ``wrong`` first one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unspoken.draw.formats import percent
from unspoken.draw.section import Block, Paragraph, Section
from unspoken.draw.table import text
from unspoken.evaluation.outcomes import JEPA_REASONER
from unspoken.evaluation.results import Results, label
from unspoken.evaluation.significance import Outcomes, rate
from unspoken.probes.effects import Kinds, effect_table, latents_cell, rate_of
from unspoken.probes.probe import Probe, System, Task, View
from unspoken.tasks.context_free import EOS, SYMBOLS

if TYPE_CHECKING:
    from torch import Tensor

    from unspoken.evaluation.forcing import Effect

RATE = 0.25  # of the symbols of an answer that are forced to be wrong
PROBLEMS = 200  # on which they are
_EFFECTS: Kinds = {
    ("Symbols forced", "forced"): rate_of("forced"),
    ("Later symbols|changed", "later changed"): rate_of("later_changed"),
    ("Later right|unforced", "right"): rate_of("later_accuracy", "clean"),
    ("Later right|forced", "right, forced"): rate_of("later_accuracy", "forced"),
    ("Latents|largest change", "change of latents"): latents_cell,
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one model made of wrong symbols."""

    effect: Effect  # on later symbols and on latents
    half: int  # symbols that a primed Talker is given
    # Hits ``[B, M]`` of the others after right and wrong ones; empty where a system does not read its symbols.
    primed: Mapping[str, Outcomes]


class ForcedSymbolsProbe(Probe):
    """What does a system make of wrong symbols in its own answer?"""

    key = "forced_symbols"

    def applies(self, system: System, task: Task) -> bool:
        """Of systems that continue strings and choose their symbols; nearest rows are read off."""
        return task.traits.fixed_steps is not None and (system.explicit or system.speaker.samples)

    def measure(self, view: View) -> Reading:
        """Wrong symbols in the answers to the first problems; a primed Dual-Talker answers all."""
        import torch

        from unspoken.evaluation.forcing import containment, forced_run

        half, system = view.task.traits.fixed_steps, view.system
        assert half is not None
        few = view.first(PROBLEMS)
        run = forced_run(system, *few.task.prompts(few.problems, few.prompt_format), fill=EOS)
        right = _right(few)[:, system.replaced :]
        effect = containment(run, right, alternatives=torch.tensor(SYMBOLS), rate=RATE, seed=view.seed)
        primed = _primed(view, half) if system.name == JEPA_REASONER and system.speaker.reads_tokens else {}
        return Reading(effect=effect, half=half, primed=primed)

    def summarise(self, readings: Mapping[str, Sequence[Reading]], *, baseline: str | None) -> dict[str, Any]:
        from unspoken.evaluation.forcing import effect_summary

        primed: dict[str, list[Outcomes]] = {}
        for reading in (reading for seeds in readings.values() for reading in seeds):
            for name, hits in reading.primed.items():
                primed.setdefault(name, []).append(hits)
        return {
            "half": next(iter(readings.values()))[0].half,
            "systems": {name: effect_summary([one.effect for one in seeds]) for name, seeds in readings.items()},
            "prime": {
                name: {
                    "exact_match": asdict(rate(np.stack([hits.min(axis=1) for hits in seeds]))),
                    "symbol_accuracy": float(np.mean(seeds)),
                }
                for name, seeds in primed.items()
            },
        }

    def draw(self, summary: Any, results: Results) -> Section | None:
        note = (
            "Some of the symbols that a system gives are replaced by wrong ones while it answers. Later symbols are "
            "those after the first wrong one. Coconut has finished its chain when it answers, so its latents stay as "
            "they are too; the coupled model reasons in its symbols, so every wrong symbol is a wrong step. Below each "
            "rate, its 95 % interval."
        )
        systems = [(text(label(name)), [effect]) for name, effect in summary["systems"].items()]
        blocks: list[Block] = [effect_table(systems, _EFFECTS, [("", "")], title="forced wrong symbols", note=note)]
        if primed := summary["prime"]:
            own, wrong = (percent(primed[name]["symbol_accuracy"], 1) for name in ("right", "wrong"))
            sentence = (
                f"The Dual-Talker, given the first {summary['half']} symbols, gets {own} of the others right; given "
                f"wrong ones, {wrong}. Its latents are the same both times."
            )
            blocks.append(Paragraph(sentence))
        return Section("forced", "Forced wrong symbols", blocks)


def _right(view: View) -> Tensor:
    """The symbols ``[B, M]`` of right answers."""
    import torch

    return torch.tensor([[*one.chain, *one.answer] for one in view.task.spans(view.problems, view.prompt_format)])


def _primed(view: View, half: int) -> dict[str, Outcomes]:
    """Hits of the second half after right and wrong first halves; the chain is the same."""
    import torch

    from unspoken.evaluation.forcing import corrupted
    from unspoken.reasoning.picking import ForcedTokens

    first = _right(view)[:, :half]
    every = torch.ones_like(first, dtype=torch.bool)
    primes = {"right": first, "wrong": corrupted(first, every, 1.0, torch.tensor(SYMBOLS), view.seed)}
    primed = {}
    for name, prime in primes.items():
        tokens = view.system.decode(view.graded.chain, ForcedTokens(prime)).tokens
        symbols = view.task.grade(tokens, view.problems).per_symbol
        assert symbols is not None
        primed[name] = symbols[:, half:].cpu().numpy().astype(np.float64)
    return primed
