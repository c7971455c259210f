"""Chains that go wrong at a known step."""

from __future__ import annotations

import json

import pytest
import torch
from planted_trees import right_rows, slanted_table, some, view_of
from tag_balance import unbalanced

from unspoken.draw.page import to_html
from unspoken.draw.section import Figure
from unspoken.probes.probe import View
from unspoken.probes.steps import StepsProbe

PROBE = StepsProbe()


def view() -> View:
    """Four problems. Of the rollout the first goes wrong at the second step alone, the second stops before the leaf."""
    task, problems = some(count=4)
    table = slanted_table()
    right = right_rows(task, problems, table)
    rollout = right.clone()
    rollout[0, 1] = right[0, 0]
    rollout[1, 2:] = 0
    forced = right.clone()
    forced[3, 3] = right[3, 0]
    return view_of(task, problems, table, rollout=rollout, forced=forced)


def test_a_step_counts_alone_and_with_everything_before_it() -> None:
    reading = PROBE.measure(view())
    assert reading["rollout"]["step"] == pytest.approx([1.0, 0.75, 0.75, 0.75])
    assert reading["rollout"]["up_to"] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert reading["forced"]["step"] == reading["forced"]["up_to"] == pytest.approx([1.0, 1.0, 1.0, 0.75])


def test_chains_that_are_shorter_or_longer_than_an_answer_are_read_alike() -> None:
    task, problems = some(count=2)
    table = slanted_table()
    right = right_rows(task, problems, table)
    longer = view_of(task, problems, table, rollout=torch.cat([right, right], dim=1), forced=right)
    shorter = view_of(task, problems, table, rollout=right[:, :1], forced=right)
    assert PROBE.measure(longer)["rollout"]["up_to"] == [1.0, 1.0, 1.0, 1.0]
    assert PROBE.measure(shorter)["rollout"]["up_to"] == [1.0, 0.0, 0.0, 0.0]


def test_means_over_seeds_and_their_curves() -> None:
    reading = PROBE.measure(view())
    perfect = {kind: dict.fromkeys(("step", "up_to"), [1.0] * 4) for kind in reading}
    summary = PROBE.summarise({"sst": [reading, perfect]}, baseline=None)
    json.dumps(summary, allow_nan=False)
    assert summary["sst"]["rollout"]["up_to"]["mean"] == pytest.approx([1.0, 0.875, 0.75, 0.75])
    assert summary["sst"]["rollout"]["up_to"]["seeds"][1] == [1.0] * 4
    assert PROBE.summarise({"sst": [perfect]}, baseline=None)["sst"]["forced"]["step"]["seeds"] == [[1.0] * 4]
    for systems, panels in ((1, 2), (2, 4), (3, 3)):
        several = {f"system {number}": summary["sst"] for number in range(systems)}
        section = PROBE.section({"probes": {"steps": several}})
        assert section is not None
        assert unbalanced(to_html(section.blocks)) == []
        (figure,) = section.blocks
        assert isinstance(figure, Figure)
        assert len(figure.panels) == panels
    assert PROBE.section({"probes": {}}) is None


def test_the_probe_is_for_reasoners_alone() -> None:
    planted = view()
    assert PROBE.applies(planted.system, planted.task)
    task, problems = some()
    table = slanted_table()
    right = right_rows(task, problems, table)
    assert not PROBE.applies(view_of(task, problems, table, rollout=right, forced=right, talker=True).system, task)
