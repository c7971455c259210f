"""Wrong tokens in the prompt: who is right more often, and who loses less (JEPA-Reasoner, section 6.2)?

The first half of an answer is given after prompts of which a rate of the symbols is wrong, the same for all systems.

The summary holds ``half``, the symbols that are given; ``systems`` and ``comparison``, see
`unspoken.evaluation.degradation`; and ``valid``: system -> for each rate, how many answers go on from the clean prompt
in some string of the grammar.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from unspoken.draw.charts import Axis, Frame, Line, line_chart, rates, span
from unspoken.draw.formats import BARE_PERCENT_1, percent
from unspoken.draw.section import Figure, Key, Panel, Section
from unspoken.draw.table import Cell, Column, Table, estimate, number, text
from unspoken.evaluation.degradation import Hits, degradation
from unspoken.evaluation.outcomes import JEPA_REASONER
from unspoken.evaluation.results import Results, differs, summary_of
from unspoken.probes.colours import BASELINE_COLOUR
from unspoken.probes.probe import Probe, System, Task, View
from unspoken.probes.symbols import valid_continuations
from unspoken.tasks.context_free import SYMBOLS

Kind = Literal["absolute", "relative"]

RATES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
# JEPA-Reasoner, arXiv 2512.19171v3: rate of wrong tokens -> (Transformer, JEPA-Reasoner) at generation steps 1 to 4.
PAPER: Mapping[float, tuple[tuple[float, float], ...]] = {
    0.00: ((0.9230, 0.9191), (0.9181, 0.7405), (0.6185, 0.5722), (0.6861, 0.6646)),
    0.05: ((0.8748, 0.8506), (0.7867, 0.6703), (0.5281, 0.5242), (0.6140, 0.6130)),
    0.10: ((0.7996, 0.7688), (0.6958, 0.6109), (0.4857, 0.4797), (0.5600, 0.5708)),
    0.15: ((0.7543, 0.7256), (0.6273, 0.5678), (0.4514, 0.4581), (0.5273, 0.5451)),
    0.20: ((0.7092, 0.6797), (0.5868, 0.5336), (0.4316, 0.4428), (0.5005, 0.5195)),
    0.25: ((0.6742, 0.6426), (0.5643, 0.5021), (0.4129, 0.4152), (0.4704, 0.5039)),
    0.30: ((0.6402, 0.6061), (0.5442, 0.4919), (0.4010, 0.4201), (0.4521, 0.4865)),
}
_KINDS: tuple[Kind, ...] = ("absolute", "relative")
_LEGEND = (
    Key("c2 dotted", "T: coupled Transformer"),
    Key("c1 dotted", "R: JEPA-Reasoner"),
    Key("c2 dashed", "the paper’s T"),
    Key("c1 dashed", "the paper’s R"),
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Hits of the first half at each rate of wrong tokens, and the mean of valid answers at each."""

    hits: Hits
    valid: list[float]


class TokenNoiseProbe(Probe):
    """What do wrong tokens in the prompt cost?"""

    key = "token_noise"

    def applies(self, system: System, task: Task) -> bool:
        return task.traits.fixed_steps is not None and not system.replaced

    def measure(self, view: View) -> Reading:
        """Answers of half the length to prompts in which some symbols are wrong."""
        import torch

        from unspoken.evaluation.forcing import corrupted

        half = view.task.traits.fixed_steps
        assert half is not None
        short, symbols = replace(view, system=view.system.of_length(half)), torch.tensor(SYMBOLS)
        ids, mask = view.task.prompts(view.problems, view.prompt_format)
        hits, valid = {}, []
        for rate in RATES:
            # Markers and padding stay as they are.
            wrong = corrupted(ids, torch.isin(ids, symbols), rate, symbols, view.seed)
            answers = short.answer(prompts=(wrong, mask))
            hits[rate] = answers.hits[:, :half]
            valid.append(float(valid_continuations(view, answers.tokens).mean()))
        return Reading(hits=hits, valid=valid)

    def summarise(self, readings: Mapping[str, Sequence[Reading]], *, baseline: str | None) -> dict[str, Any]:
        hits = {name: [reading.hits for reading in seeds] for name, seeds in readings.items()}
        return {
            "half": next(iter(hits.values()))[0][0.0].shape[1],
            **degradation(hits, baseline),
            "valid": {name: np.mean([one.valid for one in seeds], axis=0).tolist() for name, seeds in readings.items()},
        }

    def section(self, results: Results) -> Section | None:
        """The curves and their numbers."""
        if not levels(results):
            return None
        caption = (
            "Some symbols of the prompt are replaced by others, the same for every system, and each system continues "
            "it. Bars: 95 % intervals over seeds and strings. The vertical axis may not start at zero. Look for two "
            "things: which line is higher (above), and which falls more slowly (below); they need not be the same."
        )
        curves = Figure(noise_curves(results), caption, legend=_LEGEND, strip=True)
        tables = [_table(results, kind) for kind in _KINDS]
        return Section("token-noise", "Wrong tokens in the prompt", [curves, *tables])


def levels(results: Results) -> list[float]:
    """The measured rates of wrong tokens."""
    systems = summary_of(results, "token_noise").get("systems")
    return [entry["level"] for entry in next(iter(systems.values()))["levels"]] if systems else []


