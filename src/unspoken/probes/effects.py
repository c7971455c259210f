"""Forced wrong tokens: the table that symbols of strings and answers in words have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unspoken.draw.formats import PERCENT_1, coefficient
from unspoken.draw.table import UNKNOWN, Cell, Column, Table, estimate, text

Effect = Mapping[str, Any]
Kinds = Mapping[tuple[str, str], Callable[[Effect], Cell]]  # by head, on a page and on a terminal


def rate_of(*path: str) -> Callable[[Effect], Cell]:
    """Reads a rate of an effect, with its interval; nothing where there was nothing to count."""

    def read(effect: Any) -> Cell:
        for key in path:
            effect = effect[key]
        return estimate(effect, PERCENT_1)

    return read


def latents_cell(effect: Effect) -> Cell:
    """The largest change of any latent, in a word if there was none at all; nothing where no token was forced."""
    if not (effect["forced"] and effect["forced"]["mean"]):
        return UNKNOWN
    return text("none" if effect["latents_identical"] else coefficient(effect["largest_latent_change"]))


def effect_table(
    systems: Iterable[tuple[Cell, Sequence[Effect]]], kinds: Kinds, groups: Sequence[tuple[str, str]], **rest: Any
) -> Table:
    """A row a system, with all columns for each of its effects.

    Args:
        systems: the cell that names each system, and its effects.
        groups: of each effect a title over its columns, and what a terminal writes before their heads.
    """
    heads = [Column(head, None, before + short, group) for group, before in groups for head, short in kinds]
    rows = [[name, *(cell(effect) for effect in effects for cell in kinds.values())] for name, effects in systems]
    return Table(columns=[Column("System"), *heads], rows=rows, **rest)
