"""Rows that models of recorded results read: further settings, seeds and splits, and every form in which a task gives
its problems.

Whoever changes a digest changes the data of results that were committed before. ``PYTHONPATH=src python
tests/record_rows.py`` records them anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from record_rows import FORMS, digest_of

RECORDED: dict[str, str] = json.loads((Path(__file__).parent / "recorded_rows.json").read_text())


def test_every_form_is_recorded() -> None:
    assert set(RECORDED) == set(FORMS)


@pytest.mark.parametrize("name", FORMS)
def test_rows_are_those_of_recorded_results(name: str, tmp_path: Path) -> None:
    assert digest_of(name, tmp_path) == RECORDED[name]
