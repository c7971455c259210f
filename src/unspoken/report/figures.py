"""The figures of the page: each takes results and gives panels, or none where the data is absent.

A panel is a title, a legend and one drawing. Colours have one meaning on the whole page: blue is the Reasoner and the
right name, orange the baseline and the other name, green the Talker and what is measured over all nodes. Of a run on
word problems every system has a colour of its own, the baseline orange again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from unspoken.report.charts import (
    Axis,
    Frame,
    Level,
    Line,
    Point,
    line_chart,
    linear,
    logarithmic,
    number,
    shares,
    training_steps,
)
from unspoken.report.findings import Results, averaged, baseline, inside, reasoners, step_names
from unspoken.report.formats import coefficient, percent

STAGE_COLOURS = {"sst": "c1", "talker": "c3", "stage1": "c4", "stage2": "c1"}
SERIES = ("c1", "c2", "c3", "c4", "c5", "c6")
BASELINE_COLOUR = "c2"
KINDS = {"forced": "teacher-forced", "rollout": "rollout"}


def system_colours(results: Results) -> dict[str, str]:
    """The colour of every system of a run on word problems, latent reasoners first; where colours run out, lines dash."""
    others = dict.fromkeys([*reasoners(results), *results["systems"]])
    others.pop(baseline(results), None)
    free = [colour for colour in SERIES if colour != BASELINE_COLOUR]
    free += [f"{colour} dashed" for colour in free]
    found = {name: free[index % len(free)] for index, name in enumerate(others)}
    return {name: found.get(name, BASELINE_COLOUR) for name in results["systems"]}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing with its title and what its marks mean."""

    title: str
    drawing: str
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def html(self) -> str:
        """Title, note, legend and drawing."""
        note = f" <span>{escape(self.note)}</span>" if self.note else ""
        keys = "".join(f'<span class="key {classes}">{escape(name)}</span>' for classes, name in self.legend)
        legend = f'<div class="legend">{keys}</div>' if keys else ""
        title = f"<h4>{escape(self.title)}{note}</h4>" if self.title else ""
        return f'<div class="panel">{title}{legend}{self.drawing}</div>'


# --- accuracy by step --------------------------------------------------------------------------------------------


def step_panels(results: Results) -> list[Panel]:
    """Accuracy of each step, on its own and of everything up to it, in rollout and under teacher forcing."""
    panels = []
    measured = inside(results)
    topics = {"step": "Each step on its own", "up_to": "Every step up to here"}
    if len(measured) > 2:
        del topics["step"]
    lowest = min(
        (value for entry in measured.values() for kind in entry["steps"].values() for value in averaged(kind["up_to"])),
        default=0.0,
    )
    for system, entry in measured.items():
        for topic, name in topics.items():
            values = {kind: averaged(entry["steps"][kind][topic]) for kind in ("forced", "rollout")}
            names = [*step_names(len(values["rollout"]) - 1), "end"]
            ticks = tuple((float(index), label.removeprefix("level ")) for index, label in enumerate(names))
            x = Axis(low=-0.3, high=len(names) - 0.7, ticks=ticks)
            lines = [
                Line(points=list(enumerate(values["forced"])), classes="c4", marker="ring", hint="teacher-forced"),
                Line(points=list(enumerate(values["rollout"])), classes="c1", marker="dot", hint="rollout"),
            ]
            legend = (("c1 dotted", "rollout"), ("c4 ringed", "teacher-forced"))
            frame = Frame(x=x, y=shares(lowest), bottom=24, height=190)
            title = name if len(measured) == 1 else system if len(measured) > 2 else f"{system}: {name}"
            panels.append(
                Panel(title=title, legend=legend, drawing=line_chart(frame, lines, label=f"Accuracy, {title}"))
            )
    return panels


# --- curves ------------------------------------------------------------------------------------------------------


def stage_kinds(results: Results) -> dict[str, Mapping[str, Any]]:
    """The recipe's objective of every stage."""
    return {stage["name"]: stage.get("objective", {}) for stage in results.get("recipe", {}).get("stages", ())}


