"""Systems of one run or of several side by side: accuracy against cost, and paired tests where problems are the same.

Test sets are never mixed: systems are compared only where they answered the same problems, by the fingerprint in their
results (`unspoken.evaluation.outcomes`). Results that are older than fingerprints are identified by task, test set and
number of problems; they do not keep which problems were answered rightly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from unspoken.draw.charts import Axis, Frame, Mark, Point, linear, logarithmic, nice_ticks, scatter
from unspoken.draw.formats import (
    MILLISECONDS,
    P_VALUE,
    POINTS,
    QUANTITY,
    STEPS,
    Format,
    count,
    joined,
    percent,
    quantity,
)
from unspoken.draw.section import Block, Figure, Heading, Key, Legend, Panel, Paragraph, Section
from unspoken.draw.table import BLANK, Cell, Column, Table, estimate, number, text
from unspoken.evaluation.outcomes import compared, unpacked
from unspoken.evaluation.results import Results, differs, explicit, label
from unspoken.evaluation.significance import Difference, Outcomes, paired_difference
from unspoken.probes.colours import SERIES, system_colours


class Cost(NamedTuple):
    """A cost that systems are compared by."""

    key: str  # in an entry's costs
    name: str
    axis: str  # title
    factor: float  # makes a readable number of it
    # Costs whose ratio is nearer to 1 are the same one. Time is that of one run of a few problems: systems that do the
    # same work, as one Reasoner with two read-outs, were up to 9 % apart.
    resolution: float


COSTS = (
    Cost("sequential_passes", "passes", "forward passes in sequence", 1.0, 0.001),
    Cost("flops", "FLOPs", "floating-point operations", 1.0, 0.001),
    Cost("seconds", "time", "milliseconds, in a batch", 1000.0, 0.1),
)
_DECADE = 10.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One system of one run on one test set."""

    run: str  # its title, with a number where several have the same name
    system: str
    colour: str  # class out of the style sheet
    explicit: bool  # its chain of thought is made of tokens, so others may be compared with it
    rate: Mapping[str, Any]  # accuracy with its interval
    # Means per problem, by the keys of `COSTS` and ``latent_steps``; empty where nothing was counted.
    cost: Mapping[str, float]
    right: Mapping[int, Outcomes] | None  # outcomes ``[P]`` by seed; None in results that do not keep them


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """Problems, and every system that answered them."""

    name: str  # for a heading
    fingerprint: str  # of the problems; empty in older results
    described: str  # task, test set and number of problems, which tell older results apart
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


def _sets(results: Results, run: str, colours: Mapping[str, str], position: int) -> Iterator[ProblemSet]:
    """The test sets of one run; of results without outcomes the first alone, whose cost is known."""
    tests, task = results["tests"], results.get("recipe", {}).get("task")
    kept: Mapping[str, Any] = results.get("outcomes") or {next(iter(tests), "test"): {}}
    for test, outcomes in kept.items():
        problems = outcomes.get("problems", results["problems"])
        rates = tests.get(test) or results["systems"]
        costs = outcomes.get("cost")
        if costs is None:
            costs = {name: compared(entry["cost"]) for name, entry in results["systems"].items() if entry.get("cost")}
        kind = str((task or {}).get("kind", "")).replace("_", " ")
        about = ", ".join(part for part in (kind, "" if test == "test" else test) if part)
        entries = tuple(
            Entry(
                run=run,
                system=label(name),
                colour=colours[name],
                explicit=explicit(results, name),
                rate=rates[name]["exact_match"],
                cost=costs.get(name, {}),
                right={
                    seed: unpacked(text, problems)
                    for seed, text in zip(results["seeds"], outcomes["right"][name], strict=True)
                }
                if "right" in outcomes
                else None,
            )
            for name in results["systems"]
            if name in rates
        )
        yield ProblemSet(
            name=f"{about or run}: {count(problems, 'test problem')}",
            fingerprint=outcomes.get("fingerprint", ""),
            # Results that do not even name their task are like no others.
            described=json.dumps([task or position, test, problems], sort_keys=True),
            entries=entries,
        )


