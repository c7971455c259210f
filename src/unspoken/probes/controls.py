"""Does the chain do anything? The same trained system answers from an altered chain, or from none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from unspoken.draw.charts import rate_bar
from unspoken.draw.formats import BARE_PERCENT_1, POINTS, bare_percent, count, joined, percent, points
from unspoken.draw.section import Section, Verdict, Verdicts
from unspoken.draw.table import UNKNOWN, Cell, Column, Table, estimate, text
from unspoken.evaluation.results import Results, differs, label
from unspoken.evaluation.significance import Outcomes, paired_difference, rate
from unspoken.probes.colours import system_colours
from unspoken.probes.probe import Probe, System, Task, View

_PROBLEMS = 500  # that are answered again from every altered chain
FORCED = "forced answer"
MEANING = {
    "zero": ("zero vectors", "Are the vectors read at all, or only their number?"),
    "mean": ("the average latent of each step", "Is it this problem, or just a latent typical of its place?"),
    "noise": ("random directions of the same norm", "Would any vectors of the right length do?"),
    "random mixtures": ("the same weights on random tokens", "Would any mixtures do?"),
    "shuffle": ("the same latents in random order", "Does the order carry information?"),
    "swap": ("the chain of another problem", "Does the answer follow the chain?"),
    "truncate": ("the first half, then zeros", "Are the late steps needed?"),
    "no chain": ("no latent, or a single zero vector", "How far does it get without a chain?"),
    FORCED: ("the box is opened right after the chain", "Is the answer ready when the chain ends?"),
}
# These take away what a chain holds; the others disturb it or the text after it.
_EMPTYING = ("no chain", "swap", "mean", "random mixtures", "noise", "zero")
# If all of five right answers are lost, chance does that too, once in sixteen times (sign test).
_FEWEST_TO_LOSE = 6
_NOTABLE = 0.01  # a loss in the mean that is worth naming, though no test confirms it
# So short that a row fits a terminal of eighty columns. Hidden states have noise for random mixtures.
_SHORT = {"no chain": "none", FORCED: "forced", "random mixtures": "random", "noise": "random", "truncate": "half"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What became of the answers of one system of one seed."""

    own: Outcomes  # ``[B]``, whether they are right from the system's own chains
    altered: dict[str, Outcomes]  # the same by control
    symbols: dict[str, float]  # by control the share of right symbols, where answers are compared symbol by symbol


class ControlsProbe(Probe):
    """Accuracy from altered chains, and the paired difference to the system's own."""

    key = "controls"

    def applies(self, system: System, task: Task) -> bool:
        """Of every system that answers problems, and whose chain is not itself the answer."""
        return not task.traits.continues and system.silent and (system.speaker.same_stack or system.speaker.samples)

    def measure(self, view: View) -> Reading | None:
        """None where every chain is empty."""
        from unspoken.evaluation.controls import altered_chains

        if not view.has_chain:
            return None
        some = view.first(_PROBLEMS)
        chain = some.graded.chain
        altered = {
            name: some.answer(chain=other) for name, other in altered_chains(view.system, chain, view.seed).items()
        }
        if view.system.speaker.same_stack and view.task.traits.has_chain:
            altered[FORCED] = some.answer(chain=chain, boxed=True)
        after = view.task.traits.fixed_steps
        return Reading(
            own=some.graded.outcomes,
            altered={name: answers.outcomes for name, answers in altered.items()},
            symbols={
                name: float(answers.per_symbol[:, after:].double().mean())
                for name, answers in altered.items()
                if answers.per_symbol is not None
            },
        )

    def over_seeds(self, seeds: Sequence[Reading]) -> dict[str, Any]:
        """By control ``exact_match``, ``difference`` and, where there is one, ``symbol_accuracy``."""
        own = np.stack([seed.own for seed in seeds])
        summary: dict[str, dict[str, Any]] = {}
        for name in seeds[0].altered:
            outcomes = np.stack([seed.altered[name] for seed in seeds])
            summary[name] = {
                "exact_match": asdict(rate(outcomes)),
                "difference": asdict(paired_difference(outcomes, own)),
            }
            if name in seeds[0].symbols:
                summary[name]["symbol_accuracy"] = float(np.mean([seed.symbols[name] for seed in seeds]))
        return summary

    def draw(self, controls: Any, results: Results) -> Section | None:
        verdicts = [
            Verdict(name=label(system), sentences=chain_verdict(entries)) for system, entries in controls.items()
        ]
        return Section(self.key, "Does the chain do anything?", [Verdicts(verdicts), _table(results, controls)])


def _table(results: Results, controls: Mapping[str, Any]) -> Table:
    colours = system_colours(results)

    def read(name: str, system: str) -> Cell:
        if name:
            return _control(controls[system].get(name))
        # On a terminal of the problems on which chains were altered: fewer than the headline's.
        exact, own = results["systems"][system]["exact_match"], BARE_PERCENT_1(own_accuracy(controls[system]))
        return replace(estimate(exact, classes="strong", bar=rate_bar(exact, colours[system])), short=own)

    def chain(name: str) -> Cell:
        if not name:
            return text("the chain itself", "nothing is changed", short="own")
        return text(name, MEANING.get(name, ("", ""))[0], short=_SHORT.get(name, name))

    def asks(name: str) -> Cell:
        return text(MEANING.get(name, ("", ""))[1] if name else "", classes="muted")

    columns = [Column("Chain", chain, "system")]
    columns += [Column(label(system), partial(read, system=system), label(system)) for system in controls]
    if len(controls) < 3:  # more columns leave no width for it
        columns.append(Column("What it asks", asks, "", classes="wide"))
    altered = min(entry["exact_match"]["problems"] for entries in controls.values() for entry in entries.values())
    note = (
        "The same trained model answers from an altered chain. Large: exact match; bar: the same from 0 to 100 %, with its "
        "95 % interval. Below: points more or fewer than with the chain itself, with the 95 % interval of the paired "
        "difference; grey where it is not significant at the 5 % level. A bar that stays as long as the first one means that what "
        "was destroyed was not used."
    )
    if altered < results["problems"]:
        note += f" Altered chains are measured on the first {altered:,} of the {results['problems']:,} problems."
    return Table.of(
        dict.fromkeys(["", *(name for entries in controls.values() for name in entries)]),
        columns,
        title=(
            f"points more or fewer on an altered chain than on its own, first {count(altered, 'problem')};\n"
            "in brackets where it may be chance"
        ),
        note=note,
        classes="matrix",
        terminal="transposed",
    )