def _objective(objective: Mapping[str, Any]) -> str:
    kind = objective.get("kind", "")
    if kind == "sst":
        return f"SST loss, k = {objective.get('k', 0):g}"
    if kind == "next_token":
        if objective.get("chain") == "none":
            return "next token, no chain"
        return f"next token, {objective.get('positions', 'all')} positions"
    if kind == "stage1":
        return f"stage 1, {objective.get('train', '')}"
    return {"talker": "cross-entropy of the words", "stage2": "stage 2"}.get(kind, str(kind))


def _curves(results: Results, stage: str) -> list[tuple[int, Mapping[str, Any]]]:
    return [
        (entry["seed"], entry["stages"][stage]) for entry in results.get("training", ()) if stage in entry["stages"]
    ]


def training_panels(results: Results) -> list[list[Panel]]:
    """For every stage its loss and its exact match on validation problems, a thin line a seed."""
    groups = []
    entries = results.get("training") or ()
    for stage in entries[0]["stages"] if entries else ():
        curves = _curves(results, stage)
        objective = stage_kinds(results).get(stage, {})
        colour = STAGE_COLOURS.get(objective.get("kind", ""), "c2" if objective.get("positions") == "answer" else "c0")
        x = training_steps(step for _, curve in curves for step in (*curve["steps"], *curve["loss_steps"]))
        losses = [value for _, curve in curves for value in curve["loss"]]
        group = []
        if losses:
            wide = max(losses) > 20 * max(min(losses), 1e-5)
            y = logarithmic(losses, power, most=5) if wide else linear([0.0, *losses], wanted=4)
            lines = [
                Line(points=_points(curve["loss_steps"], curve["loss"]), classes=f"{colour} thin", hint=f"seed {seed}")
                for seed, curve in curves
            ]
            frame = Frame(x=replace(x, title=""), y=y, width=243, height=140, bottom=22, left=42)
            axis = "loss, logarithmic" if wide else "loss"
            drawing = line_chart(frame, lines, label=f"Loss of stage {stage}")
            group.append(
                Panel(title=stage, note=_objective(objective), legend=((f"{colour} plain", axis),), drawing=drawing)
            )
        if any("exact_match" in curve for _, curve in curves):
            group.append(_validation(stage, curves, colour, x))
        groups.append(group)
    return groups


def power(value: float) -> str:
    """A tick of a logarithmic axis, as a power of ten where the number would be long."""
    if 0.001 <= value < 10000:
        return f"{value:g}"
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return f"10{str(round(math.log10(value))).translate(digits)}"


def _points(steps: Sequence[float], values: Sequence[float]) -> list[Point]:
    return list(zip(steps, values, strict=False))


def _validation(stage: str, curves: list[tuple[int, Mapping[str, Any]]], colour: str, x: Axis) -> Panel:
    frame = Frame(x=x, y=shares(), width=243, height=140, bottom=34, left=42)
    lines, chosen = [], []
    for seed, curve in curves:
        points = _points(curve["steps"], curve.get("exact_match", ()))
        lines.append(Line(points=points, classes=f"{colour} thin", hint=f"seed {seed}"))
        for step, value in points:
            if step == curve.get("selected_step"):
                place = frame.at(step, value)
                chosen.append(f'<circle class="dot {colour}" cx="{number(place[0])}" cy="{number(place[1])}" r="3.5"/>')
    drawing = line_chart(frame, lines, label=f"Exact match during stage {stage}", extra=chosen)
    return Panel(title="", legend=((f"{colour} dotted", "exact match"),), drawing=drawing)


# --- how mixing changes while SST runs ---------------------------------------------------------------------------


