"""What the page says about runs on plain text: the ablation of appendix C, the next token, and samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unspoken.report.charts import interval_bar
from unspoken.report.findings import CORRUPTION_MEANING, Results, differs, texts
from unspoken.report.formats import NO_VALUE, coefficient, count, percent, percent_range, points
from unspoken.report.markup import Cell, Section, heads, paragraph, table, text_cell

RIGHT_COLOUR, OTHER_COLOUR = "c1", "c2"


def _accuracy(entry: Mapping[str, Any] | None, kind: str, colour: str) -> Cell:
    if entry is None:
        return Cell(text=NO_VALUE, classes="num muted")
    value, change = entry[kind], entry.get("change")
    small = percent_range(value["low"], value["high"], 1)
    if kind == "right" and change is not None:
        small += f"; {points(change['mean'])}" if differs(change) else "; no change"
    bar = interval_bar(value["mean"], value["low"], value["high"], colour)
    return Cell(text=percent(value["mean"], 1), small=small, html=bar)


def texts_headline(results: Results) -> str:
    """The ablation, a row a corruption and two columns a Talker; without a Talker, what is known of the next token."""
    measured = texts(results)
    corruption = measured["corruption"]
    if not corruption:
        return _language_table(results)
    rows = []
    for name in dict.fromkeys(name for entry in corruption.values() for name in entry["conditions"]):
        given, paper = CORRUPTION_MEANING[name]
        row = [text_cell(name, small=given)]
        for entry in corruption.values():
            found = entry["conditions"].get(name)
            row += [_accuracy(found, "right", RIGHT_COLOUR), _accuracy(found, "other", OTHER_COLOUR)]
        rows.append([*row, text_cell(paper, classes="wide muted")])
    chance = max(entry["alike"] for entry in corruption.values())
    caption = (
        f"Share of the tokens behind the first {measured['prime']} that the Talker says right, and share that are the other "
        f"sentence’s at the same place; {count(measured['sentences'], 'test sentence')}, with 95 % intervals and, below, the "
        "paired change in points against no corruption. The sentence’s own first tokens are given to a Dual-Talker; a "
        f"Mono-Talker has none. Two sentences agree in {percent(chance, 1)} of places by chance."
    )
    columns = [column for _ in corruption for column in ("Its own|tokens", "The other’s|tokens")]
    head = [*heads("Corruption", *columns), text_cell("The paper saw", classes="wide")]
    groups = [(name.replace("_", " "), 2) for name in corruption]
    return table(head, rows, caption=caption, classes="matrix", groups=groups)


def _language_table(results: Results) -> str:
    measured, rows = texts(results), []
    for name, entry in measured["language"].items():
        right, lost = entry["accuracy"], entry.get("perplexity")
        bar = interval_bar(right["mean"], right["low"], right["high"], RIGHT_COLOUR, bar=False)
        shown = Cell(text=NO_VALUE, classes="num muted")
        if lost is not None:
            span = f"{coefficient(lost['low'])} – {coefficient(lost['high'])}"
            shown = Cell(text=coefficient(lost["mean"]), small=span)
        rows.append(
            [
                text_cell(name.replace("_", " ")),
                shown,
                Cell(text=percent(right["mean"], 1), small=percent_range(right["low"], right["high"], 1)),
                Cell(html=bar, classes="graphic"),
            ]
        )
    caption = (
        f"{count(measured['rows'], 'test text')} of {count(measured['tokens'], 'token')} together, with 95 % intervals. A "
        "language model picks its most likely token; a Reasoner has no head, and the nearest row of its table is taken."
    )
    head = [*heads("Stage", "Perplexity", "Next token right"), Cell(small="0 to 100 %", classes="graphic")]
    return table(head, rows, caption=caption)


def language_section(results: Results) -> Section | None:
    """Perplexity and accuracy of the next token, if the table is not at the top already."""
    if not texts(results) or not texts(results)["corruption"] or not texts(results)["language"]:
        return None
    return Section(key="language", title="What is known of the next token", body=_language_table(results))


def sentences_section(results: Results) -> Section | None:
    """A few sentences as the Talker said them."""
    samples = texts(results).get("samples")
    if not samples:
        return None
    body = paragraph("What was said of the first seed’s test sentences, the given first tokens included.", "caption")
    for sample in samples:
        rows = [
            [text_cell("the sentence"), text_cell(sample["sentence"])],
            *([text_cell(name), text_cell(said)] for name, said in sample["said"].items()),
            [text_cell("the other sentence"), text_cell(sample["other"], classes="muted")],
        ]
        head = [text_cell("Latents or prime"), text_cell(f"Said by {sample['system'].replace('_', ' ')}")]
        body += f'<div class="example">{table(head, rows)}</div>'
    return Section(key="sentences", title="Sentences, right and corrupted", body=body)
