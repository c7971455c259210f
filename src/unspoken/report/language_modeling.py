"""Language modelling on plain text: the ablation of appendix C, the next token, and samples."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from unspoken.draw.formats import PERCENT_1, TWO_DECIMALS, count, percent, points
from unspoken.draw.section import Block, Paragraph, Section
from unspoken.draw.table import UNKNOWN, Cell, Column, Table, drawing, estimate, text
from unspoken.report.accuracy import rate_bar
from unspoken.report.findings import CORRUPTION_MEANING, Results, differs, label, measured

RIGHT_COLOUR, OTHER_COLOUR = "c1", "c2"


def headline(results: Results) -> Section | None:
    """The ablation; without a Talker, what is known of the next token."""
    entry = measured(results, "texts")
    if not entry:
        return None
    return Section("result", "", [_corruption_table(results) if entry["corruption"] else _next_token_table(results)])


def _accuracy(conditions: Mapping[str, Any], name: str, kind: str, colour: str) -> Cell:
    entry = conditions.get(name)
    if entry is None:
        return UNKNOWN
    value, change = entry[kind], entry.get("change")
    note = ""
    if kind == "right" and change is not None:
        note = points(change["mean"]) if differs(change) else "no change"
    return estimate(value, PERCENT_1, note=note, bar=rate_bar(value, colour))


def _corruption_table(results: Results) -> Table:
    """A row a corruption and two columns a Talker."""
    texts = measured(results, "texts")
    corruption = texts["corruption"]
    columns = [Column("Corruption", lambda name: text(name, CORRUPTION_MEANING[name][0]))]
    for system, entry in corruption.items():

        def read(name: str, kind: str, colour: str, conditions: Mapping[str, Any] = entry["conditions"]) -> Cell:
            return _accuracy(conditions, name, kind, colour)

        own, other = partial(read, kind="right", colour=RIGHT_COLOUR), partial(read, kind="other", colour=OTHER_COLOUR)
        span = "95 % interval"
        columns.append(Column("Its own|tokens", own, f"its own|{span}|change", label(results, system)))
        columns.append(Column("The other’s|tokens", other, f"the other’s|{span}", label(results, system)))
    columns.append(
        Column("The paper saw", lambda name: text(CORRUPTION_MEANING[name][1], classes="muted"), "", classes="wide")
    )
    chance = percent(max(entry["alike"] for entry in corruption.values()), 1)
    sentences = count(texts["sentences"], "test sentence")
    note = (
        f"Share of the tokens after the first {texts['prime']} that the Talker says right, and share that are the other "
        f"sentence’s at the same place; {sentences}, with 95 % intervals and, below, the "
        "paired change in points against no corruption. The sentence’s own first tokens are given to a Dual-Talker; a "
        f"Mono-Talker has none. Two sentences agree in {chance} of places by chance."
    )
    return Table.of(
        dict.fromkeys(name for entry in corruption.values() for name in entry["conditions"]),
        columns,
        title=f"tokens said after the first {texts['prime']} of {sentences}; by chance two agree in {chance}",
        note=note,
        classes="matrix",
        terminal="by group",
    )


def _next_token_table(results: Results) -> Table:
    texts = measured(results, "texts")

    columns = [
        Column("Stage", lambda row: text(label(results, row[0]))),
        Column("Perplexity", lambda row: estimate(row[1].get("perplexity"), TWO_DECIMALS), "perplexity|95 % interval"),
        Column("Next token right", lambda row: estimate(row[1]["accuracy"], PERCENT_1), "right|95 % interval"),
        Column(
            "|0 to 100 %",
            lambda row: drawing(rate_bar(row[1]["accuracy"], RIGHT_COLOUR, bar=False)),
            "",
            classes="graphic",
        ),
    ]
    rows = f"{count(texts['rows'], 'test text')} of {count(texts['tokens'], 'token')} together"
    note = (
        f"{rows}, with 95 % intervals. A "
        "language model picks its most likely token; a Reasoner has no head, and the nearest row of its table is taken."
    )
    return Table.of(texts["language"].items(), columns, title=f"the next token, on {rows}", note=note)


def next_token_section(results: Results) -> Section | None:
    """Perplexity and accuracy of the next token, if the table is not at the top already."""
    texts = measured(results, "texts")
    if not texts or not texts["corruption"] or not texts["language"]:
        return None
    return Section("language", "What is known of the next token", [_next_token_table(results)])


def sentences_section(results: Results) -> Section | None:
    """A few sentences as the Talker said them."""
    samples = measured(results, "texts").get("samples")
    if not samples:
        return None
    intro = "What was said of the first seed’s test sentences, the given first tokens included."
    blocks: list[Block] = [Paragraph(intro, "caption")]
    for sample in samples:
        rows = [
            [text("the sentence"), text(sample["sentence"])],
            *([text(name), text(spoken)] for name, spoken in sample["said"].items()),
            [text("the other sentence"), text(sample["other"], classes="muted")],
        ]
        columns = [Column("Latents or prime"), Column(f"Said by {label(results, sample['system'])}", classes="")]
        blocks.append(Table(columns=columns, rows=rows, terminal="absent"))
    return Section("sentences", "Sentences, right and corrupted", blocks)
