"""Forced wrong symbols: what they do to later symbols and to latents (JEPA-Reasoner, section 6.6).

The summary holds ``half`` (the symbols that a primed Talker is given), ``systems`` (system -> `effect_summary`) and
``prime`` (``exact_match`` and ``symbol_accuracy`` of a Dual-Talker's second half after a ``right`` and a ``wrong``
first one).

Axes: B problems, M symbols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from unspoken.draw.formats import percent
from unspoken.draw.section import Block, Paragraph, Section
from unspoken.draw.table import text
from unspoken.evaluation.forcing import Effect, Run, can_be_forced, corrupted, effect_of, forced_run, summed
from unspoken.evaluation.outcomes import PAIR
from unspoken.evaluation.results import Results, label, summary_of
from unspoken.evaluation.significance import Outcomes, rate
from unspoken.probes.effects import Kinds, effect_table, latents_cell, rate_of
from unspoken.probes.probe import Probe, View
from unspoken.reasoning.picking import FREE, ForcedTokens
from unspoken.reasoning.system import System
from unspoken.tasks.context_free import EOS, SYMBOLS
from unspoken.tasks.task import Task

RATE = 0.25  # of the symbols of an answer that are forced to be wrong
PROBLEMS = 200  # on which they are
# Symbols that could be forced, that were, later symbols, and of these those that changed, that were right without force,
# and with it. Later symbols are free ones after the first forced one of their row, of those that could be forced.
_COUNTS = ("forceable", "forced", "later", "changed", "right_clean", "right_forced")
_EFFECTS: Kinds = {
    ("Symbols forced", "forced"): rate_of("forced"),
    ("Later symbols|changed", "later changed"): rate_of("later_changed"),
    ("Later right|unforced", "right"): rate_of("later_accuracy", "clean"),
    ("Later right|forced", "right, forced"): rate_of("later_accuracy", "forced"),
    ("Latents|largest change", "change of latents"): latents_cell,
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One model: the effect of wrong symbols, and hits of the second half ``[B, M]`` after right and wrong first ones.

    Attributes:
        half: symbols that are given first.
        primed: empty where a Talker does not read its own symbols.
    """

    effect: Effect
    half: int
    primed: Mapping[str, Outcomes]


class ForcedSymbolsProbe(Probe):
    """What does a system make of wrong symbols in its own answer?"""

    key = "forced_symbols"

    def applies(self, system: System, task: Task) -> bool:
        """Of systems that continue strings and choose their symbols."""
        return task.traits.fixed_steps is not None and can_be_forced(system)

    def measure(self, view: View) -> Reading:
        """Wrong symbols in the answers to the first problems; a primed Dual-Talker answers all."""
        half, system = view.task.traits.fixed_steps, view.system
        assert half is not None
        few = view.first(PROBLEMS)
        run = forced_run(system, *few.task.prompts(few.problems, few.prompt_format), fill=EOS)
        right = _right(few)[:, system.unsaid :]
        effect = containment(run, right, alternatives=torch.tensor(SYMBOLS), rate=RATE, seed=view.seed)
        primed = _primed(view, half) if system.name == PAIR and system.speaker.reads_tokens else {}
        return Reading(effect=effect, half=half, primed=primed)

    def summarise(self, readings: Mapping[str, Sequence[Reading]], *, baseline: str | None) -> dict[str, Any]:
        """See the top of this file."""
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

    def section(self, results: Results) -> Section | None:
        """What wrong symbols do to later ones and to latents, and whether the Talker follows them."""
        summary = summary_of(results, self.key)
        if not summary:
            return None
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


def _right(view: View) -> Int[Tensor, "B M"]:
    """The symbols of right answers."""
    return torch.tensor([[*one.chain, *one.answer] for one in view.task.spans(view.problems, view.prompt_format)])


@torch.no_grad()
def containment(
    run: Run, right: Int[Tensor, "B M"], *, alternatives: Int[Tensor, " K"], rate: float, seed: int
) -> Effect:
    """Force wrong symbols and compare with the answers without them.

    Args:
        run: of the system; it reasons anew each time.
        right: the symbols of right answers.
        alternatives: symbols that may be forced and that may be replaced; leave the end out.
        rate: of the symbols of the clean answer that become wrong.
        seed: of places and symbols.
    """
    chain, clean = run(None)
    can = torch.isin(clean, alternatives)
    wrong = corrupted(clean, can, rate, alternatives, seed)
    forced = wrong != clean
    again, given = run(torch.where(forced, wrong, FREE))
    width = clean.shape[1]
    given, right = (F.pad(one, (0, max(0, width - one.shape[1])), value=FREE)[:, :width] for one in (given, right))
    later = can & ~forced & (forced.cumsum(dim=1) > 0)
    groups = (can, forced, later, later & (given != clean), later & (clean == right), later & (given == right))
    return effect_of([group.sum(dim=1) for group in groups], chain, again)


def effect_summary(seeds: Sequence[Effect], *, draws: int = 2000) -> dict[str, Any]:
    """The effects on the models of several seeds, with 95 % intervals; plain values.

    Returns:
        ``seeds``, ``problems``; ``forced`` (rate of the symbols that could be), ``later_changed`` and
        ``later_accuracy`` (``clean``, ``forced``), each ``mean``, ``low``, ``high`` or None where there was no later
        symbol; ``latents_identical`` and ``largest_latent_change`` over all seeds.
    """
    ratio, latents = summed(seeds, _COUNTS, draws=draws)
    return {
        "seeds": len(seeds),
        "problems": len(seeds[0].counts),
        "forced": ratio("forced", "forceable"),
        "later_changed": ratio("changed", "later"),
        "later_accuracy": {"clean": ratio("right_clean", "later"), "forced": ratio("right_forced", "later")},
        **latents,
    }


def _primed(view: View, half: int) -> dict[str, Outcomes]:
    """Hits of the second half after right and wrong first halves; the chain is the same."""
    first = _right(view)[:, :half]
    every = torch.ones_like(first, dtype=torch.bool)
    primes = {"right": first, "wrong": corrupted(first, every, 1.0, torch.tensor(SYMBOLS), view.seed)}
    primed = {}
    for name, prime in primes.items():
        tokens = view.system.say(view.graded.chain, ForcedTokens(prime)).tokens
        symbols = view.task.grade(tokens, view.problems).per_symbol
        assert symbols is not None
        primed[name] = symbols[:, half:].cpu().numpy().astype(np.float64)
    return primed
