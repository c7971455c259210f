"""Chains whose latents are known mixtures, drawn and laid on a plane."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted_trees import chain_of, printed, right_rows, slanted_table, some, view_of
from tag_balance import unbalanced

from unspoken.draw.page import to_html
from unspoken.draw.section import Examples, Heading
from unspoken.evaluation.results import read_results
from unspoken.probes.probe import View
from unspoken.probes.tree_latents import tree_latents
from unspoken.probes.trees import TreesProbe
from unspoken.tasks.tree_search import LETTERS

PROBE = TreesProbe()
COMMITTED = Path(__file__).parents[2] / "results"


def view() -> View:
    """Five problems: the second answer is wrong at the leaf, and the fourth chain mixes most."""
    task, problems = some(count=5)
    table = slanted_table()
    right = right_rows(task, problems, table)
    names = [[LETTERS[token - 6] for token in row] for row in problems.names_BM]
    nodes = task.route_nodes(problems.leaf_B)
    rollout = right.clone()
    rollout[1, 2] = right[1, 0]
    child = int(nodes[3, 1])
    pair = {names[3][child]: 0.6, names[3][3 - child]: 0.5}
    rollout[3] = chain_of(table, ({names[3][0]: 1.0}, pair, {names[3][int(nodes[3, 2])]: 1.0}))[0]
    return view_of(task, problems, table, rollout=rollout, forced=right, talker=True)


def test_examples_are_the_first_right_the_least_sure_and_the_wrong_ones() -> None:
    reading = PROBE.measure(view())
    assert reading is not None
    json.dumps(reading, allow_nan=False)
    examples = reading["examples"]
    assert [entry["kind"] for entry in examples] == ["most uncertain", "right", "wrong", "right", "right"]
    assert [entry["correct"] for entry in examples] == [True, True, False, True, True]
    unsure, first, wrong = examples[:3]
    assert first["spoken"] == first["route"]
    assert wrong["spoken"] == [*wrong["route"][:2], wrong["route"][0]]
    second = unsure["coefficients"][1]
    (right, other) = sorted(second, key=lambda name: -second[name])[:2]
    assert right == unsure["route"][1]
    assert second[other] / second[right] == pytest.approx(5 / 6, abs=0.01)
    assert set(second) == {right, other}, "what is written as zero is left out"
    for step, name in zip(first["coefficients"], first["route"], strict=True):
        assert step[name] == pytest.approx(1.0, abs=1e-3)


def test_the_page_says_how_uncertain_the_most_uncertain_problem_is() -> None:
    reading = PROBE.measure(view())
    assert reading is not None
    text = to_html(PROBE.draw(reading, {"probes": {}}).blocks)
    second = reading["examples"][0]["coefficients"][1]
    (right, other) = sorted(second.values(), reverse=True)[:2]
    assert f"latent 2 holds {right:.2f} of the right child and {other:.2f} of its sibling" in text
    certain = reading | {"examples": [reading["examples"][1] | {"kind": "most uncertain"}]}
    assert "This model is certain everywhere" in to_html(PROBE.draw(certain, {"probes": {}}).blocks)


@pytest.mark.parametrize(
    ("own", "other", "certain"), [(0.9, 0.05, False), (0.9, 0.049, True), (0.9, None, True), (None, 0.5, True)]
)
def test_a_model_is_uncertain_from_one_twentieth_of_a_sibling_on(
    own: float | None, other: float | None, certain: bool
) -> None:
    reading = PROBE.measure(view())
    assert reading is not None
    example = reading["examples"][1] | {"kind": "most uncertain"}
    for place, name in enumerate(example["route"][1:], 1):
        node = example["heap"].index(name)
        sibling = example["heap"][node + 1 if node % 2 else node - 1]
        shares = {name: own, sibling: other} if place == 1 else {name: 1.0}
        example["coefficients"][place] = {key: value for key, value in shares.items() if value is not None}
    text = to_html(PROBE.draw(reading | {"examples": [example]}, {"probes": {}}).blocks)
    assert ("This model is certain everywhere" in text) == certain
    assert ("latent 2 holds" in text) != certain


def test_two_wrong_answers_are_chosen() -> None:
    looked_at = view()
    wrong = torch.tensor([True, False, True, False, False])
    reading = PROBE.measure(replace(looked_at, answers=replace(looked_at.graded, correct=wrong)))
    assert reading is not None
    # The most uncertain one, which is one of the first two wrong ones, and the first right one; then the others.
    assert [entry["correct"] for entry in reading["examples"]] == [False, True, False, True, False]


def test_latents_are_one_for_each_token_of_an_answer() -> None:
    task, problems = some(count=2)
    right = right_rows(task, problems, slanted_table())
    for steps in (1, task.answer_length - 1, task.answer_length):
        planted = view_of(task, problems, slanted_table(), rollout=right[:, :steps], forced=right)
        latents = tree_latents(planted)
        assert latents.rollout.shape == right.shape
        # A chain with a latent for every name is complete, though it lacks its end.
        assert latents.complete.tolist() == [steps >= task.config.depth] * 2


def test_a_latent_that_is_a_row_lies_on_its_square() -> None:
    task, problems = printed("B")
    table = slanted_table()
    right = right_rows(task, problems, table)
    reading = PROBE.measure(view_of(task, problems, table, rollout=right, forced=right, talker=True))
    assert reading is not None
    plane, (entry,) = reading["plane"], reading["examples"]
    assert entry["route"] == ["L", "K", "B"]
    assert entry["at"] == [pytest.approx(plane["names"][name], abs=2e-3) for name in entry["route"]]
    assert set(plane["names"]) == set(LETTERS)
    assert 0 < plane["explained"][1] <= plane["explained"][0] < 1


def test_pictures_are_those_of_the_first_seed_of_a_pair() -> None:
    planted = view()
    assert PROBE.applies(planted.system, planted.task)
    task, problems = some()
    table = slanted_table()
    right = right_rows(task, problems, table)
    later = view_of(task, problems, table, rollout=right, forced=right, talker=True, first_seed=False)
    assert PROBE.measure(later) is None
    assert not PROBE.applies(view_of(task, problems, table, rollout=right, forced=right).system, task)
    first, second = PROBE.measure(planted), {"examples": [], "plane": {}}
    assert PROBE.summarise({"jepa-reasoner": [first], "jepa-reasoner, mono": [second]}, baseline=None) == first


def test_the_section_draws_a_tree_a_latent_and_the_cloud() -> None:
    reading = PROBE.measure(view())
    section = PROBE.section({"probes": {"trees": reading}})
    assert section is not None
    body = to_html(section.blocks)
    assert unbalanced(body) == []
    (examples,) = [block for block in section.blocks if isinstance(block, Examples)]
    assert [len(figure.panels) for figure in (*examples.shown, *examples.further)] == [3] * 5
    assert examples.shown[2].title == "Wrong"
    # A latent has one name in the tree, in the answer and on the plane.
    counts = Counter(re.findall(r'data-latent="([^"]+)"', body))
    assert counts == {f"{chain}.{step}": 3 for chain in range(5) for step in range(3)}
    assert "Where latents lie" in [block.text for block in section.blocks if isinstance(block, Heading)]
    assert PROBE.section({"probes": {}}) is None


def test_a_committed_run_has_its_pictures() -> None:
    section = PROBE.section(read_results(COMMITTED / "tree-search-tiny.json"))
    assert section is not None
    assert unbalanced(to_html(section.blocks)) == []


def test_a_short_chain_is_drawn_as_zeros() -> None:
    task, problems = printed("B")
    table = slanted_table()
    right = right_rows(task, problems, table)
    planted = view_of(
        task, problems, table, rollout=right[:, :1], forced=right, tokens=torch.tensor([[1]]), talker=True
    )
    reading = PROBE.measure(planted)
    assert reading is not None
    entry = reading["examples"][-1]
    assert (entry["correct"], entry["spoken"]) == (False, [])
    assert entry["coefficients"][2] == {}