def problem_sets(every: Sequence[Results]) -> list[ProblemSet]:
    """All systems of all runs, by the problems that they answered; sets that most runs share come first."""
    names = [f"{results.get('name', 'run')} {results.get('size', '')}".strip() for results in every]
    sets: list[ProblemSet] = []
    for position, results in enumerate(every):
        again = names.count(names[position]) > 1
        run = f"{names[position]} (run {position + 1})" if again else names[position]
        if len(every) == 1:
            colours = system_colours(results)
        else:
            colours = dict.fromkeys(results["systems"], SERIES[position % len(SERIES)])
        for new in _sets(results, run, colours, position):
            same = next((index for index, known in enumerate(sets) if known.same_as(new)), None)
            if same is None:
                sets.append(new)
            else:
                sets[same] = replace(sets[same], entries=sets[same].entries + new.entries)
    return sorted(sets, key=lambda one: -len(one.runs))


def frontier(places: Sequence[Point], resolution: float) -> list[int]:
    """Which of some (cost, accuracy) points no other one beats, cheapest first.

    A point is beaten by one that is more accurate and costs no more, or that is as accurate and costs less; equals stand
    side by side. Costs are the same where they differ by less than the fraction ``resolution``.
    """

    def beaten(cost: float, accuracy: float) -> bool:
        return any(
            (a > accuracy and c <= cost * (1 + resolution)) or (a == accuracy and c * (1 + resolution) < cost)
            for c, a in places
        )

    return sorted((i for i, place in enumerate(places) if not beaten(*place)), key=lambda i: places[i])


def holm(values: Sequence[float]) -> list[float]:
    """p-values of a family of tests, corrected by Holm's step-down method (1979), in the given order."""
    corrected, largest = [*values], 0.0
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
    tested: list[tuple[Entry, int, Difference]] = []
    for entry in entries:
        if entry is against or entry.right is None or against.right is None:
            continue
        seeds = [seed for seed in entry.right if seed in against.right]
        if seeds:
            first, second = (np.stack([one.right[seed] for seed in seeds]) for one in (entry, against))  # type: ignore[index]
            tested.append((entry, len(seeds), paired_difference(first, second)))
    corrected = holm([difference.p for _, _, difference in tested])
    return [
        Comparison(entry=entry, seeds=seeds, difference=difference, holm=p)
        for (entry, seeds, difference), p in zip(tested, corrected, strict=True)
    ]


# --- the picture -------------------------------------------------------------------------------------------------


def _tick(value: float) -> str:
    """A quantity without the zeros at its end: ``50 M``."""
    number, unit, letter = quantity(value).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}{unit}{letter}"


def _axis(values: Sequence[float], name: str) -> Axis:
    wide = max(values) > _DECADE * min(values) > 0
    made = logarithmic(values, _tick, most=5) if wide else linear([0.0, *values], _tick, count=4)
    return replace(made, title=f"{name}, logarithmic" if wide else name)


def panels(entries: Sequence[Entry], numbers: Sequence[int], costs: Sequence[Cost] = COSTS) -> list[Panel]:
    """Accuracy against each of some costs that all entries know."""
    drawn = []
    marks_y = nice_ticks(min(entry.rate["low"] for entry in entries), max(entry.rate["high"] for entry in entries))
    ticks = tuple((mark, f"{100 * mark:.4g} %") for mark in marks_y)
    y = Axis(low=ticks[0][0], high=ticks[-1][0], ticks=ticks)
    for key, name, axis, factor, resolution in costs:
        if not all(entry.cost.get(key) for entry in entries):
            continue
        places = [(factor * entry.cost[key], entry.rate["mean"]) for entry in entries]
        best = frontier(places, resolution)
        x = _axis([cost for cost, _ in places], axis)
        marks = [
            Mark(
                x=cost,
                y=accuracy,
                low=entry.rate["low"],
                high=entry.rate["high"],
                number=number,
                colour=entry.colour.split()[0],
                filled=place in best,
                hint=f"{number} {entry.system}, {entry.run}: {percent(accuracy)} at {_tick(cost)} ({axis})",
            )
            for place, (number, entry, (cost, accuracy)) in enumerate(zip(numbers, entries, places, strict=True))
        ]
        frame = Frame(x=x, y=y, width=332, height=250, top=16, right=12)
        drawing = scatter(frame, marks, _stair([places[i] for i in best], x), label=f"Accuracy against {axis}")
        drawn.append(Panel(title=f"Accuracy against {name}", drawing=drawing))
    return drawn


