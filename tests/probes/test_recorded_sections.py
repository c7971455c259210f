"""Every section that a probe makes of committed and of made-up results is as it was recorded."""

from __future__ import annotations

import json

import pytest
from recorded_sections import RECORDED, RUNS, changed, probe_texts

from unspoken.probes.catalogue import PROBES


@pytest.mark.parametrize("run", RUNS)
def test_the_sections_of_a_run_are_as_recorded(run: str) -> None:
    assert changed("probes", run, probe_texts(run)) == [], "see tests/recorded_sections.py"


def test_every_probe_has_a_section_that_is_recorded() -> None:
    recorded = json.loads(RECORDED.read_text())["probes"]
    assert {probe.key for probe in PROBES} == {key for run in recorded.values() for key in run}
