"""A problem typed by a person is read, or refused with a message that says what is wrong."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from unspoken.tasks import TreeSearchConfig

CONFIGS = [
    TreeSearchConfig(depth=depth, shuffle_edges=shuffle, targets=targets, repeat_targets=repeat)
    for depth, shuffle, targets, repeat in itertools.product((2, 3, 4), (False, True), (0, 1, 2), (False, True))
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_printed_problem_is_read_back(config: TreeSearchConfig) -> None:
    task = config.build()
    for text in task.text(task.sample("test", np.arange(10))):
        again = task.text(task.parse(text.partition("[ROUTE]")[0] + "[ROUTE]"))[0]
        # With several targets the prompt does not say which one was meant.
        if config.targets == 1:
            assert again == text
        assert again.split("[ROUTE]")[0] == text.split("[ROUTE]")[0]


def test_space_around_a_problem_is_ignored() -> None:
    task = TreeSearchConfig(depth=3).build()
    text = task.text(task.sample("test", np.array([0])))[0]
    prompt = text.split("[ROUTE]")[0] + "[ROUTE]"
    assert task.text(task.parse(f"  {prompt}\n"))[0] == text


def test_the_paper_s_own_form_is_read() -> None:
    task = TreeSearchConfig(depth=3).build()
    assert task.text(task.parse("LA,LB,AC,AD,BE,BF[ROOT]L[TARGET]E[ROUTE]"))[0].endswith("[ROUTE]LBE")


@pytest.mark.parametrize(
    ("listed", "leaves", "route"),
    [("", [], "LAC"), ("E", [6], "LBE"), ("FC", [5, 3], "LBF"), ("EE", [6, 6], "LBE"), ("DCFE", [4, 3, 5, 6], "LAD")],
)
def test_leaves_are_read_in_the_order_in_which_they_are_listed(listed: str, leaves: list[int], route: str) -> None:
    task = TreeSearchConfig(depth=3, targets=len(listed)).build()
    problems = task.parse(f" LA,LB,AC,BF,BE,AD[ROOT]L[TARGET]{listed}[ROUTE]\n")
    assert problems.targets_BA.tolist() == [leaves]
    # The first of them is taken for the one at which the route ends; without any, the first of the tree.
    assert task.text(problems) == [f"LA,LB,AC,BF,BE,AD[ROOT]L[TARGET]{listed}[ROUTE]{route}"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a tree-search problem"),
        ("hello", "not a tree-search problem"),
        ("LA,LB,AC,AD,BE,BF[TARGET]E[ROUTE]", "not a tree-search problem"),
        ("LA,LB,AC,AD,BE,BF[ROOT]L[ROUTE]", "not a tree-search problem"),
        ("LA,LB,AC,AD,BE,BF[ROOT]L[TARGET]E", "not a tree-search problem"),
        ("LA,LB,AC,AD,BE,BF[TARGET]E[ROOT]L[ROUTE]", "not a tree-search problem"),
        ("LA,LB,AC,AD,BE,BF,[ROOT]L[TARGET]E[ROUTE]", "edge ''"),
        ("[ROOT]L[TARGET]E[ROUTE]", "edge ''"),
        ("LA,LB,AC,AD,BE,B[ROOT]L[TARGET]E[ROUTE]", "edge 'B'"),
        ("LA,LB,AC,AD,BE,BFG[ROOT]L[TARGET]E[ROUTE]", "edge 'BFG'"),
        ("LA,LB,AC,AD,BE,BZ[ROOT]L[TARGET]E[ROUTE]", "edge 'BZ'"),
        ("la,lb,ac,ad,be,bf[ROOT]l[TARGET]e[ROUTE]", "edge 'la'"),
        ("LA, LB,AC,AD,BE,BF[ROOT]L[TARGET]E[ROUTE]", "edge ' LB'"),
        ("LA,LB,AC,AD,BE[ROOT]L[TARGET]E[ROUTE]", "complete binary tree of 7 nodes"),
        ("LA,LB,AC,AD,BE,BE[ROOT]L[TARGET]E[ROUTE]", "complete binary tree"),
        ("LA,LB,AC,AD,BE,BF,BF[ROOT]L[TARGET]E[ROUTE]", "complete binary tree"),
        ("LA,LB,AC,AD,BE,BC[ROOT]L[TARGET]E[ROUTE]", "complete binary tree"),
        ("LA,AL,AC,AD,BE,BF[ROOT]L[TARGET]E[ROUTE]", "complete binary tree"),
        ("LL,LB,AC,AD,BE,BF[ROOT]L[TARGET]E[ROUTE]", "complete binary tree"),
        ("LA,LB,AC,AD,BE,BF[ROOT]A[TARGET]E[ROUTE]", "below root 'A'"),
        ("LA,LB,AC,AD,BE,BF[ROOT][TARGET]E[ROUTE]", "below root ''"),
        ("LA,LB,AC,AD,BE,BF[ROOT]LA[TARGET]E[ROUTE]", "below root 'LA'"),
        ("LA,LB,AC,AD,CE,CF[ROOT]L[TARGET]E[ROUTE]", "node 'B' has 0 children"),
        ("LA,LB,LC,AD,AE,AF[ROOT]L[TARGET]E[ROUTE]", "node 'L' has 3 children"),
        ("LA,LB,AC,AD,AE,BF[ROOT]L[TARGET]E[ROUTE]", "node 'A' has 3 children"),
        ("LA,LB,AC,AD,BE,BF[ROOT]L[TARGET]B[ROUTE]", "target 'B'"),
        ("LA,LB,AC,AD,BE,BF[ROOT]L[TARGET]O[ROUTE]", "target 'O'"),
        ("LA,LB,AC,AD,BE,BF[ROOT]L[TARGET][ROUTE]", "target ''"),
        ("LA,LB,AC,AD,BE,BF[ROOT]L[TARGET]EF[ROUTE]", "target 'EF'"),
    ],
)
def test_a_malformed_problem_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        TreeSearchConfig(depth=3).build().parse(text)
    assert "\n" not in str(caught.value)


def test_a_target_named_twice_is_refused_where_targets_do_not_repeat() -> None:
    text = "LA,LB,AC,AD,BE,BF[ROOT]L[TARGET]EE[ROUTE]"
    assert TreeSearchConfig(depth=3, targets=2).build().parse(text).targets_BA.tolist() == [[5, 5]]
    with pytest.raises(ValueError, match="target 'EE'"):
        TreeSearchConfig(depth=3, targets=2, repeat_targets=False).build().parse(text)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"depth": 1}, "depth is 1"),
        ({"depth": 5}, "depth is 5"),
        ({"targets": -1}, "targets is -1"),
        ({"depth": 2, "targets": 3, "repeat_targets": False}, "targets is 3"),
        ({"certain": 1.5}, "certain is 1.5; it must be a fraction from 0 to 1"),
        ({"certain": 0.5, "repeat_targets": False}, "certain is 0.5, but repeat_targets is false"),
    ],
)
def test_an_impossible_task_is_refused(settings: dict[str, int], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        TreeSearchConfig(**settings)  # type: ignore[arg-type]