def _stair(best: Sequence[Point], x: Axis) -> list[Point]:
    """Corners of the frontier: what accuracy can be had for a cost, up to the end of the axis."""
    corners: list[Point] = []
    for cost, accuracy in best:
        corners += [(cost, corners[-1][1])] if corners else []
        corners.append((cost, accuracy))
    return [*corners, (x.high, corners[-1][1])]


def _drawing(entries: Sequence[Entry], numbers: Sequence[int], keys: Sequence[Key], caption: str) -> list[Block]:
    drawn = panels(entries, numbers)
    legend = [*keys, Key("c0 dotted", "on the frontier"), Key("c0 open", "not on it")]
    return [Legend(legend), Figure(drawn, caption)] if drawn else []


_CAPTION = (
    "Accuracy with its 95 % interval; cheaper is further left. The line is the frontier: nothing here is more accurate "
    "than a filled point for the same cost, or as accurate for less. Costs that differ by less than 0.1 %, times by less "
    "than 10 %, count as the same. The line goes through means; where intervals overlap, a system’s place on the frontier may be due to chance. The vertical axis "
    "may not start at zero."
)


def cost_blocks(results: Results) -> list[Block]:
    """The picture of one run: its systems on the first test set; empty where there are not three."""
    entries = [entry for entry in problem_sets([results])[0].entries if entry.cost]
    if len(entries) < 3:
        return []
    numbers = range(1, len(entries) + 1)
    keys = [
        Key(f"{entry.colour.split()[0]} dotted", entry.system, str(number))
        for number, entry in zip(numbers, entries, strict=True)
    ]
    drawing = _drawing(entries, numbers, keys, _CAPTION)
    return [Heading("Accuracy against cost"), *drawing] if drawing else []


# --- the page of several runs ------------------------------------------------------------------------------------


def comparison(every: Sequence[Results]) -> Section | None:
    """Everything that several runs show together, a part for each set of problems that two systems were measured on."""
    sets = problem_sets(every)
    aged = [entry.run for one in sets for entry in one.entries if entry.right is None]
    caption = (
        f"{_CAPTION} Numbers are those of the table. FLOPs are those of prompt, chain and answer, answered alone"
        f"{'; older results counted a padded batch' if aged else ''}. Time is that of the machine on which a run was "
        "measured."
    )
    blocks: list[Block] = [Paragraph(apart)] if (apart := _apart(sets)) else []
    if aged:
        names = joined(list(dict.fromkeys(aged)))
        blocks.append(
            Paragraph(
                f"Results of {names} do not keep which problems were answered rightly, so nothing is tested against them; "
                "‘unspoken eval RUN’ writes them again."
            )
        )
    several = [one for one in sets if len(one.entries) > 1]
    for one in several:
        blocks += _blocks(one, caption if one is several[0] else "")  # once is enough
    return Section("compare", "Accuracy against cost", blocks) if blocks else None


def _apart(sets: Sequence[ProblemSet]) -> str:
    """Which runs have no problems in common with any other."""
    runs = list(dict.fromkeys(run for one in sets for run in one.runs))
    together = {run for one in sets if len(one.runs) > 1 for run in one.runs}
    alone = [run for run in runs if run not in together]
    if not alone or len(runs) < 2:
        return ""
    if not together:
        return "No two of these runs were measured on the same problems, so none is compared with another."
    were, is_are = ("was", "is") if len(alone) == 1 else ("were", "are")
    return f"{joined(alone)} {were} measured on problems that no other run here has, and {is_are} shown apart."


