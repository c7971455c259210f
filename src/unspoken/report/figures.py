"""The figures of the page: each takes results and gives panels, or none where the data is absent.

A panel is a title, a legend and one drawing. Colours have one meaning on the whole page: blue is the Reasoner and the
right name, orange the baseline and the other name, green the Talker and what is measured over all nodes. Of a run on
word problems every system has a colour of its own, the baseline orange again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unspoken.draw.charts import (
    Axis,
    Frame,
    Line,
    Point,
    circle,
    line_chart,
    linear,
    logarithmic,
    rates,
    training_steps,
)
from unspoken.draw.section import Key, Panel
from unspoken.evaluation.results import stage_curves
from unspoken.report.findings import Results, baseline, reasoners

STAGE_COLOURS = {"sst": "c1", "talker": "c3", "stage1": "c4", "stage2": "c1"}
SERIES = ("c1", "c2", "c3", "c4", "c5", "c6")
BASELINE_COLOUR = "c2"


def system_colours(results: Results) -> dict[str, str]:
    """The colour of every system of a run on word problems, latent reasoners first; where colours run out, lines dash."""
    others = dict.fromkeys([*reasoners(results), *results["systems"]])
    others.pop(baseline(results), None)
    free = [colour for colour in SERIES if colour != BASELINE_COLOUR]
    free += [f"{colour} dashed" for colour in free]
    colours = {name: free[index % len(free)] for index, name in enumerate(others)}
    return {name: colours.get(name, BASELINE_COLOUR) for name in results["systems"]}


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


def training_panels(results: Results) -> list[list[Panel]]:
    """For every stage its loss and its exact match on validation problems, a thin line a seed."""
    groups = []
    entries = results.get("training") or ()
    for stage in entries[0]["stages"] if entries else ():
        curves = stage_curves(results, stage)
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
