"""Which step of a route goes wrong, and would it if the steps before it were right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unspoken.draw.charts import Axis, Frame, Line, line_chart, rates
from unspoken.draw.section import Figure, Key, Panel, Section
from unspoken.evaluation.results import Results, averaged, step_names
from unspoken.evaluation.significance import seed_means
from unspoken.probes.probe import Probe, System, Task, View
from unspoken.probes.tree_latents import reasons_in_trees, tree_latents

if TYPE_CHECKING:
    from torch import Tensor


Accuracy = dict[str, list[float]]


class StepsProbe(Probe):
    """Accuracy of the nearest name of every latent, in rollout and teacher-forced."""

    key = "steps"

    def applies(self, system: System, task: Task) -> bool:
        return reasons_in_trees(system, task)

    def measure(self, view: View) -> dict[str, Accuracy]:
        """Of each kind of latents the accuracy of every ``step`` and of everything ``up_to`` it."""
        latents = tree_latents(view)
        right = latents.task.answers(latents.problems)
        return {kind: _accuracy(latents.targets.nearest_row(values), right) for kind, values in latents.kinds.items()}

    def over_seeds(self, seeds: Sequence[dict[str, Accuracy]]) -> dict[str, Any]:
        return {kind: seed_means([seed[kind] for seed in seeds]) for kind in seeds[0]}

    def draw(self, summary: Any, results: Results) -> Section | None:
        caption = (
            "Nearest name of every latent, Talker left out. Look for a gap between the two: under teacher forcing each "
            "step reads the true names before it, in rollout it reads the model’s own latents, which training never "
            "showed it. The vertical axis may not start at zero."
        )
        return Section(self.key, "Accuracy by step", [Figure(_panels(summary), caption)])


def _accuracy(tokens: Tensor, answers: Tensor) -> Accuracy:
    right = tokens[:, : answers.shape[1]] == answers
    return {"step": right.double().mean(dim=0).tolist(), "up_to": right.cumprod(dim=1).double().mean(dim=0).tolist()}


def _panels(summary: Mapping[str, Any]) -> list[Panel]:
    """Two panels a system, of many systems one."""
    topics = {"step": "Each step on its own", "up_to": "Every step up to here"}
    if len(summary) > 2:
        del topics["step"]
    lowest = min(value for entry in summary.values() for kind in entry.values() for value in averaged(kind["up_to"]))
    panels = []
    for system, entry in summary.items():
        for topic, name in topics.items():
            title = name if len(summary) == 1 else system if len(summary) > 2 else f"{system}: {name}"
            values = {kind: averaged(entry[kind][topic]) for kind in ("forced", "rollout")}
            panels.append(_panel(title, values, lowest))
    return panels


def _panel(title: str, values: Mapping[str, Sequence[float]], lowest: float) -> Panel:
    names = [*step_names(len(values["rollout"]) - 1), "end"]
    ticks = tuple((float(index), name.removeprefix("level ")) for index, name in enumerate(names))
    x = Axis(low=-0.3, high=len(names) - 0.7, ticks=ticks)
    lines = [
        Line(
            points=list(enumerate(values["forced"])), classes="c2", marker="ring", hint="teacher-forced", name="forced"
        ),
        Line(points=list(enumerate(values["rollout"])), classes="c1", marker="dot", hint="rollout", name="rollout"),
    ]
    legend = (Key("c1 dotted", "rollout"), Key("c2 ringed", "teacher-forced"))
    frame = Frame(x=x, y=rates(lowest), bottom=24, height=190).labelled(lines)
    return Panel(title=title, legend=legend, drawing=line_chart(frame, lines, label=f"Accuracy, {title}"))