def _blocks(one: ProblemSet, caption: str) -> list[Block]:
    numbers = range(1, len(one.entries) + 1)
    shown = [(number, entry) for number, entry in zip(numbers, one.entries, strict=True) if entry.cost]
    keys = {entry.run: Key(f"{entry.colour} dotted", entry.run) for entry in one.entries}
    drawing: list[Block] = []
    if len(shown) > 1:
        drawing = _drawing([entry for _, entry in shown], [number for number, _ in shown], list(keys.values()), caption)
    return [Heading(one.name, joined(one.runs)), *drawing, _table(one)]


def _cost(head: str, key: str, write: Format, classes: str = "num") -> Column:
    return Column(head, lambda row: number(row[1].cost[key], write) if row[1].cost else Cell(), classes=classes)


def _table(one: ProblemSet) -> Table:
    """Every system in numbers: the costs by which it is on a frontier, and the paired test against one of them."""
    known = [entry for entry in one.entries if entry.cost]
    best = {
        cost.name: [
            known[i] for i in frontier([(entry.cost[cost.key], entry.rate["mean"]) for entry in known], cost.resolution)
        ]
        for cost in COSTS
        if all(entry.cost.get(cost.key) for entry in known)
    }

    def on_frontier(row: tuple[int, Entry]) -> Cell:
        names = [name for name, winners in best.items() if any(row[1] is winner for winner in winners)]
        return Cell("all three" if len(names) == len(COSTS) else ", ".join(names) or None)

    columns = [
        Column("System|run", lambda row: text(f"{row[0]} · {row[1].system}", row[1].run)),
        Column("Seeds", lambda row: text(str(len(row[1].rate["seeds"]))), classes="num wide"),
        Column("Accuracy|95 % interval", lambda row: estimate(row[1].rate, classes="strong")),
        _cost("Latent steps", "latent_steps", STEPS, "num wide"),
        _cost("Passes", "sequential_passes", STEPS),
        _cost("FLOPs", "flops", QUANTITY),
        _cost("Time|ms", "seconds", MILLISECONDS),
        Column("On the frontier|by cost", on_frontier, classes="on"),
    ]
    tests, note = _tests(one)
    rows = list(enumerate(one.entries, start=1))
    return Table.of(rows, [*columns, *tests], note=note, classes="compared", terminal="absent")


def _tests(one: ProblemSet) -> tuple[list[Column], str]:
    """Columns of the paired tests against the reference, and what they are; nothing where there is none to test."""
    against = reference(one.entries)
    tested = {} if against is None else {id(test.entry): test for test in comparisons(one.entries, against)}
    if against is None or not tested:
        return [], ""
    name = f"{one.entries.index(against) + 1} · {against.system}"
    kind = "with an explicit chain of thought" if against.explicit else "of all"
    some = {test.seeds for test in tested.values()} != {len(against.rate["seeds"])}

    def difference(row: tuple[int, Entry]) -> Cell:
        test = tested.get(id(row[1]))
        entry = None if test is None else {key: getattr(test.difference, key) for key in ("mean", "low", "high")}
        return estimate(entry, POINTS, classes=_faint(test))

    def p(row: tuple[int, Entry]) -> Cell:
        test = tested.get(id(row[1]))
        return BLANK if test is None else number(test.holm, P_VALUE, classes=_faint(test))

    note = (
        f"{name} of {against.run} is the most accurate system {kind}. Differences are paired, problem by problem"
        f"{', on the seeds that both have' if some else ''}; interval and p-value are those of a t-test over seeds and "
        f"problems, and p is corrected after Holm for {count(len(tested), 'test')}. Grey where the difference is not "
        "significant at the 5 % level."
    )
    return [Column(f"Against {name}|points", difference), Column("p|after Holm", p)], note


def _faint(test: Comparison | None) -> str:
    if test is None or test.holm >= 0.05:
        return "muted"
    change = test.difference
    return "" if differs({"p": change.p, "low": change.low, "high": change.high}) else "muted"