def _seed_lines(curves: list[tuple[int, Mapping[str, Any]]], key: str, classes: str, name: str) -> list[Line]:
    """A thin line a seed and their mean, or one plain line for one seed."""
    known = [(seed, curve["steps"], curve[key]) for seed, curve in curves if key in curve]
    if len(known) == 1:
        return [Line(points=_points(known[0][1], known[0][2]), classes=classes, hint=name)]
    lines = [
        Line(points=_points(at, v), classes=f"{classes} faint", hint=f"{name}, seed {seed}") for seed, at, v in known
    ]
    if known and all(at == known[0][1] for _, at, _ in known):
        means = [sum(values) / len(known) for values in zip(*(v for _, _, v in known), strict=True)]
        lines.append(Line(points=_points(known[0][1], means), classes=classes, hint=f"{name}, mean of seeds"))
    return lines


def _values(lines: Sequence[Line]) -> list[float]:
    return [value for line in lines for _, value in line.points]


def sst_stages(results: Results) -> list[str]:
    """Stages whose curve holds readings of the mixture."""
    entries = results.get("training") or ()
    return [name for name, curve in (entries[0]["stages"] if entries else {}).items() if "forced_rank" in curve]


def mixing_panels(results: Results) -> dict[str, list[Panel]]:
    """Rank of the sibling plane, larger coefficient and coefficients along SST, teacher-forced and in rollout."""
    stages = sst_stages(results)
    found = {}
    for kind in KINDS if stages else ():
        if not any(f"{kind}_rank" in curve for stage in stages for _, curve in _curves(results, stage)):
            continue
        found[kind] = _one_stage(results, stages[0], kind) if len(stages) == 1 else _sweep(results, stages, kind)
    return found


def _levels(results: Results) -> tuple[Level, ...]:
    reference = results.get("reference") or {}
    names = {"no_sibling": "no sibling in it", "true_mixture": "the two siblings alone"}
    return tuple(
        Level(value=reference[key], name=f"{name}, {percent(reference[key])}")
        for key, name in names.items()
        if key in reference
    )


def _rank_chart(results: Results, lines: list[Line], x: Axis, label: str) -> str:
    levels = _levels(results)
    low = min([*_values(lines), *(level.value for level in levels)])
    # Room below the lowest level, so that a line on it does not lie on the frame.
    y = logarithmic([low * 0.75, *_values(lines)], lambda share: f"{100 * share:g} %")
    return line_chart(Frame(x=x, y=y, levels=levels), lines, label=label)


def _one_stage(results: Results, stage: str, kind: str) -> list[Panel]:
    curves = _curves(results, stage)
    x = training_steps(step for _, curve in curves for step in curve["steps"])
    nodes = {"rank": ("c3", "all nodes"), "rank_inner": ("c1", "inner nodes")}
    ranks = [line for key, (c, name) in nodes.items() for line in _seed_lines(curves, f"{kind}_{key}", c, name)]
    wins = [
        line
        for key, (c, name) in (("major", nodes["rank"]), ("major_inner", nodes["rank_inner"]))
        for line in _seed_lines(curves, f"{kind}_{key}", c, name)
    ]
    right = _seed_lines(curves, f"{kind}_right_inner", "c1", "right child")
    other = _seed_lines(curves, f"{kind}_other_inner", "c2", "other child")
    legend = (("c3 plain", "all nodes"), ("c1 plain", "inner nodes"))
    return [
        Panel(
            title="Rank of the sibling plane",
            legend=legend,
            drawing=_rank_chart(results, ranks, x, f"Rank of the sibling plane along {stage}, {kind}"),
        ),
        Panel(title="Right child has the larger part", legend=legend, drawing=_wins_chart(wins, x, stage)),
        Panel(
            title="Coefficients at inner nodes",
            legend=(("c1 plain", "right child"), ("c2 plain", "other child")),
            drawing=_plain_chart([*right, *other], x, f"Coefficients along {stage}, {kind}"),
        ),
    ]


def _wins_chart(lines: list[Line], x: Axis, stage: str) -> str:
    y = shares(min([0.48, *_values(lines)]))
    frame = Frame(x=x, y=y, levels=(Level(value=0.5, name="chance"),))
    return line_chart(frame, lines, label=f"How often the right child has the larger coefficient along {stage}")