def _control(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None:
        return UNKNOWN
    exact, change = entry["exact_match"], entry["difference"]
    sure, more = differs(change), points(change["mean"])
    note = f"{more} ({POINTS.interval(change['low'], change['high'])})"
    if "symbol_accuracy" in entry:
        note += f", {percent(entry['symbol_accuracy'], 1)} of the symbols right"
    return Cell(
        exact["mean"],
        note=note,
        short=more if sure else f"({more})",
        classes="" if sure else "muted",
        drawing=rate_bar(exact, "c0"),
    )


def own_accuracy(controls: Mapping[str, Mapping[str, Any]]) -> float:
    """Accuracy of a system from its own chains, on the problems of its controls."""
    entry = next(iter(controls.values()))
    return entry["exact_match"]["mean"] - entry["difference"]["mean"]


def chain_verdict(controls: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether the chain of a system does anything, out of its controls' paired differences: sentences, in order."""
    asked = next(iter(controls.values()))["exact_match"]
    answers = asked["problems"] * len(asked["seeds"])
    right = round(own_accuracy(controls) * answers)
    if right < _FEWEST_TO_LOSE:
        return [f"Inconclusive: even from its own chains, only {right} of {answers} answers are right."]
    change = {name: entry["difference"] for name, entry in controls.items()}
    lost = {name: -entry["mean"] for name, entry in change.items() if differs(entry) and entry["mean"] < 0}
    return [*_emptied(change, lost), *_disturbed(change, lost)]


def _emptied(change: Mapping[str, Any], lost: Mapping[str, float]) -> list[str]:
    """What it costs to take away what a chain holds."""
    names = [name for name in _EMPTYING if name in change]
    needed = sorted((name for name in names if name in lost), key=lambda name: lost[name])
    spared = [name for name in names if name not in lost]
    if needed and not spared:
        span = " to ".join(dict.fromkeys(bare_percent(lost[name], 1) for name in (needed[0], needed[-1])))
        return [f"The chain is used: without its content, accuracy falls by {span} points."]
    chance = _maybe_chance(change, spared)
    if needed:
        most = f"{'up to ' if len(needed) > 1 else ''}{bare_percent(lost[needed[-1]], 1)} points"
        rest = f"{joined(spared)} cost nothing detectable"
        if chance:
            rest = f"what {joined(spared)} cost ({chance}) may be chance"
        return [f"The chain is used in part: {joined(needed)} cost {most}, while {rest}{_whose(change, lost)}."]
    none = "No evidence that the chain is used: without its content, accuracy does not change detectably."
    if chance:
        none = f"No evidence that the chain is used: what it costs to take away its content ({chance}) may be chance."
    return [none] if spared else []


def _maybe_chance(change: Mapping[str, Any], spared: Sequence[str]) -> str:
    """The largest loss in the mean that no test confirms, in words; nothing if it is less than a point."""
    most = max((-change[name]["mean"] for name in spared), default=0.0)
    many = "up to " if len(spared) > 1 else ""
    return f"{many}{bare_percent(most, 1)} points" if most >= _NOTABLE else ""


def _whose(change: Mapping[str, Any], lost: Mapping[str, float]) -> str:
    """Whether another problem's chain does as well, where no test finds a loss from it."""
    if "swap" not in change or "swap" in lost:
        return ""
    if -change["swap"]["low"] < max(lost[name] for name in _EMPTYING if name in lost) / 2:
        return ", so it need not be this problem’s chain"
    return ", so it is open whether it must be this problem’s chain"


def _disturbed(change: Mapping[str, Any], lost: Mapping[str, float]) -> list[str]:
    """What it costs to disturb a chain, or the text after it."""
    subjects = {"shuffle": "its order", "truncate": "its second half"}
    used = [f"{subject} ({points(-lost[name])} points)" for name, subject in subjects.items() if name in lost]
    unused = [
        f"{subject} ({points(change[name]['mean'])} points, which may be chance)"
        if -change[name]["mean"] >= _NOTABLE
        else subject
        for name, subject in subjects.items()
        if name in change and name not in lost
    ]
    sentences = [
        f"{text[:1].upper()}{text[1:]} {verb if len(some) > 1 else one_verb}."
        for some, one_verb, verb in (
            (used, "matters", "matter"),
            (unused, "makes no detectable difference", "make no detectable difference"),
        )
        if some and (text := joined(some))
    ]
    if "forced answer" in lost:
        sentences.append(
            f"Answering right after the chain costs {bare_percent(lost['forced answer'], 1)} points: "
            "part of the work is done in the text after it."
        )
    elif "forced answer" in change:
        sentences.append("Answering right after the chain costs nothing detectable.")
    return sentences
