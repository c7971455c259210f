"""Wrong words in the mouth: the table that strings and word problems share, and what is said of word problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unspoken.report.findings import Results, label, words
from unspoken.report.formats import NO_VALUE, coefficient, count, percent, percent_range
from unspoken.report.markup import Cell, Section, heads, table, text_cell

Told = tuple[str, list[str], list[list[str]]]  # title, header and rows of a table on a terminal
Effect = Mapping[str, Any]
Columns = Mapping[str, Callable[[Effect], Cell]]


# --- whatever the task -------------------------------------------------------------------------------------------


def share_cell(share: Mapping[str, float] | None) -> Cell:
    """A share with its interval; nothing where there was nothing to count."""
    if share is None:
        return Cell(text=NO_VALUE, classes="num muted")
    return Cell(text=percent(share["mean"], 1), small=percent_range(share["low"], share["high"], 1))


def latents_cell(effect: Effect) -> Cell:
    """The largest change of any latent, in a word if there was none at all; nothing where no word was forced."""
    if not (effect["forced"] and effect["forced"]["mean"]):
        return Cell(text=NO_VALUE, classes="num muted")
    return Cell(text="none" if effect["latents_identical"] else coefficient(effect["largest_latent_change"]))


def effect_table(
    systems: Sequence[tuple[Cell, Sequence[Effect]]],
    columns: Columns,
    *,
    caption: str,
    groups: Sequence[str] = (),
) -> str:
    """A row a system, with all columns for each of its effects.

    Args:
        systems: the cell that names each system, and its effects: as many for every system.
        groups: titles over the columns of each effect.
    """
    rows = [[name, *(read(effect) for effect in effects for read in columns.values())] for name, effects in systems]
    head = heads("System", *(list(columns) * len(systems[0][1])))
    return table(head, rows, caption=caption, groups=[(group, len(columns)) for group in groups])


def effect_rows(systems: Sequence[tuple[str, Sequence[Effect]]], columns: Columns) -> list[list[str]]:
    """The same for a terminal, without intervals."""
    return [
        [name, *(read(effect).text for effect in effects for read in columns.values())] for name, effects in systems
    ]


# --- word problems -----------------------------------------------------------------------------------------------

_COLUMNS: Columns = {
    "Later words|changed": lambda effect: share_cell(effect["later_changed"]),
    "Right answers|lost": lambda effect: share_cell(effect["answers_lost"]),
    "Latents|largest change": latents_cell,
}


def word_forced_section(results: Results) -> Section | None:
    """What wrong words do to later words, answers and latents of everything that answers word problems."""
    measured = words(results).get("containment")
    if not measured:
        return None
    systems = [
        (text_cell(label(results, name), small=f"forced: {entry['says']}"), entry["effects"])
        for name, entry in measured["systems"].items()
    ]
    caption = (
        "While a system speaks, some of the numbers or names that it says become other ones, and it goes on from them; every "
        f"system is forced at the same places, on the first {count(measured['problems'], 'problem')}. Later words are those "
        "behind the first wrong one that are not forced themselves. An answer that is itself forced is wrong by "
        "construction, so right answers lost are counted only where a word was forced and none in the box: a method that says "
        "nothing else has none to lose. Methods that think in silence have finished their chain when they speak; in an "
        "explicit chain every wrong word is a wrong step. Below each share, its 95 % interval."
    )
    groups = [f"{percent(rate, 0)} of its words wrong" for rate in measured["rates"]]
    body = effect_table(systems, _COLUMNS, caption=caption, groups=groups)
    return Section(key="forced", title="Wrong words in the mouth", body=body)


def word_forced_tables(results: Results) -> list[Told]:
    """The table for a terminal; none where it was not measured."""
    measured = words(results).get("containment")
    if not measured:
        return []
    rows = effect_rows(
        [(label(results, name), entry["effects"]) for name, entry in measured["systems"].items()], _COLUMNS
    )
    short = [f"{percent(rate, 0)}: {name}" for rate in measured["rates"] for name in ("later", "lost", "latents")]
    title = "wrong words in the mouth: later words changed, right answers lost, largest change of a latent"
    return [(title, ["system", *short], rows)]
