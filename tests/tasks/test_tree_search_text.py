"""The printed form of a problem, read back by code that shares nothing with the task's."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from printed_trees import PrintedTree, read_printed

from unspoken.tasks import TreeSearchConfig, TreeSearchTask
from unspoken.tasks.tree_search import EOS, LETTERS, PAD

DEPTHS = (2, 3, 4)


def task_of(**settings: object) -> TreeSearchTask:
    return TreeSearchConfig(**settings).build()  # type: ignore[arg-type]


def printed(task: TreeSearchTask, count: int = 200, seed: int = 0) -> list[PrintedTree]:
    return [read_printed(text) for text in task.text(task.sample("train", np.arange(count), seed))]


def level_order(tree: PrintedTree) -> list[str]:
    """Parents in the order in which their names first appear, the root first, two children each."""
    queue = [tree.root]
    for _, child in tree.edges:
        if child not in tree.leaves:
            queue.append(child)
    return [parent for parent in queue for _ in range(2)]


def test_the_printed_form_is_the_paper_s() -> None:
    task = task_of()
    form = re.compile(r"([A-O]{2},){13}[A-O]{2}\[ROOT\][A-O]\[TARGET\][A-O]\[ROUTE\][A-O]{4}")
    for text in task.text(task.sample("train", np.arange(500))):
        assert form.fullmatch(text), text


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_tree_is_complete_and_uses_a_name_once(depth: int, shuffle: bool) -> None:
    for tree in printed(task_of(depth=depth, shuffle_edges=shuffle)):
        assert len(tree.edges) == 2**depth - 2
        assert len(tree.parents) == len(tree.edges), "a name has two parents"
        assert tree.root not in tree.parents
        assert len(tree.leaves) == 2 ** (depth - 1)
        assert all(len(tree.walk(leaf)) == depth for leaf in tree.leaves)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_route_leads_from_the_root_to_the_target(depth: int, shuffle: bool) -> None:
    for tree in printed(task_of(depth=depth, shuffle_edges=shuffle), count=500):
        assert tree.targets in tree.leaves
        assert tree.route == tree.walk(tree.targets)


@pytest.mark.parametrize("depth", DEPTHS)
def test_edges_come_level_by_level_with_both_children_together(depth: int) -> None:
    for tree in printed(task_of(depth=depth)):
        assert [parent for parent, _ in tree.edges] == level_order(tree)


def test_shuffled_edges_are_in_another_order_than_level_order() -> None:
    trees = printed(task_of(shuffle_edges=True))
    out_of_order = sum([parent for parent, _ in tree.edges] != level_order(tree) for tree in trees)
    assert out_of_order > 0.99 * len(trees)


def test_shuffling_edges_puts_every_edge_everywhere() -> None:
    task = task_of(depth=3, shuffle_edges=True)
    edges = task.sample("train", np.arange(6000)).edges_BE
    # Six edges in six places: 1000 expected in each cell, sigma 29.
    counts = np.array([[(edges[:, position] == child).sum() for child in range(1, 7)] for position in range(6)])
    assert np.abs(counts - 1000).max() < 150


@pytest.mark.parametrize("targets", [2, 3])
def test_with_several_targets_the_route_leads_to_one_of_them(targets: int) -> None:
    for tree in printed(task_of(targets=targets)):
        assert len(tree.targets) == targets
        assert set(tree.targets) <= tree.leaves
        assert tree.route in [tree.walk(leaf) for leaf in tree.targets]


def test_without_a_target_the_route_leads_to_some_leaf() -> None:
    for tree in printed(task_of(targets=0)):
        assert tree.targets == ""
        assert tree.route in [tree.walk(leaf) for leaf in tree.leaves]


def test_targets_repeat_only_if_they_may() -> None:
    repeated = [len(set(tree.targets)) < 3 for tree in printed(task_of(targets=3), count=500)]
    assert any(repeated)
    assert not any(len(set(tree.targets)) < 3 for tree in printed(task_of(targets=3, repeat_targets=False), count=500))


def test_a_share_of_the_problems_is_certain() -> None:
    free, mixed = (task_of(targets=3, certain=fraction).sample("train", np.arange(4000)) for fraction in (0.0, 0.5))
    same = (mixed.targets_BA == mixed.targets_BA[:, :1]).all(axis=1)
    # A half, and one in 64 of the others; sigma 0.008.
    assert abs(same.mean() - (0.5 + 0.5 / 64)) < 0.03
    # The others are as they were, and the leaf is always a listed one.
    assert (mixed.targets_BA[~same] == free.targets_BA[~same]).all()
    assert (mixed.targets_BA == mixed.leaf_B[:, None]).any(axis=1).all()
    every = task_of(targets=3, certain=1.0).sample("train", np.arange(100)).targets_BA
    assert (every == every[:, :1]).all()


def test_every_name_is_everywhere_equally_often() -> None:
    # 15,000 trees, 1000 expected of each name in each place, sigma 31: a biased counter hash would show.
    names = task_of().sample("train", np.arange(15_000)).names_BM
    counts = np.array([np.bincount(column, minlength=21)[6:] for column in names.T])
    assert np.abs(counts - 1000).max() < 160


@pytest.mark.parametrize("depth", DEPTHS)
def test_lengths_are_what_the_task_says(depth: int) -> None:
    task = task_of(depth=depth, targets=2)
    batch = task.rows(task.sample("test", np.arange(3)))
    assert batch["input_ids"].shape == (3, task.prompt_length + task.answer_length)
    assert task.answer_length == depth + 1
    assert batch["attention_mask"].all()
    assert (batch["input_ids"][:, -1] == EOS).all()
    assert not (batch["input_ids"] == PAD).any()


def test_a_full_sample_has_the_paper_s_51_tokens_out_of_21() -> None:
    task = task_of()
    assert task.prompt_length + task.answer_length == 51
    assert len(task.tokenizer) == 21


def test_the_answer_mask_covers_the_route_and_the_end() -> None:
    task = task_of(depth=3)
    problems = task.sample("train", np.arange(4))
    batch = task.rows(problems)
    assert batch["answer_mask"].sum(dim=1).tolist() == [4] * 4
    assert (batch["input_ids"][batch["answer_mask"]].view(4, 4) == task.answers(problems)).all()
    tokens = task.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    assert tokens[task.prompt_length - 1] == "[ROUTE]"


@pytest.mark.parametrize("targets", [0, 1, 3])
def test_the_tokenizer_reads_the_text_as_the_task_encodes_it(targets: int) -> None:
    task = task_of(targets=targets)
    problems = task.sample("train", np.arange(20))
    ids = task.rows(problems)["input_ids"][:, :-1]
    assert task.tokenizer(task.text(problems))["input_ids"] == ids.tolist()
    assert task.tokenizer.padding_side == "left"


def test_names_are_the_fifteen_letters_of_the_paper() -> None:
    assert LETTERS == "ABCDEFGHIJKLMNO"


def test_the_fingerprint_tells_configurations_apart() -> None:
    settings = [{}, {"depth": 3}, {"targets": 2}, {"shuffle_edges": True}, {"repeat_targets": False}, {"certain": 0.5}]
    prints = [task_of(**each).fingerprint for each in settings]
    assert len(set(prints)) == len(settings)
    assert prints == [task_of(**each).fingerprint for each in settings]


@pytest.mark.parametrize("questions", [1, 3])
def test_a_row_of_several_routes_has_the_tree_once_and_each_route_in_full(questions: int) -> None:
    task = task_of(depth=3)
    problems = task.sample("train", np.arange(5))
    row, own = task.question_rows(problems, questions), task.rows(problems)
    shared = task.prompt_length - 2
    apart = own["input_ids"].shape[1] - shared
    assert {name: tuple(values.shape) for name, values in row.items()} == dict.fromkeys(
        [*own, "question", "position_ids"], (5, shared + questions * apart)
    )
    numbers = [0] * shared + [number for number in range(1, questions + 1) for _ in range(apart)]
    places = [*range(shared), *[*range(shared, shared + apart)] * questions]
    assert row["question"].tolist() == [numbers] * 5
    assert row["position_ids"].tolist() == [places] * 5
    leaves = task.nodes - task.first_leaf
    for number in range(questions):
        asked = task.first_leaf + (problems.leaf_B - task.first_leaf + number) % leaves
        alone = task.rows(replace(problems, targets_BA=asked[:, None], leaf_B=asked))
        for name, values in alone.items():
            start = shared + number * apart
            assert torch.equal(row[name][:, :shared], values[:, :shared])
            assert torch.equal(row[name][:, start : start + apart], values[:, shared:])
