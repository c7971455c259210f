"""How mixtures of siblings change while SST runs: curves of what validation read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from unspoken.draw.charts import Axis, Frame, Level, Line, line_chart, linear, logarithmic, rates, training_steps
from unspoken.draw.formats import ONE_DECIMAL, percent
from unspoken.draw.section import Block, Figure, Heading, Panel
from unspoken.evaluation.results import Results, is_ambiguous, stage_curves
from unspoken.probes.colours import SERIES
from unspoken.probes.tree_latents import KINDS

Reference = Mapping[str, float]
Readings = list[tuple[str, str, str, str]]  # stage, reading, classes and name
MakeFrame = Callable[[Reference, list[float]], Frame]

_ALONG = (
    "Validation problems while SST runs. A model that does not separate the siblings yet mixes them evenly: rank at "
    "the lower dashed line, equal coefficients, the right child larger by chance. Learning the search pulls the "
    "coefficients apart, and the rank rises towards the upper line as the sibling fades."
)
_ALONG_OPEN = (
    "Validation problems while SST runs. The prompt leaves open where the route leads, so a latent should stay a "
    "mixture wherever both children may be meant: rank near the lower dashed line, both coefficients above zero."
)
_AGAIN = (
    "The same readings on the model’s own chains. Where these are worse than the ones above, mixtures do not survive "
    "being fed back."
)


def mixing_blocks(results: Results, reference: Reference) -> list[Block]:
    """Rank, larger coefficient and coefficients along SST, teacher-forced and in rollout; ``reference`` ranks."""
    stages = _stages(results)
    curves = [curve for stage in stages for _, curve in stage_curves(results, stage)]
    kinds = [kind for kind in KINDS if any(f"{kind}_rank" in curve for curve in curves)]
    x = training_steps(step for curve in curves for step in curve["steps"])
    along = _ALONG_OPEN if is_ambiguous(results) else _ALONG
    along += " Inner nodes only, one colour per stage." if len(stages) > 1 else ""
    blocks: list[Block] = []
    for caption, kind in zip((along, _AGAIN), kinds, strict=False):
        panels = [_panel(results, kind, x, reference, *chart) for chart in _charts(stages)]
        blocks += [Heading(f"Along SST, {KINDS[kind]}"), Figure(panels, caption)]
    return blocks


def _stages(results: Results) -> list[str]:
    """Stages whose curve holds readings of the mixture."""
    entries = results.get("training") or ()
    return [name for name, curve in (entries[0]["stages"] if entries else {}).items() if "forced_rank" in curve]


def _charts(stages: list[str]) -> list[tuple[str, Readings, MakeFrame]]:
    """Readings of all nodes and of inner ones; of several stages with one colour per stage, all of inner nodes."""
    if len(stages) == 1:
        nodes, stage = (("", "c3", "all nodes"), ("_inner", "c1", "inner nodes")), stages[0]
        rank, larger = (
            [(stage, key + suffix, classes, name) for suffix, classes, name in nodes] for key in ("rank", "major")
        )
        coefficients = [(stage, "right_inner", "c1", "right child"), (stage, "other_inner", "c2", "other child")]
        last = "Coefficients at inner nodes"
    else:
        # Every second line is dashed, so that two that coincide are both seen.
        marks = [(stage, SERIES[i % len(SERIES)] + (" dashed" if i % 2 else "")) for i, stage in enumerate(stages)]
        rank, larger, coefficients = (
            [(stage, f"{key}_inner", colour, stage) for stage, colour in marks] for key in ("rank", "major", "other")
        )
        last = "Coefficient of the other child"
    return [
        ("Rank of the sibling plane", rank, _rank_frame),
        ("Right child has the larger coefficient", larger, _larger_frame),
        (last, coefficients, _coefficient_frame),
    ]


def _panel(
    results: Results, kind: str, x: Axis, reference: Reference, title: str, readings: Readings, frame: MakeFrame
) -> Panel:
    lines = [
        line
        for stage, key, classes, name in readings
        for line in _seed_lines(stage_curves(results, stage), f"{kind}_{key}", classes, name)
    ]
    values = [value for line in lines for _, value in line.points]
    made = replace(frame(reference, values), x=x).labelled(lines)
    return Panel(title=title, drawing=line_chart(made, lines, label=f"{title} along SST, {kind}"))


def _seed_lines(curves: list[tuple[int, Mapping[str, Any]]], key: str, classes: str, name: str) -> list[Line]:
    """A thin line per seed and their mean, or one plain line for one seed."""
    known = [(seed, curve["steps"], curve[key]) for seed, curve in curves if key in curve]

    def line(steps: list[int], values: list[float], faint: str, hint: str, name: str = "") -> Line:
        return Line(points=[*zip(steps, values, strict=True)], classes=f"{classes}{faint}", hint=hint, name=name)

    if len(known) == 1:
        return [line(*known[0][1:], "", name, name)]
    lines = [line(steps, values, " faint", f"{name}, seed {seed}") for seed, steps, values in known]
    if known and all(steps == known[0][1] for _, steps, _ in known):
        means = [sum(values) / len(known) for values in zip(*(values for *_, values in known), strict=True)]
        lines.append(line(known[0][1], means, "", f"{name}, mean of seeds", name))
    elif lines:  # seeds that were read at different steps have no mean; one of them carries the name
        lines[-1] = replace(lines[-1], name=name)
    return lines


def _rank_frame(reference: Reference, values: list[float]) -> Frame:
    names = {"no_sibling": "no sibling in it", "true_mixture": "the two siblings alone"}
    levels = tuple(
        Level(value=reference[key], name=f"{name}, {percent(reference[key])}")
        for key, name in names.items()
        if key in reference
    )
    # Free pixels below the lowest level, so that a line on it does not lie on the frame.
    shown = [*values, *(level.value for level in levels)]
    y = logarithmic([0.75 * min(shown), *shown], lambda rate: f"{100 * rate:g} %")
    return Frame(x=y, y=y, levels=levels)


def _larger_frame(_: Reference, values: list[float]) -> Frame:
    y = rates(min([0.48, *values]))
    return Frame(x=y, y=y, levels=(Level(value=0.5, name="chance"),))


def _coefficient_frame(_: Reference, values: list[float]) -> Frame:
    # A hair below zero is not worth an axis that goes below zero.
    y = linear([0.0, 1.0, *(value for value in values if not -0.03 < value < 0)], ONE_DECIMAL)
    return Frame(x=y, y=y)
