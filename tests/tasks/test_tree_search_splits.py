"""Sample i is a pure function of (config, seed, split, i), and no tree is in two splits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from printed_trees import read_printed
from settings_checks import check_defaults

from unspoken.tasks import TreeProblems, TreeSearchConfig, TreeSearchTask
from unspoken.tasks.tree_search import FIRST_LETTER, LETTERS

SPLITS: tuple[str, ...] = ("train", "validation", "test")


def rows(problems: TreeProblems) -> list[tuple[tuple[int, ...], ...]]:
    """Everything about each problem, comparable."""
    return [
        (tuple(names), tuple(targets), (int(leaf),), tuple(edges))
        for names, targets, leaf, edges in zip(
            problems.names_BM.tolist(),
            problems.targets_BA.tolist(),
            problems.leaf_B,
            problems.edges_BE.tolist(),
            strict=True,
        )
    ]


def swapped(names: NDArray[np.int64], node: int) -> NDArray[np.int64]:
    """The same tree with the two subtrees below a node exchanged: a brute-force walk over both."""
    result = names.copy()
    pairs = [(2 * node + 1, 2 * node + 2)]
    while pairs:
        left, right = pairs.pop()
        if left < len(names):
            result[left], result[right] = names[right], names[left]
            pairs += [(2 * left + 1, 2 * right + 1), (2 * left + 2, 2 * right + 2)]
    return result


@pytest.mark.parametrize(
    "config",
    [
        TreeSearchConfig(),
        TreeSearchConfig(depth=3, shuffle_edges=True, targets=3),
        TreeSearchConfig(depth=2, targets=0),
    ],
    ids=["paper", "shuffled", "no target"],
)
@pytest.mark.parametrize("split", SPLITS)
def test_order_and_batching_change_nothing(config: TreeSearchConfig, split: str) -> None:
    task = config.build()
    full = rows(task.sample(split, np.arange(100), seed=3))
    order = np.random.default_rng(0).permutation(100)
    assert rows(task.sample(split, order, seed=3)) == [full[i] for i in order]
    singles = [rows(task.sample(split, np.array([i]), seed=3))[0] for i in range(100)]
    assert singles == full
    # Twice the same index in one batch, and another object that never made anything before.
    assert rows(config.build().sample(split, np.array([7, 7, 99]), seed=3)) == [full[7], full[7], full[99]]


def test_an_empty_batch_is_empty() -> None:
    assert len(TreeSearchConfig().build().sample("train", np.array([], dtype=np.int64))) == 0


def test_seeds_splits_and_indices_give_different_problems() -> None:
    task = TreeSearchConfig().build()
    made = [rows(task.sample(split, np.arange(300), seed)) for split in SPLITS for seed in range(3)]
    assert len(set(itertools.chain.from_iterable(made))) == 9 * 300


def test_large_indices_are_samples_too() -> None:
    task = TreeSearchConfig().build()
    made = rows(task.sample("train", np.array([0, 10**6, 10**12, 2**62])))
    assert len(set(made)) == 4


@pytest.mark.parametrize(("depth", "count"), [(2, 20_000), (3, 20_000), (4, 20_000)])
def test_no_tree_is_in_two_splits(depth: int, count: int) -> None:
    task = TreeSearchConfig(depth=depth, shuffle_edges=True).build()
    trees: dict[str, set[frozenset[tuple[str, str]]]] = {}
    for split in SPLITS:
        # Validation and test problems of several seeds, since a run's seed must not leak them into training either.
        problems = [task.sample(split, np.arange(count // 2), seed) for seed in (0, 1)]
        trees[split] = {read_printed(text).shape for piece in problems for text in task.text(piece)}
    for first, second in itertools.combinations(SPLITS, 2):
        assert not trees[first] & trees[second], (first, second)


def test_the_splits_of_all_small_trees_share_them_out() -> None:
    # All 15 * C(14, 2) trees of depth 2: each is in exactly one split, about one in sixteen for test.
    task = TreeSearchConfig(depth=2).build()
    names = np.array(
        [[a, b, c] for a in range(15) for b, c in itertools.combinations([x for x in range(15) if x != a], 2)]
    )
    member = np.stack([task._splits_of(names + FIRST_LETTER, split) for split in SPLITS])
    assert (member.sum(axis=0) == 1).all()
    shares = member.mean(axis=1)
    assert abs(shares[0] - 14 / 16) < 0.04
    assert abs(shares[1] - 1 / 16) < 0.025
    assert abs(shares[2] - 1 / 16) < 0.025
    assert len(set(task.tree_hash(names + FIRST_LETTER).tolist())) == len(names)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_hash_is_blind_to_the_order_of_children(depth: int) -> None:
    task = TreeSearchConfig(depth=depth).build()
    names = task.sample("train", np.arange(50)).names_BM
    before = task.tree_hash(names)
    for node in range(task.first_leaf):
        after = np.stack([swapped(row, node) for row in names])
        assert not (after == names).all(axis=1).any()
        assert (task.tree_hash(after) == before).all()


def test_the_hash_is_blind_to_the_order_of_edges() -> None:
    task = TreeSearchConfig(depth=3).build()
    problems = task.sample("train", np.arange(20))
    generator = np.random.default_rng(0)
    for text, expected in zip(task.questions(problems), task.tree_hash(problems.names_BM), strict=True):
        edges, rest = text.split("[ROOT]")
        shuffled = ",".join(generator.permutation(edges.split(",")).tolist())
        assert task.tree_hash(task.parse(f"{shuffled}[ROOT]{rest}").names_BM)[0] == expected


def test_the_hash_sees_who_is_whose_parent() -> None:
    task = TreeSearchConfig(depth=3).build()
    names = task.sample("train", np.arange(200)).names_BM
    before = task.tree_hash(names)
    exchanged = names.copy()
    exchanged[:, [0, 1]] = exchanged[:, [1, 0]]  # the root and its child
    cousins = names.copy()
    cousins[:, [3, 5]] = cousins[:, [5, 3]]  # two leaves of different parents
    assert not (task.tree_hash(exchanged) == before).any()
    assert not (task.tree_hash(cousins) == before).any()


def test_the_hash_does_not_see_the_target() -> None:
    one, many = TreeSearchConfig(depth=3).build(), TreeSearchConfig(depth=3, targets=3).build()
    # Otherwise a tree could be trained on with one target and tested with another.
    names = one.sample("test", np.arange(50)).names_BM
    assert (many.tree_hash(names) == one.tree_hash(names)).all()
    assert many._splits_of(names, "test").all()


def test_there_are_enough_names_for_the_deepest_tree() -> None:
    assert isinstance(TreeSearchConfig(depth=4).build(), TreeSearchTask)
    assert TreeSearchConfig(depth=4).build().nodes == len(LETTERS)


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(TreeSearchConfig, "recipes.md", prefix="task.")
