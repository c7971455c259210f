"""How a run was trained: loss and exact match along every stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unspoken.draw.charts import Axis, Frame, Line, circle, line_chart, linear, logarithmic, rates, training_steps
from unspoken.draw.formats import duration, joined
from unspoken.draw.section import Figure, Key, Panel, Section
from unspoken.draw.table import Cell, Column, Table, text
from unspoken.evaluation.results import Results, stage_curves

_COLOUR = "c1"


def training_section(results: Results) -> Section | None:
    """Loss and exact match of every stage."""
    groups = training_panels(results)
    if not groups:
        return None
    curves = [curve for entry in results["training"] for curve in entry["stages"].values()]
    if any("exact_match" in curve for curve in curves):
        measured = "Exact match is measured on validation problems, in free generation; the dot is the checkpoint that was kept."
    else:
        measured = "Checkpoints are selected on validation rows."
    sentences = ["One thin line per seed.", measured, "Losses of different objectives cannot be compared."]
    # Where answers were free, a validation reading counts their latents.
    stages = results["training"][0]["stages"]
    given = [name for name, curve in stages.items() if "exact_match" in curve and "latents" not in curve]
    if any("latents" in curve for curve in stages.values()) and given:
        sentences.append(
            f"In {joined(given)} answers are decoded from latents of the gold chain, which reveal the answer; use this exact "
            "match only to select checkpoints."
        )
    caption = " ".join(sentences)
    return Section("training", "Training", [Figure(groups, caption, strip=True), _stages_table(results)])


def _stages_table(results: Results) -> Table:
    recipe = {stage["name"]: stage for stage in results.get("recipe", {}).get("stages", ())}
    backbone = results.get("recipe", {}).get("backbone")
    scratch = backbone if isinstance(backbone, str) else "random weights"

    def curves(name: str) -> list[Mapping[str, Any]]:
        return [curve for _, curve in stage_curves(results, name)]

    def time(name: str) -> Cell:
        times = [entry["seconds"] for entry in curves(name) if entry.get("seconds")]
        return Cell(duration(sum(times) / len(times)) if times else None)

    columns = [
        Column("Stage", text),
        Column("Starts from", lambda name: text(recipe.get(name, {}).get("start") or scratch), classes=""),
        Column("Steps", lambda name: text(f"{max(curves(name)[0]['steps'], default=0):,}")),
        Column("Step kept", lambda name: text(", ".join(f"{entry['selected_step']:,}" for entry in curves(name)))),
        Column("Time|per seed", time),
    ]
    return Table.of(results["training"][0]["stages"], columns, classes="narrow", terminal="absent")


def _described(objective: Mapping[str, Any]) -> str:
    """What a stage trains: its kind, and the settings that are words, with their names."""
    words = [value if key == "kind" else f"{key} {value}" for key, value in objective.items() if isinstance(value, str)]
    return ", ".join(words).replace("_", " ")


def training_panels(results: Results) -> list[list[Panel]]:
    """For every stage its loss and its exact match on validation problems, a thin line per seed."""
    groups = []
    entries = results.get("training") or ()
    objectives = {stage["name"]: stage.get("objective", {}) for stage in results.get("recipe", {}).get("stages", ())}
    for stage in entries[0]["stages"] if entries else ():
        curves = stage_curves(results, stage)
        x = training_steps(step for _, curve in curves for step in (*curve["steps"], *curve["loss_steps"]))
        losses = [value for _, curve in curves for value in curve["loss"]]
        group = []
        if losses:
            wide = max(losses) > 20 * max(min(losses), 1e-5)
            y = logarithmic(losses, power, most=5) if wide else linear([0.0, *losses], count=4)
            lines = [_thin(seed, curve["loss_steps"], curve["loss"]) for seed, curve in curves]
            frame = Frame(x=replace(x, title=""), y=y, width=243, height=140, bottom=22, left=42)
            axis = "loss, logarithmic" if wide else "loss"
            drawing = line_chart(frame, lines, label=f"Loss of stage {stage}")
            legend, remark = (Key(f"{_COLOUR} plain", axis),), _described(objectives.get(stage, {}))
            group.append(Panel(title=stage, remark=remark, legend=legend, drawing=drawing))
        if any("exact_match" in curve for _, curve in curves):
            group.append(_validation(stage, curves, x))
        groups.append(group)
    return groups


def power(value: float) -> str:
    """A tick of a logarithmic axis, as a power of ten where the number would be long."""
    if 0.001 <= value < 10000:
        return f"{value:g}"
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return f"10{str(round(math.log10(value))).translate(digits)}"


def _thin(seed: int, steps: Sequence[float], values: Sequence[float]) -> Line:
    """The line of one seed."""
    return Line(points=list(zip(steps, values, strict=False)), classes=f"{_COLOUR} thin", hint=f"seed {seed}")


def _validation(stage: str, curves: list[tuple[int, Mapping[str, Any]]], x: Axis) -> Panel:
    frame = Frame(x=x, y=rates(), width=243, height=140, bottom=34, left=42)
    lines, chosen = [], []
    for seed, curve in curves:
        lines.append(_thin(seed, curve["steps"], curve.get("exact_match", ())))
        kept = [point for point in lines[-1].points if point[0] == curve.get("selected_step")]
        chosen += [circle(frame.at(*point), f"dot {_COLOUR}", 3.5) for point in kept]
    drawing = line_chart(frame, lines, label=f"Exact match during stage {stage}", extra=chosen)
    return Panel(title="", legend=(Key(f"{_COLOUR} dotted", "exact match"),), drawing=drawing)
