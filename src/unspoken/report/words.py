"""Sections of the page that only runs on word problems have: test sets, draws, controls, steps, hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from html import escape
from typing import Any

from unspoken.report.charts import interval_bar
from unspoken.report.cloud import plane_panel
from unspoken.report.figures import BASELINE_COLOUR, system_colours
from unspoken.report.findings import (
    WORD_CONTROL_MEANING,
    Results,
    baseline,
    chain_verdict,
    differs,
    label,
    words,
)
from unspoken.report.formats import NO_VALUE, coefficient, count, joined, percent, percent_range, points, steps
from unspoken.report.markup import Cell, Section, figure, heads, prose, table, text_cell

ANSWER_COLOUR, MARKER_COLOUR = "c3", "c0"


def _rate_cell(rate: Mapping[str, Any], small: str, colour: str, *, classes: str = "num") -> Cell:
    bar = interval_bar(rate["mean"], rate["low"], rate["high"], colour)
    return Cell(text=percent(rate["mean"]), small=small, html=bar, classes=classes)


def tests_section(results: Results) -> Section | None:
    """Exact match on every test set, if there is more than one."""
    tests = words(results).get("tests", {})
    if len(tests) < 2:
        return None
    colours = system_colours(results)
    rows = []
    for name in results["systems"]:
        row = [text_cell(label(results, name))]
        for outcomes in tests.values():
            rate = outcomes.get(name, {}).get("exact_match")
            row.append(
                Cell(text=NO_VALUE, classes="num muted")
                if rate is None
                else _rate_cell(rate, percent_range(rate["low"], rate["high"]), colours[name])
            )
        rows.append(row)
    caption = (
        f"Exact match with its 95 % interval; the bar goes from 0 to 100 %. Models were trained on problems like those of "
        f"{next(iter(tests))}. The other sets ask whether what was learned carries over."
    )
    body = table(heads("System", *tests), rows, caption=caption, classes="matrix")
    return Section(key="tests", title="Accuracy on every test set", body=body)


def samples_section(results: Results) -> Section | None:
    """pass@k of noisy chains, beside the exact match of the clean one."""
    entry = words(results).get("samples")
    if not entry or not entry["systems"]:
        return None
    colours = system_colours(results)
    every = sorted({int(k) for rates in entry["systems"].values() for k in rates})
    rows = []
    for name, rates in entry["systems"].items():
        cells = [results["systems"][name]["exact_match"], *(rates[str(k)] for k in every)]
        shown = [_rate_cell(rate, percent_range(rate["low"], rate["high"]), colours[name]) for rate in cells]
        rows.append([text_cell(label(results, name)), *shown])
    caption = (
        f"Chance that one of k chains leads to the right answer, estimated from {count(entry['draws'], 'noisy chain')} a problem, "
        "with a 95 % interval that is rather too wide; the bar goes from 0 to 100 %. Explicit chains are sampled at temperature 1, "
        "superpositions have Gumbel noise on their weights, and every answer is spoken greedily. Guesses that differ raise pass@k "
        "too, so compare systems at the same k; pass@1 far below the clean chain says that the noise does harm."
    )
    head = heads("System", "Clean chain", *(f"pass@{k}" for k in every))
    return Section(
        key="samples", title="Several chains a problem", body=table(head, rows, caption=caption, classes="matrix")
    )


def word_controls_section(results: Results) -> Section | None:
    """Exact match of answers spoken from altered chains, a column a system, and what follows from it."""
    controls = words(results).get("controls", {})
    if not controls:
        return None
    colours = system_colours(results)
    told = {label(results, system): " ".join(chain_verdict(entries)) for system, entries in controls.items()}
    verdicts = "".join(f"<li><b>{escape(name)}</b> <span>{prose(text)}</span></li>" for name, text in told.items())
    asks = len(controls) < 3  # more columns leave no room for it
    first = [text_cell("the chain itself", small="nothing is changed")]
    for system in controls:
        rate = results["systems"][system]["exact_match"]
        first.append(_rate_cell(rate, percent_range(rate["low"], rate["high"]), colours[system], classes="num strong"))
    rows = [[*first, text_cell("", classes="wide")] if asks else first]
    for name in dict.fromkeys(name for entries in controls.values() for name in entries):
        given, question = WORD_CONTROL_MEANING.get(name, ("", ""))
        row = [text_cell(name, small=given)]
        row += [_control(entries.get(name)) for entries in controls.values()]
        rows.append([*row, text_cell(question, classes="wide muted")] if asks else row)
    caption = (
        "The same trained model answers from an altered chain. Large: exact match; bar: the same from 0 to 100 %, with its "
        "95 % interval. Below: points more or fewer than with the chain itself, with the 95 % interval of the paired "
        "difference; grey where the data cannot tell it from zero. A bar that stays as long as the first one means that what "
        "was destroyed was not used."
    )
    altered = min(entry["exact_match"]["problems"] for entries in controls.values() for entry in entries.values())
    if altered < results["problems"]:
        caption += f" Altered chains are measured on the first {altered:,} of the {results['problems']:,} problems."
    head = heads("Chain", *(label(results, system) for system in controls))
    head += [text_cell("What it asks", classes="wide")] if asks else []
    body = f'<ul class="verdicts">{verdicts}</ul>{table(head, rows, caption=caption, classes="matrix")}'
    return Section(key="controls", title="Does the chain do anything?", body=body)


def _control(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None:
        return Cell(text=NO_VALUE, classes="num muted")
    change = entry["difference"]
    small = f"{points(change['mean'])} ({points(change['low'])} to {points(change['high'])})"
    return _rate_cell(entry["exact_match"], small, "c0", classes="num" if differs(change) else "num muted")


# --- steps -------------------------------------------------------------------------------------------------------


def steps_table(results: Results) -> str:
    """Steps that an answer takes one after another: chain, markers, answer; empty where they were not counted."""
    taken = words(results).get("steps", {})
    if not taken:
        return ""
    longest = max(entry["total"] for entry in taken.values())
    rows = []
    for system, entry in taken.items():
        chain = BASELINE_COLOUR if system == baseline(results) else "c1"
        parts = ((entry["latents"], chain), (entry["marker"], MARKER_COLOUR), (entry["answer"], ANSWER_COLOUR))
        rows.append(
            [
                text_cell(label(results, system)),
                *(Cell(text=steps(entry[part])) for part in ("latents", "marker", "answer")),
                Cell(text=steps(entry["total"]), classes="num strong"),
                Cell(html=_stacked(parts, longest), classes="graphic"),
            ]
        )
    legend = (
        '<p class="legend"><span class="key c1 barred">latents</span>'
        f'<span class="key {BASELINE_COLOUR} barred">explicit tokens</span>'
        f'<span class="key {MARKER_COLOUR} barred">markers</span>'
        f'<span class="key {ANSWER_COLOUR} barred">answer</span></p>'
    )
    caption = (
        "Steps that wait for one another, means a problem. The answer is text and counts too: a chain gets no shorter by "
        "moving its work there."
    )
    head = [*heads("System", "Chain|steps", "Markers|steps", "Answer|steps", "Total|steps"), Cell(classes="graphic")]
    return legend + table(head, rows, caption=caption)


def _stacked(parts: tuple[tuple[float, str], ...], longest: float) -> str:
    bars, start = [], 0.0
    for value, colour in parts:
        x, width = 100 * start / longest, 100 * value / longest
        bars.append(f'<rect class="bar {colour}" x="{x:.2f}%" y="3" width="{width:.2f}%" height="14"/>')
        start += value
    told = joined([steps(value) for value, _ in parts])
    return f'<svg class="interval" role="img" aria-label="{told} steps" width="100%" height="20">{"".join(bars)}</svg>'


# --- hidden states -----------------------------------------------------------------------------------------------


def geometry_section(results: Results) -> Section | None:
    """Hidden states beside the rows of the embedding table."""
    measured = words(results).get("geometry")
    if not measured:
        return None
    rows = [
        [
            text_cell(label(results, name), small=f"{count(round(entry['states']), 'hidden state')} a seed"),
            Cell(text=coefficient(entry["embedding_norm"])),
            Cell(text=coefficient(entry["hidden_norm"])),
            Cell(text=coefficient(entry["embedding_rank"], 1)),
            Cell(text=coefficient(entry["hidden_rank"], 1)),
            Cell(text=f"{coefficient(entry['cosine_mean'], 3)} ± {coefficient(entry['cosine_sd'], 3)}"),
            Cell(text=coefficient(entry["frechet"])),
            Cell(text=coefficient(entry["mmd"], 3)),
        ]
        for name, entry in measured.items()
    ]
    caption = (
        "A method that feeds hidden states back as inputs assumes that they look like rows of the embedding table. Far-apart "
        "norms, a cosine near zero and large distances say that they do not; a mixture of rows lies among the rows by itself. "
        "A hidden state is the output of the stack that a step of the chain was made from; means over seeds, both distances "
        "squared."
    )
    head = heads(
        "System",
        "Rows",
        "States",
        "Rows",
        "States",
        "Cosine|of random pairs",
        "Fréchet|of fitted Gaussians",
        "MMD|Gaussian kernel",
    )
    groups = [("Mean norm", 2), ("Effective rank", 2), ("Rows against states", 3)]
    body = table(head, rows, caption=caption, groups=groups)
    for name, entry in measured.items():
        panel = plane_panel(entry["plane"]) if entry.get("plane") else None
        if panel is not None:
            explained = joined([percent(share, 1) for share in entry["plane"]["explained"]])
            told = (
                f"Both on the plane of most variance of the two together, which explains {explained} of it: distances "
                "here are only a hint."
            )
            body += figure([replace(panel, title=label(results, name))], told, classes="beside")
    return Section(key="geometry", title="Hidden states beside embeddings", body=body)
