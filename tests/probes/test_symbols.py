"""Accuracy of each symbol and validity, of answers in which the wrong symbols are planted."""

from __future__ import annotations

import json
from typing import Any

import torch
from tiny_strings import TASK, planted, right_symbols, string_view

from unspoken.draw.section import Section
from unspoken.draw.table import Table, grids
from unspoken.probes.symbols import SymbolsProbe
from unspoken.tasks.context_free import PAD

PROBE = SymbolsProbe()


def summary() -> dict[str, Any]:
    """One system whose j-th symbol is nothing in the last j rows, and one that gives the second half alone."""
    right = right_symbols()
    tokens = right.clone()
    for symbol in range(4):
        tokens[8 - symbol :, symbol] = PAD
    some = planted(lambda *_: tokens, name="some")
    second = planted(lambda *_: right[:, 2:], name="second", replaced=2)
    assert PROBE.applies(some, TASK)
    readings = {system.name: [PROBE.measure(string_view(system))] * 2 for system in (some, second)}
    return PROBE.summarise(readings, baseline=None)


def test_planted_errors_are_counted_symbol_by_symbol() -> None:
    measured = summary()
    assert (measured["symbols"], measured["half"]) == (4, 2)
    assert measured["steps"] == {"some": [1.0, 7 / 8, 6 / 8, 5 / 8], "second": [None, None, 1.0, 1.0]}
    # Three of eight rows hold a symbol that is none; where the first half is not given, nothing is judged as a whole.
    assert measured["valid"]["some"]["mean"] == 5 / 8
    assert list(measured["valid"]) == ["some"]
    right = right_symbols()
    alone = PROBE.summarise({"one": [PROBE.measure(string_view(planted(lambda *_: right)))]}, baseline=None)
    assert (alone["symbols"], alone["steps"]) == (4, {"one": [1.0] * 4})
    json.dumps(measured, allow_nan=False)


def test_a_continuation_that_is_not_the_string_s_own_may_be_valid() -> None:
    problems, right = TASK.sample("test", range(8)), right_symbols()
    others = torch.cartesian_prod(*[torch.arange(2, 5)] * 4)
    valid = torch.stack([TASK.valid(other.expand(8, 4), problems) for other in others], dim=1)
    different = (others[None] != right[:, None]).any(dim=2)
    rows = (valid & different).any(dim=1)
    assert rows.any()
    chosen = others[(valid & different).int().argmax(dim=1)]
    reading = PROBE.measure(string_view(planted(lambda *_: torch.where(rows[:, None], chosen, right))))
    assert reading.valid is not None
    assert reading.valid.tolist() == [1.0] * 8
    assert (reading.hits.min(axis=1) == 0).tolist() == rows.tolist()


def test_the_section_has_a_row_a_system() -> None:
    section = PROBE.section({"probes": {"symbols": summary()}})
    assert isinstance(section, Section)
    (table,) = section.blocks
    assert isinstance(table, Table)
    ((_, lines),) = grids(table)
    assert lines[1] == ["some", "100.0", "87.5", "75.0", "62.5", "62.5 %"]
    assert lines[2] == ["second", "–", "–", "100.0", "100.0", "–"]
    assert PROBE.section({"probes": {}}) is None