def compared(results: Results) -> tuple[tuple[str, str], ...]:
    """The two systems of the paper, in its order, and their colours: the baseline and the Reasoner with its Talker."""
    return ((results["baseline"], BASELINE_COLOUR), (JEPA_REASONER, "c1"))


def accuracy(results: Results, name: str, kind: Kind, level: int, step: int) -> Mapping[str, float] | None:
    """Accuracy of a system at one step, absolute or relative to its own without noise."""
    systems = summary_of(results, "token_noise").get("systems", {})
    if name not in systems:
        return None
    entry: Mapping[str, Any] = systems[name]["levels"][level]["symbol"][step]
    return entry if kind == "absolute" else entry["relative"]


def _printed(kind: Kind, level: float, step: int, column: int) -> float | None:
    """A value of the paper, or its ratio to the paper's clean one."""
    rows = PAPER.get(level)
    if rows is None or step >= len(rows):
        return None
    return rows[step][column] / (1.0 if kind == "absolute" else PAPER[0.0][step][column])


def noise_curves(results: Results) -> list[list[Panel]]:
    """For each generation step, accuracy against noise on the prompt: absolute, and relative to no noise."""
    half = summary_of(results, "token_noise")["half"]
    axes = {kind: rates(min(_lowest(results, kind, half), default=0.0)) for kind in _KINDS}
    return [[_panel(results, kind, step, axes[kind]) for kind in _KINDS] for step in range(half)]


def _lowest(results: Results, kind: Kind, half: int) -> Iterator[float]:
    """Everything that the charts of a kind must hold."""
    for step in range(half):
        for index, level in enumerate(levels(results)):
            for column, (name, _) in enumerate(compared(results)):
                ours, printed = accuracy(results, name, kind, index, step), _printed(kind, level, step, column)
                yield from [] if ours is None else [ours["low"]]
                yield from [] if printed is None else [printed]


def _panel(results: Results, kind: Kind, step: int, y: Axis) -> Panel:
    every = levels(results)
    ticks = tuple((level, f"{100 * level:.0f} %") for level in every[::2])
    frame = Frame(x=Axis(low=0, high=every[-1], ticks=ticks), y=y, width=243, height=160, bottom=24)
    lines, spans = [], []
    for column, (name, colour) in enumerate(compared(results)):
        printed = [(level, value) for level in every if (value := _printed(kind, level, step, column)) is not None]
        lines.append(Line(points=printed, classes=f"{colour} dashed faint", hint=f"the paper’s {name}"))
        entries = [(level, accuracy(results, name, kind, index, step)) for index, level in enumerate(every)]
        ours = [(level, entry) for level, entry in entries if entry is not None]
        means = [(level, entry["mean"]) for level, entry in ours]
        lines.append(Line(points=means, classes=colour, marker="dot", hint=name))
        spans += [span(frame.at(level, entry["low"]), frame.at(level, entry["high"]), colour) for level, entry in ours]
    label = f"Accuracy of step {step + 1} against the rate of wrong tokens, {kind}"
    drawing = line_chart(frame, [line for line in lines if line.points], label=label, extra=spans)
    return Panel(title=f"Step {step + 1}", remark=kind, drawing=drawing)


def _table(results: Results, kind: Kind) -> Table:
    """Both systems at every level and step, with interval and the paper's value below."""
    half = summary_of(results, "token_noise")["half"]
    what = "Accuracy of each symbol" if kind == "absolute" else "Accuracy divided by the system’s own without noise"
    note = (
        f"{what}, in per cent; below it the 95 % interval, and the paper’s value, of its own grammar and models. "
        "Bold where the paired difference is significant."
    )
    groups = [(f"Step {step + 1}", str(step + 1)) for step in range(half)]
    if kind == "absolute":
        note += f" Valid: the {half} symbols go on from the prompt as it was in some string of the grammar."
        groups.append(("Valid", " valid"))
    heads = [Column(name, None, name + after, group) for group, after in groups for name in "TR"]
    return Table(
        title=f"wrong tokens in the prompt, {kind}: coupled (T) and jepa-reasoner (R), steps 1 to {half}",
        columns=[Column("Wrong tokens", None, "noise"), *heads],
        rows=[_row(results, kind, index, level) for index, level in enumerate(levels(results))],
        note=note,
    )


def _row(results: Results, kind: Kind, index: int, level: float) -> list[Cell]:
    summary, row = summary_of(results, "token_noise"), [text(percent(level, 0))]
    test = summary["comparison"].get(f"{JEPA_REASONER} - {results['baseline']}")
    for step in range(summary["half"]):
        change = test and test["levels"][index]["symbol"][step][kind]
        for column, (name, _) in enumerate(compared(results)):
            # The difference is the JEPA-Reasoner's minus the coupled model's.
            better = change is not None and differs(change) and (change["mean"] > 0) == (name == JEPA_REASONER)
            printed = _printed(kind, level, step, column)
            note = "" if printed is None else f"paper {BARE_PERCENT_1(printed)}"
            entry, classes = accuracy(results, name, kind, index, step), "strong" if better else ""
            row.append(
                Cell(note=note) if entry is None else estimate(entry, BARE_PERCENT_1, note=note, classes=classes)
            )
    if kind == "absolute":
        valid = [summary["valid"].get(name) for name, _ in compared(results)]
        row += [Cell() if values is None else number(values[index], BARE_PERCENT_1) for values in valid]
    return row