def _plain_chart(lines: list[Line], x: Axis, label: str) -> str:
    # A hair below zero is not worth an axis that goes below zero.
    values = [0.0 if -0.03 < value < 0 else value for value in _values(lines)]
    y = linear([0.0, 1.0, *values], coefficient_tick, wanted=5)
    return line_chart(Frame(x=x, y=y), lines, label=label)


def coefficient_tick(value: float) -> str:
    """A tick of an axis of coefficients."""
    return coefficient(value, 1)


def _sweep(results: Results, stages: list[str], kind: str) -> list[Panel]:
    """The same readings with one colour a stage; all at inner nodes."""
    every = {stage: _curves(results, stage) for stage in stages}
    x = training_steps(step for curves in every.values() for _, curve in curves for step in curve["steps"])
    # Every second line is dashed, so that two that coincide are both seen.
    colours = {stage: SERIES[i % len(SERIES)] + (" dashed" if i % 2 else "") for i, stage in enumerate(stages)}
    lines = {
        key: [line for s in stages for line in _seed_lines(every[s], f"{kind}_{key}", colours[s], s)]
        for key in ("rank_inner", "major_inner", "other_inner")
    }
    legend = tuple((f"{colours[stage]} plain", stage) for stage in stages)
    return [
        Panel(
            title="Rank of the sibling plane",
            legend=legend,
            drawing=_rank_chart(results, lines["rank_inner"], x, f"Rank of the sibling plane, {kind}"),
        ),
        Panel(
            title="Right child has the larger part",
            legend=legend,
            drawing=_wins_chart(lines["major_inner"], x, "SST"),
        ),
        Panel(
            title="Coefficient of the other child",
            legend=legend,
            drawing=_plain_chart(lines["other_inner"], x, f"Coefficient of the other child, {kind}"),
        ),
    ]


# --- calibration -------------------------------------------------------------------------------------------------


def calibration_panel(entry: Mapping[str, Any], title: str) -> Panel | None:
    """Share of a child in the mixture against its true probability, with the 10 to 90 % range of readings."""
    points = entry.get("points") or entry.get("forced", {}).get("points")
    if not points:
        return None
    ticks = tuple((value, f"{100 * value:g} %") for value in (0, 0.25, 0.5, 0.75, 1))
    x = Axis(low=-0.04, high=1.04, ticks=ticks, title="True probability of the child")
    y = Axis(low=-0.04, high=1.04, ticks=ticks)
    frame = Frame(x=x, y=y, width=380, height=340, left=48, top=14, bottom=38)
    start, end = frame.at(0, 0), frame.at(1, 1)
    most = max(point["count"] for point in points)
    marks = [
        f'<line class="level" x1="{number(start[0])}" y1="{number(start[1])}" x2="{number(end[0])}" y2="{number(end[1])}"/>'
    ]
    for point in points:
        px, py = frame.at(point["truth"], point["mean"])
        low, high = frame.at(point["truth"], point["low"])[1], frame.at(point["truth"], point["high"])[1]
        radius = 3 + 4 * math.sqrt(point["count"] / most)
        hint = f"true {percent(point['truth'], 1)}: mean {percent(point['mean'], 1)} of {point['count']:,.0f} readings"
        marks.append(
            f'<g><title>{hint}</title><line class="range c1" x1="{number(px)}" x2="{number(px)}" y1="{number(low)}" '
            f'y2="{number(high)}"/><circle class="dot c1" cx="{number(px)}" cy="{number(py)}" r="{number(radius)}"/></g>'
        )
    legend = (("c1 dotted", "mean share in the mixture; bar: 10 to 90 %"), ("level", "calibrated"))
    drawing = line_chart(frame, [], label="Share in the mixture against true probability", extra=marks)
    return Panel(title=title, legend=legend, drawing=drawing)
