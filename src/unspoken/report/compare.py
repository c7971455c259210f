"""Systems of one run or of several side by side: accuracy against cost, and paired tests where problems are the same.

Test sets are never mixed: systems are compared only where they answered the same problems, which results tell by a
fingerprint (`unspoken.evaluation.outcomes`). Results that are older than fingerprints are told apart by task, test set
and number of problems; of them nobody knows which problems were answered rightly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np

from unspoken.evaluation.outcomes import compared, unpacked
from unspoken.evaluation.significance import Difference, Outcomes, paired_difference
from unspoken.report.charts import Axis, Frame, Mark, Point, linear, logarithmic, nice_ticks, scatter
from unspoken.report.figures import SERIES, Panel, system_colours
from unspoken.report.findings import Results, baseline, differs, label, words
from unspoken.report.formats import (
    NO_VALUE,
    count,
    joined,
    milliseconds,
    p_value,
    percent,
    percent_range,
    points,
    quantity,
    steps,
)
from unspoken.report.markup import Cell, figure, heads, paragraph, prose, table, text_cell

# Key of a cost, its short name, the title of its axis, and what makes a readable number of it.
COSTS = (
    ("sequential_passes", "passes", "forward passes in sequence", 1.0),
    ("flops", "FLOPs", "floating-point operations", 1.0),
    ("seconds", "time", "milliseconds, in a batch", 1000.0),
)
_DECADE = 10.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One system of one run on one test set.

    Attributes:
        run: its title, told from others of the same name.
        colour: class out of the style sheet.
        explicit: it says its chain of thought in tokens, so others may be compared with it.
        rate: accuracy with its interval.
        cost: means a problem, by the keys of `COSTS` and ``latent_steps``; empty where nothing was counted.
        right: outcomes ``[P]`` by seed; None in results that do not keep them.
    """

    run: str
    system: str
    colour: str
    explicit: bool
    rate: Mapping[str, Any]
    cost: Mapping[str, float]
    right: Mapping[int, Outcomes] | None


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """Problems, and every system that answered them.

    Attributes:
        name: for a heading.
        fingerprint: of the problems; empty in older results.
        described: task, test set and number of problems, which tell older results apart.
    """

    name: str
    fingerprint: str
    described: str
    entries: tuple[Entry, ...]

    @property
    def runs(self) -> list[str]:
        """The runs that systems come from."""
        return list(dict.fromkeys(entry.run for entry in self.entries))

    def same_as(self, other: ProblemSet) -> bool:
        """Whether the problems are the same, as far as results tell."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint == other.fingerprint
        return self.described == other.described


# --- what is compared --------------------------------------------------------------------------------------------


def _explicit(results: Results) -> set[str]:
    """Systems that say a chain of thought in tokens."""
    stages = results.get("recipe", {}).get("stages", ())
    found = {
        str(stage["name"])
        for stage in stages
        if stage.get("objective", {}).get("kind") == "next_token" and stage["objective"].get("chain") != "none"
    }
    return (found | {baseline(results) or ""}) & set(results["systems"])


def _sets(results: Results, run: str, colours: Mapping[str, str], place: int) -> Iterator[ProblemSet]:
    """The test sets of one run; of results without outcomes the first alone, whose cost is known."""
    tests, task = words(results).get("tests", {}), results.get("recipe", {}).get("task")
    kept: Mapping[str, Any] = results.get("outcomes") or {next(iter(tests), "test"): {}}
    for test, found in kept.items():
        problems = found.get("problems", results["problems"])
        rates = tests.get(test) or results["systems"]
        costs = found.get("cost")
        if costs is None:
            costs = {name: compared(entry["cost"]) for name, entry in results["systems"].items() if "cost" in entry}
        kind = str((task or {}).get("kind", "")).replace("_", " ")
        about = ", ".join(part for part in (kind, "" if test == "test" else test) if part)
        entries = tuple(
            Entry(
                run=run,
                system=label(results, name),
                colour=colours[name],
                explicit=name in _explicit(results),
                rate=rates[name]["exact_match"],
                cost=costs.get(name, {}),
                right={
                    seed: unpacked(text, problems)
                    for seed, text in zip(results["seeds"], found["right"][name], strict=True)
                }
                if "right" in found
                else None,
            )
            for name in results["systems"]
            if name in rates
        )
        yield ProblemSet(
            name=f"{about or run}: {count(problems, 'test problem')}",
            fingerprint=found.get("fingerprint", ""),
            # Results that do not even name their task are like no others.
            described=json.dumps([task or place, test, problems], sort_keys=True),
            entries=entries,
        )


def problem_sets(every: Sequence[Results]) -> list[ProblemSet]:
    """All systems of all runs, by the problems that they answered; sets that most runs share come first."""
    names = [f"{results.get('name', 'run')} {results.get('size', '')}".strip() for results in every]
    found: list[ProblemSet] = []
    for place, results in enumerate(every):
        again = names.count(names[place]) > 1
        run = f"{names[place]} (run {place + 1})" if again else names[place]
        if len(every) == 1:
            colours = system_colours(results)
        else:
            colours = dict.fromkeys(results["systems"], SERIES[place % len(SERIES)])
        for new in _sets(results, run, colours, place):
            same = next((index for index, known in enumerate(found) if known.same_as(new)), None)
            if same is None:
                found.append(new)
            else:
                found[same] = replace(found[same], entries=found[same].entries + new.entries)
    return sorted(found, key=lambda one: -len(one.runs))


def frontier(places: Sequence[Point]) -> list[int]:
    """Which of some (cost, accuracy) points no other one beats, cheapest first.

    A point is beaten by one that is at least as good in both and better in one; equals stand side by side.
    """

    def beaten(cost: float, accuracy: float) -> bool:
        return any(c <= cost and a >= accuracy and (c < cost or a > accuracy) for c, a in places)

    return sorted((i for i, place in enumerate(places) if not beaten(*place)), key=lambda i: places[i])


def holm(values: Sequence[float]) -> list[float]:
    """p-values of a family of tests, corrected by Holm's step-down method (1979), in the given order."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def reference(entries: Sequence[Entry]) -> Entry | None:
    """What the others are compared with: the most accurate explicit system, or the most accurate of all."""
    known = [entry for entry in entries if entry.right is not None]
    return max(
        [entry for entry in known if entry.explicit] or known, key=lambda entry: entry.rate["mean"], default=None
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A system against the reference, on the seeds that both have."""

    entry: Entry
    seeds: int
    difference: Difference
    holm: float


def comparisons(entries: Sequence[Entry], against: Entry) -> list[Comparison]:
    """Paired tests, problem by problem and seed by seed; systems without a common seed are left out."""
    found: list[tuple[Entry, int, Difference]] = []
    for entry in entries:
        if entry is against or entry.right is None or against.right is None:
            continue
        seeds = [seed for seed in entry.right if seed in against.right]
        if seeds:
            first, second = (np.stack([one.right[seed] for seed in seeds]) for one in (entry, against))  # type: ignore[index]
            found.append((entry, len(seeds), paired_difference(first, second)))
    corrected = holm([difference.p for _, _, difference in found])
    return [
        Comparison(entry=entry, seeds=seeds, difference=difference, holm=p)
        for (entry, seeds, difference), p in zip(found, corrected, strict=True)
    ]


# --- the picture -------------------------------------------------------------------------------------------------


def _tick(value: float) -> str:
    """A quantity without the zeros at its end: ``50 M``."""
    number, unit, letter = quantity(value).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}{unit}{letter}"


def _axis(values: Sequence[float], name: str) -> Axis:
    wide = max(values) > _DECADE * min(values) > 0
    made = logarithmic(values, _tick, most=5) if wide else linear([0.0, *values], _tick, wanted=4)
    return replace(made, title=f"{name}, logarithmic" if wide else name)


def _panels(entries: Sequence[Entry], numbers: Sequence[int]) -> list[Panel]:
    """Accuracy against each cost that all entries know."""
    panels = []
    marks_y = nice_ticks(min(entry.rate["low"] for entry in entries), max(entry.rate["high"] for entry in entries))
    ticks = tuple((mark, f"{100 * mark:.4g} %") for mark in marks_y if mark <= 1)
    y = Axis(low=ticks[0][0], high=ticks[-1][0], ticks=ticks)
    for key, name, told, factor in COSTS:
        if not all(entry.cost.get(key) for entry in entries):
            continue
        places = [(factor * entry.cost[key], entry.rate["mean"]) for entry in entries]
        best = frontier(places)
        x = _axis([cost for cost, _ in places], told)
        marks = [
            Mark(
                x=cost,
                y=accuracy,
                low=entry.rate["low"],
                high=entry.rate["high"],
                number=number,
                colour=entry.colour.split()[0],
                filled=place in best,
                hint=f"{number} {entry.system}, {entry.run}: {percent(accuracy)} at {_tick(cost)} ({told})",
            )
            for place, (number, entry, (cost, accuracy)) in enumerate(zip(numbers, entries, places, strict=True))
        ]
        frame = Frame(x=x, y=y, width=332, height=250, top=16, right=12)
        drawing = scatter(frame, marks, _stair([places[i] for i in best], x), label=f"Accuracy against {told}")
        panels.append(Panel(title=f"Accuracy against {name}", drawing=drawing))
    return panels


def _stair(best: Sequence[Point], x: Axis) -> list[Point]:
    """Corners of the frontier: what accuracy can be had for a cost, up to the end of the axis."""
    corners: list[Point] = []
    for cost, accuracy in best:
        corners += [(cost, corners[-1][1])] if corners else []
        corners.append((cost, accuracy))
    return [*corners, (x.high, corners[-1][1])]


def _drawing(entries: Sequence[Entry], numbers: Sequence[int], keys: Sequence[tuple[str, str]], caption: str) -> str:
    panels = _panels(entries, numbers)
    if not panels:
        return ""
    marks = (("c0 dotted", "on the frontier"), ("c0 open", "not on it"))
    legend = "".join(f'<span class="key {classes}">{name}</span>' for classes, name in (*keys, *marks))
    return f'<p class="legend example-key">{legend}</p>{figure(panels, caption)}'


_CAPTION = (
    "Accuracy with its 95 % interval; cheaper is further left. The line is the frontier: nothing here is both cheaper and "
    "more accurate than a filled point. It goes through means; where intervals overlap, it may be chance who is on it. "
    "The vertical axis may not start at zero. "
)


def cost_figure(results: Results) -> str:
    """The picture of one run on word problems: its systems on the first test set; empty where there are not two."""
    entries = [entry for entry in problem_sets([results])[0].entries if entry.cost]
    if not words(results) or len(entries) < 2:
        return ""
    numbers = range(1, len(entries) + 1)
    keys = [
        (f"{e.colour.split()[0]} dotted", f"<b>{n}</b>{escape(e.system)}")
        for n, e in zip(numbers, entries, strict=True)
    ]
    drawing = _drawing(entries, numbers, keys, _CAPTION.strip())
    return f'<h4 class="run-in">Accuracy against cost</h4>{drawing}' if drawing else ""


# --- the page of several runs ------------------------------------------------------------------------------------


def comparison(every: Sequence[Results]) -> str:
    """Everything that several runs say together, a part for each set of problems that two systems share."""
    sets = problem_sets(every)
    aged = [entry.run for one in sets for entry in one.entries if entry.right is None]
    caption = (
        f"{_CAPTION}Numbers are those of the table. FLOPs are those of prompt, chain and words, answered alone"
        f"{'; older results counted a padded batch' if aged else ''}. Time is that of the machine on which a run was "
        "measured."
    )
    shared = [one for one in sets if len(one.entries) > 1]
    parts = "".join(_part(one, caption if one is shared[0] else "") for one in shared)  # once is enough
    told = paragraph(_apart(sets)) if _apart(sets) else ""
    if aged:
        names = joined(list(dict.fromkeys(aged)))
        told += paragraph(
            f"Results of {names} do not keep which problems were answered rightly, so nothing is tested against them; "
            "‘unspoken eval RUN’ writes them again."
        )
    return f'<section id="compare"><h3>Accuracy against cost</h3>{told}{parts}</section>' if parts or told else ""


def _apart(sets: Sequence[ProblemSet]) -> str:
    """Which runs share no problems with any other."""
    runs = list(dict.fromkeys(run for one in sets for run in one.runs))
    together = {run for one in sets if len(one.runs) > 1 for run in one.runs}
    alone = [run for run in runs if run not in together]
    if not alone or len(runs) < 2:
        return ""
    if not together:
        return "No two of these runs were measured on the same problems, so none is compared with another."
    were, is_are = ("was", "is") if len(alone) == 1 else ("were", "are")
    return f"{joined(alone)} {were} measured on problems that no other run here has, and {is_are} shown apart."


def _part(one: ProblemSet, caption: str) -> str:
    numbers = range(1, len(one.entries) + 1)
    shown = [(number, entry) for number, entry in zip(numbers, one.entries, strict=True) if entry.cost]
    keys = {entry.run: (f"{entry.colour} dotted", escape(entry.run)) for entry in one.entries}
    drawing = ""
    if len(shown) > 1:
        drawing = _drawing([entry for _, entry in shown], [number for number, _ in shown], list(keys.values()), caption)
    runs = f" <span>{prose(joined(one.runs))}</span>"
    return f'<h4 class="run-in">{prose(one.name)}{runs}</h4>{drawing}{_table(one)}'


def _table(one: ProblemSet) -> str:
    """Every system in numbers: the costs by which it is on a frontier, and the paired test against one of them."""
    known = [entry for entry in one.entries if entry.cost]
    best = {
        name: [known[i] for i in frontier([(entry.cost[key], entry.rate["mean"]) for entry in known])]
        for key, name, _, _ in COSTS
        if known and all(entry.cost.get(key) for entry in known)
    }
    against = reference(one.entries)
    tested = {} if against is None else {id(found.entry): found for found in comparisons(one.entries, against)}
    rows = []
    for number, entry in enumerate(one.entries, start=1):
        on = [name for name, winners in best.items() if any(entry is winner for winner in winners)]
        rate, spent = entry.rate, entry.cost
        row = [
            text_cell(f"{number} · {entry.system}", small=entry.run),
            Cell(text=str(len(rate["seeds"])), classes="num wide"),
            Cell(text=percent(rate["mean"]), small=percent_range(rate["low"], rate["high"]), classes="num strong"),
            Cell(text=steps(spent["latent_steps"]) if spent else NO_VALUE, classes="num wide"),
            Cell(text=steps(spent["sequential_passes"]) if spent else NO_VALUE),
            Cell(text=quantity(spent["flops"]) if spent else NO_VALUE),
            Cell(text=milliseconds(spent["seconds"]) if spent else NO_VALUE),
            text_cell("all three" if len(on) == len(COSTS) else ", ".join(on) or NO_VALUE, classes="on"),
        ]
        rows.append(row + (_tested(tested.get(id(entry))) if tested else []))
    head = heads("System|run", "~Seeds", "Accuracy|95 % interval", "~Latent steps", "Passes", "FLOPs", "Time|ms")
    head.append(text_cell("On the frontier", small="by cost", classes="on"))
    if against is None or not tested:
        return table(head, rows, classes="compared")
    name = f"{one.entries.index(against) + 1} · {against.system}"
    head += heads("", f"Against {name}|points", "p|after Holm")[1:]
    kind = "that says its chain of thought" if against.explicit else "of all"
    some = {found.seeds for found in tested.values()} != {len(against.right or ())}
    caption = (
        f"{name} of {against.run} is the most accurate system {kind}. Differences are paired, problem by problem"
        f"{', on the seeds that both have' if some else ''}; interval and p-value come from a bootstrap over seeds and "
        f"problems, and p is corrected after Holm for {count(len(tested), 'test')}. Grey where the data cannot tell the "
        "difference from zero."
    )
    return table(head, rows, caption=caption, classes="compared")


def _tested(found: Comparison | None) -> list[Cell]:
    if found is None:
        return [Cell(text=NO_VALUE, classes="num muted"), Cell(text="", classes="num")]
    change = found.difference
    sure = found.holm < 0.05 and differs({"p": change.p, "low": change.low, "high": change.high})
    muted = "num" if sure else "num muted"
    return [
        Cell(text=points(change.mean), small=f"{points(change.low)} to {points(change.high)}", classes=muted),
        Cell(text=p_value(found.holm).removeprefix("p = ").removeprefix("p "), classes=muted),
    ]
