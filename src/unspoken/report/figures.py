"""The figures of the page: each takes results and gives panels, or none where the data is absent.

A panel is a title, a legend and one drawing. Colours have one meaning on the whole page: blue is the Reasoner and the
right name, orange the baseline and the other name, green the Talker and what is measured over all nodes. Of a run on
word problems every system has a colour of its own, the baseline orange again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from unspoken.draw.charts import (
    Axis,
    Frame,
    Level,
    Line,
    Point,
    circle,
    element,
    line_chart,
    linear,
    logarithmic,
    rates,
    span,
    training_steps,
)
from unspoken.draw.formats import ONE_DECIMAL, percent
from unspoken.draw.section import Key, Panel
from unspoken.report.findings import Results, averaged, baseline, inside, reasoners, step_names

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
    colours = {name: free[index % len(free)] for index, name in enumerate(others)}
    return {name: colours.get(name, BASELINE_COLOUR) for name in results["systems"]}


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
            legend = (Key("c1 dotted", "rollout"), Key("c4 ringed", "teacher-forced"))
            frame = Frame(x=x, y=rates(lowest), bottom=24, height=190)
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
            y = logarithmic(losses, power, most=5) if wide else linear([0.0, *losses], count=4)
            lines = [
                Line(points=_points(curve["loss_steps"], curve["loss"]), classes=f"{colour} thin", hint=f"seed {seed}")
                for seed, curve in curves
            ]
            frame = Frame(x=replace(x, title=""), y=y, width=243, height=140, bottom=22, left=42)
            axis = "loss, logarithmic" if wide else "loss"
            drawing = line_chart(frame, lines, label=f"Loss of stage {stage}")
            group.append(
                Panel(
                    title=stage, remark=_objective(objective), legend=(Key(f"{colour} plain", axis),), drawing=drawing
                )
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
    frame = Frame(x=x, y=rates(), width=243, height=140, bottom=34, left=42)
    lines, chosen = [], []
    for seed, curve in curves:
        points = _points(curve["steps"], curve.get("exact_match", ()))
        lines.append(Line(points=points, classes=f"{colour} thin", hint=f"seed {seed}"))
        for step, value in points:
            if step == curve.get("selected_step"):
                chosen.append(circle(frame.at(step, value), f"dot {colour}", 3.5))
    drawing = line_chart(frame, lines, label=f"Exact match during stage {stage}", extra=chosen)
    return Panel(title="", legend=(Key(f"{colour} dotted", "exact match"),), drawing=drawing)


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


def sst_stages(results: Results) -> list[str]:
    """Stages whose curve holds readings of the mixture."""
    entries = results.get("training") or ()
    return [name for name, curve in (entries[0]["stages"] if entries else {}).items() if "forced_rank" in curve]


def mixing_panels(results: Results) -> dict[str, list[Panel]]:
    """Rank of the sibling plane, larger coefficient and coefficients along SST, teacher-forced and in rollout."""
    stages = sst_stages(results)
    curves = [curve for stage in stages for _, curve in _curves(results, stage)]
    kinds = [kind for kind in KINDS if any(f"{kind}_rank" in curve for curve in curves)]
    x = training_steps(step for curve in curves for step in curve["steps"])
    return {kind: [_mixing_panel(results, kind, x, *chart) for chart in _mixing_charts(stages)] for kind in kinds}


Series = list[tuple[str, str, str, str]]  # stage, reading, classes and name


def _mixing_charts(stages: list[str]) -> list[tuple[str, Series, Callable[[Results, list[float]], Frame]]]:
    """Readings of all nodes and of inner ones; of several stages with one colour a stage, all of inner nodes."""
    if len(stages) == 1:
        nodes, stage = (("", "c3", "all nodes"), ("_inner", "c1", "inner nodes")), stages[0]
        rank, larger = (
            [(stage, key + part, classes, name) for part, classes, name in nodes] for key in ("rank", "major")
        )
        parts = [(stage, "right_inner", "c1", "right child"), (stage, "other_inner", "c2", "other child")]
        last = "Coefficients at inner nodes"
    else:
        # Every second line is dashed, so that two that coincide are both seen.
        marks = [(stage, SERIES[i % len(SERIES)] + (" dashed" if i % 2 else "")) for i, stage in enumerate(stages)]
        rank, larger, parts = (
            [(stage, f"{key}_inner", colour, stage) for stage, colour in marks] for key in ("rank", "major", "other")
        )
        last = "Coefficient of the other child"
    return [
        ("Rank of the sibling plane", rank, _rank_frame),
        ("Right child has the larger part", larger, _larger_frame),
        (last, parts, _coefficient_frame),
    ]


def _mixing_panel(
    results: Results, kind: str, x: Axis, title: str, series: Series, frame: Callable[[Results, list[float]], Frame]
) -> Panel:
    lines = [
        line
        for stage, key, classes, name in series
        for line in _seed_lines(_curves(results, stage), f"{kind}_{key}", classes, name)
    ]
    values = [value for line in lines for _, value in line.points]
    drawing = line_chart(replace(frame(results, values), x=x), lines, label=f"{title} along SST, {kind}")
    return Panel(title=title, legend=[Key(f"{mark} plain", name) for *_, mark, name in series], drawing=drawing)


def _rank_frame(results: Results, values: list[float]) -> Frame:
    reference = results.get("reference") or {}
    names = {"no_sibling": "no sibling in it", "true_mixture": "the two siblings alone"}
    levels = tuple(
        Level(value=reference[key], name=f"{name}, {percent(reference[key])}")
        for key, name in names.items()
        if key in reference
    )
    # Free pixels below the lowest level, so that a line on it does not lie on the frame.
    low = 0.75 * min([*values, *(level.value for level in levels)])
    y = logarithmic([low, *values], lambda rate: f"{100 * rate:g} %")
    return Frame(x=y, y=y, levels=levels)


def _larger_frame(_: Results, values: list[float]) -> Frame:
    y = rates(min([0.48, *values]))
    return Frame(x=y, y=y, levels=(Level(value=0.5, name="chance"),))


def _coefficient_frame(_: Results, values: list[float]) -> Frame:
    # A hair below zero is not worth an axis that goes below zero.
    y = linear([0.0, 1.0, *(0.0 if -0.03 < value < 0 else value for value in values)], ONE_DECIMAL)
    return Frame(x=y, y=y)


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
    (x1, y1), (x2, y2) = frame.at(0, 0), frame.at(1, 1)
    most = max(point["count"] for point in points)
    marks = [element("line", class_="level", x1=x1, y1=y1, x2=x2, y2=y2)]
    for point in points:
        low, middle, high = (frame.at(point["truth"], point[key]) for key in ("low", "mean", "high"))
        hint = f"true {percent(point['truth'], 1)}: mean {percent(point['mean'], 1)} of {point['count']:,.0f} readings"
        dot = circle(middle, "dot c1", 3 + 4 * math.sqrt(point["count"] / most))
        marks.append(element("g", element("title", hint), span(low, high, "c1"), dot))
    legend = (Key("c1 dotted", "mean share in the mixture; bar: 10 to 90 %"), Key("level", "calibrated"))
    drawing = line_chart(frame, [], label="Share in the mixture against true probability", extra=marks)
    return Panel(title=title, legend=legend, drawing=drawing)
