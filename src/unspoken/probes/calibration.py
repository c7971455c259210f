"""Do mixture coefficients match odds that are known? The readings are those of `unspoken.analysis.calibration`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from unspoken.draw.charts import Axis, Frame, circle, element, line_chart, span
from unspoken.draw.formats import PERCENT_1, TWO_DECIMALS, Format, bare_percent, percent
from unspoken.draw.section import Block, Figure, Key, Panel, Section
from unspoken.draw.table import Cell, Column, Table, number, text
from unspoken.evaluation.results import Results, averaged, step_names
from unspoken.evaluation.significance import seed_means
from unspoken.probes.probe import Probe, System, Task, View
from unspoken.probes.tree_latents import reasons_in_trees, tree_latents


class CalibrationProbe(Probe):
    """Coefficients beside the odds, teacher-forced and in rollout."""

    key = "calibration"

    def applies(self, system: System, task: Task) -> bool:
        return reasons_in_trees(system, task) and task.config.targets != 1

    def measure(self, view: View) -> dict[str, Any]:
        """Both readings, and the rate of answers that lead from the root to a possible target leaf."""
        from unspoken.analysis.calibration import forced_calibration, rollout_calibration, valid_routes

        latents = tree_latents(view)
        task, problems, below = latents.task, latents.problems, slice(1, latents.task.config.depth)
        table = latents.targets.target_table
        return {
            "forced": forced_calibration(latents.forced[:, below], table, task, problems),
            "rollout": rollout_calibration(latents.rollout[:, below], table, task, problems),
            "valid_routes": float(valid_routes(view.graded.tokens, task, problems).double().mean()),
        }

    def over_seeds(self, seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Means over seeds; the points of the figure belong to the same true values in every seed."""
        errors = ("error", "error_steps", "uniform_error")
        points = [seed["forced"]["points"] for seed in seeds]
        return {
            "forced": seed_means([{key: seed["forced"][key] for key in errors} for seed in seeds]),
            "rollout": seed_means([seed["rollout"] for seed in seeds]),
            **seed_means([{"valid_routes": seed["valid_routes"]} for seed in seeds]),
            "points": [
                {key: float(np.mean([point[key] for point in same])) for key in same[0]}
                for same in zip(*points, strict=True)
            ],
        }

    def draw(self, summary: Any, results: Results) -> Section | None:
        blocks: list[Block] = []
        for name, entry in summary.items():
            error, uniform = (bare_percent(averaged(entry["forced"][key]), 1) for key in ("error", "uniform_error"))
            caption = (
                "The prompt names several leaves, or none, so the odds of each child are known. Teacher-forced "
                "latents, fraction of a child within its sibling pair. On the diagonal the fraction equals the "
                "true probability; on the horizontal middle line it is independent of it. Mean error "
                f"{error} points; always predicting one half: {uniform} points."
            )
            title = f"{name}: coefficients against known odds, off by {error} points teacher-forced (always one half: {uniform})"
            blocks.append(Figure([_panel(entry["points"], name if len(summary) > 1 else "")], caption, "beside"))
            blocks.append(_rollout_table(entry["rollout"], title))
        return Section(self.key, "Do coefficients match known odds?", blocks)


def _panel(points: Sequence[Mapping[str, float]], title: str) -> Panel:
    """Fraction of a child in the mixture against its true probability, with the 10 to 90 % range of readings."""
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
    legend = (Key("c1 dotted", "mean fraction in the mixture; bar: 10 to 90 %"), Key("level", "calibrated"))
    drawing = line_chart(frame, [], label="Fraction in the mixture against true probability", extra=marks)
    return Panel(title=title, legend=legend, drawing=drawing)


def _rollout_table(entry: Mapping[str, Any], title: str) -> Table:
    rollout = {key: averaged(value) for key, value in entry.items()}

    def read(step: int, key: str, write: Format, classes: str = "") -> Cell:
        return number(rollout[key][step], write, classes=classes)

    names = step_names(len(rollout["distance"]) + 1)[1:]
    columns = [Column("Rollout", lambda step: text(names[step]))]
    for group, write, key, reference, head, short in (
        ("Distance from the odds", PERCENT_1, "distance", "uniform_distance", "even odds", "of uniform"),
        ("Entropy, nats", TWO_DECIMALS, "entropy", "true_entropy", "true", "true"),
        ("Largest fraction", PERCENT_1, "largest", "true_largest", "true", "true"),
    ):
        beside = partial(read, key=reference, write=write, classes="muted")
        columns.append(Column("latent", partial(read, key=key, write=write), key, group))
        columns.append(Column(head, beside, short, group))
    outside = partial(read, key="outside", write=PERCENT_1)
    columns.append(Column("latent", outside, "outside level", "Outside the level"))
    note = (
        "In rollout no token fixes a node, so a latent should carry the odds of the whole level. Compare each "
        "number with the grey one beside it: entropy below the true one means that the chain commits itself without "
        "evidence, much outside the level means that it leaves the level. Distance is total variation."
    )
    return Table.of(range(len(names)), columns, title=title, note=note)
