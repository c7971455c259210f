"""Latents whose odds are planted: they carry the odds exactly, one half everywhere, or plain names."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from planted_trees import chain_of, printed, right_rows, slanted_table, some, view_of
from tag_balance import unbalanced

from unspoken.analysis.calibration import valid_routes
from unspoken.draw.page import to_html
from unspoken.draw.section import Figure
from unspoken.probes.calibration import CalibrationProbe
from unspoken.probes.probe import View
from unspoken.tasks.tree_search import FIRST_LETTER, LETTERS

PROBE = CalibrationProbe()
# One tree, of whose leaves B is listed twice and its sibling N once. So K is sure, B has odds of two to one.
LISTED = "BBN"
END_OF_THREE = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
# The mixtures of levels 2 and 3.
ODDS = ({"K": 1.0}, {"B": 2.0, "N": 1.0})
HALVES = ({"K": 1.0, "C": 1.0}, {"B": 1.0, "N": 1.0})
LEVELS = ({"K": 1.0, "C": 1.0}, {"B": 1.0, "N": 1.0, "J": 1.0, "E": 1.0})
NAMES = ({"K": 1.0}, {"B": 1.0})


def view(forced: Any, rollout: Any, targets: str = LISTED, **rest: Any) -> View:
    task, problems = printed(targets)
    table = slanted_table()
    latents = {
        kind: chain_of(table, ({"L": 1.0}, *steps)) for kind, steps in (("forced", forced), ("rollout", rollout))
    }
    return view_of(task, problems, table, **latents, **rest)


# --- teacher-forced ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latents", "errors", "of_two_thirds"),
    [(ODDS, [0.0, 0.0], 2 / 3), (HALVES, [1 / 2, 1 / 6], 1 / 2), (NAMES, [0.0, 1 / 3], 1.0)],
)
def test_the_error_of_forced_latents_is_their_distance_from_the_odds(
    latents: Any, errors: list[float], of_two_thirds: float
) -> None:
    forced = PROBE.measure(view(latents, ODDS))["forced"]
    assert forced["error_steps"] == pytest.approx(errors, abs=1e-4)
    assert forced["error"] == pytest.approx(np.mean(errors), abs=1e-4)
    assert forced["uniform_error"] == pytest.approx((1 / 2 + 1 / 6) / 2)
    readings = {round(point["truth"], 3): point["mean"] for point in forced["points"]}
    assert readings[0.667] == pytest.approx(of_two_thirds, abs=1e-4)
    assert readings[0.333] == pytest.approx(1 - of_two_thirds, abs=1e-4)


def odds_of(targets: list[int], node: int) -> float:
    """The fraction of the listed leaves that lie below a node, counted one by one."""

    def below(leaf: int) -> bool:
        while leaf > node:
            leaf = (leaf - 1) // 2
        return leaf == node

    return sum(map(below, targets)) / len(targets)


@pytest.mark.parametrize("kind", ["odds", "half", "names"])
def test_points_gather_all_nodes_of_equal_odds_seen_from_both_children(kind: str) -> None:
    task, problems = some(depth=4, targets=3, count=60)
    table, forced, truth = slanted_table(), [], []
    for row in range(60):
        names, targets = problems.names_BM[row], problems.targets_BA[row].tolist()
        steps, node = [{LETTERS[names[0] - FIRST_LETTER]: 1.0}], 0
        for child in task.route_nodes(problems.leaf_B)[row][1:]:
            sibling = child + 1 if child % 2 else child - 1
            right = odds_of(targets, child) / odds_of(targets, node)
            truth.append(right)
            weights = {"odds": (right, 1 - right), "half": (1, 1), "names": (1, 0)}[kind]
            steps.append(
                {
                    LETTERS[names[at] - FIRST_LETTER]: weight
                    for at, weight in zip((child, sibling), weights, strict=True)
                }
            )
            node = child
        forced.append(chain_of(table, steps))
    latents = torch.cat(forced)
    reading = PROBE.measure(view_of(task, problems, table, rollout=latents, forced=latents))["forced"]
    wrong = {"odds": 0.0, "half": np.mean(np.abs(0.5 - np.array(truth))), "names": np.mean(1 - np.array(truth))}[kind]
    assert reading["error"] == pytest.approx(wrong, abs=1e-4)
    both = np.array([*truth, *(1 - value for value in truth)])
    assert sum(point["count"] for point in reading["points"]) == len(both)
    assert len(reading["points"]) == len(np.unique(both.round(4))) > 3
    for point in reading["points"]:
        right, left = (np.abs(side - point["truth"]) < 1e-3 for side in (np.array(truth), 1 - np.array(truth)))
        assert point["count"] == right.sum() + left.sum()
        expected = {"odds": point["truth"], "half": 0.5, "names": right.sum() / (right.sum() + left.sum())}[kind]
        assert point["mean"] == pytest.approx(expected, abs=1e-4)
        if kind != "names":
            assert point["low"] == pytest.approx(point["high"], abs=1e-4)


# --- rollout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latents", "distance", "entropy", "largest"),
    [
        (ODDS, [0.0, 0.0], [0.0, END_OF_THREE], [1.0, 2 / 3]),
        (LEVELS, [1 / 2, 1 / 2], [math.log(2), math.log(4)], [1 / 2, 1 / 4]),
        (NAMES, [0.0, 1 / 3], [0.0, 0.0], [1.0, 1.0]),
    ],
)
def test_rollout_latents_are_compared_with_the_odds_of_their_level(
    latents: Any, distance: list[float], entropy: list[float], largest: list[float]
) -> None:
    rollout = PROBE.measure(view(ODDS, latents))["rollout"]
    assert rollout["distance"] == pytest.approx(distance, abs=1e-3)
    assert rollout["entropy"] == pytest.approx(entropy, abs=5e-3)
    assert rollout["largest"] == pytest.approx(largest, abs=1e-3)
    assert rollout["outside"] == pytest.approx([0.0, 0.0], abs=1e-3)
    assert rollout["uniform_distance"] == pytest.approx([1 / 2, 1 / 2])
    assert rollout["true_entropy"] == pytest.approx([0.0, END_OF_THREE])
    assert rollout["true_largest"] == pytest.approx([1.0, 2 / 3])


def test_a_latent_of_names_of_other_levels_lies_outside_its_own() -> None:
    rollout = PROBE.measure(view(ODDS, ({"L": 1.0}, {"B": 1.0, "L": 1.0, "A": 2.0})))["rollout"]
    assert rollout["outside"] == pytest.approx([1.0, 3 / 4], abs=1e-3)
    assert rollout["largest"][1] == pytest.approx(1.0, abs=1e-3)


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "valid"), [("LKB", True), ("LKN", True), ("LCJ", False), ("LCB", False), ("KLB", False), ("LK", False)]
)
def test_a_route_is_valid_if_it_is_in_the_tree_and_may_be_meant(route: str, valid: bool) -> None:
    task, problems = printed(LISTED)
    tokens = torch.tensor([[FIRST_LETTER + LETTERS.index(name) for name in route]])
    assert valid_routes(tokens, task, problems).tolist() == [valid]
    more = torch.cat([tokens, torch.tensor([[1]])], dim=1)
    assert valid_routes(more, task, problems).tolist() == [valid]
    assert PROBE.measure(view(ODDS, ODDS, tokens=tokens))["valid_routes"] == float(valid)


def test_without_a_listed_leaf_every_leaf_is_as_likely() -> None:
    reading = PROBE.measure(view(HALVES, LEVELS, targets=""))
    assert reading["forced"]["error"] == pytest.approx(0.0, abs=1e-4)
    assert reading["rollout"]["distance"] == pytest.approx([0.0, 0.0], abs=1e-3)


# --- over seeds, and on the page ---------------------------------------------------------------------------------


def test_the_probe_is_for_open_targets_and_reasoners_alone() -> None:
    for targets, expected in ((1, False), (3, True), (0, True)):
        task, problems = some(targets=targets)
        table = slanted_table()
        rows = right_rows(task, problems, table)
        for talker in (False, True):
            planted = view_of(task, problems, table, rollout=rows, forced=rows, talker=talker)
            assert PROBE.applies(planted.system, task) == (expected and not talker)


def test_means_over_seeds_and_their_section() -> None:
    readings = [PROBE.measure(view(latents, ODDS)) for latents in (ODDS, HALVES)]
    summary = PROBE.summarise({"sst": readings}, baseline=None)
    json.dumps(summary, allow_nan=False)
    entry = summary["sst"]
    assert entry["forced"]["error"]["seeds"] == pytest.approx([0.0, 1 / 3], abs=1e-4)
    assert entry["forced"]["error"]["mean"] == pytest.approx(1 / 6, abs=1e-4)
    assert entry["valid_routes"]["mean"] == 1.0
    alone = PROBE.summarise({"sst": readings[:1]}, baseline=None)["sst"]
    assert alone["points"] == readings[0]["forced"]["points"]
    means = {round(point["truth"], 3): point["mean"] for point in entry["points"]}
    assert means[0.667] == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-4)
    section = PROBE.section({"probes": {"calibration": summary}})
    assert section is not None
    assert unbalanced(to_html(section.blocks)) == []
    figure = section.blocks[0]
    assert isinstance(figure, Figure)
    # Several systems are named.
    for systems, titles in (({"sst": entry}, [""]), ({"sst": entry, "other": entry}, ["sst", "other"])):
        several = PROBE.section({"probes": {"calibration": systems}})
        assert several is not None
        panels = [block.panels[0] for block in several.blocks if isinstance(block, Figure)]
        assert [panel.title for panel in panels] == titles  # type: ignore[union-attr]
    assert "Mean error 16.7 points; always predicting one half: 33.3 points" in figure.caption.replace("\xa0", " ")
    assert PROBE.section({"probes": {}}) is None
