"""Grading, drawing, and what is known about the answer before it is given."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from unspoken.tasks import TreeSearchConfig
from unspoken.tasks.tree_search import EOS, PAD


def test_the_right_route_with_its_end_is_right() -> None:
    task = TreeSearchConfig().build()
    problems = task.sample("test", np.arange(6))
    assert task.grade(task.answers(problems), problems).correct.tolist() == [True] * 6


def test_one_wrong_token_anywhere_is_wrong() -> None:
    task = TreeSearchConfig(depth=3).build()
    problems = task.sample("test", np.arange(6))
    for position in range(task.answer_length):
        spoken = task.answers(problems)
        # Another letter in place of a name; a letter in place of the end.
        spoken[:, position] = torch.where(spoken[:, position] == 6, 7, 6)
        assert not task.grade(spoken, problems).correct.any()


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_an_answer_that_stops_early_is_wrong(kept: int) -> None:
    task = TreeSearchConfig(depth=3).build()
    problems = task.sample("test", np.arange(4))
    assert not task.grade(task.answers(problems)[:, :kept], problems).correct.any()


def test_a_route_without_its_end_is_wrong() -> None:
    task = TreeSearchConfig(depth=3).build()
    problems = task.sample("test", np.arange(4))
    spoken = torch.cat([task.answers(problems)[:, :-1], torch.full((4, 3), PAD)], dim=1)
    assert not task.grade(spoken, problems).correct.any()


def test_an_early_end_is_wrong_whatever_follows() -> None:
    task = TreeSearchConfig(depth=3).build()
    problems = task.sample("test", np.arange(4))
    spoken = torch.cat([task.answers(problems)[:, :1], torch.full((4, 1), EOS), task.answers(problems)[:, 1:]], dim=1)
    assert not task.grade(spoken, problems).correct.any()


def test_whatever_follows_the_end_is_ignored() -> None:
    task = TreeSearchConfig(depth=3).build()
    problems = task.sample("test", np.arange(4))
    noise = torch.randint(0, 21, (4, 5))
    assert task.grade(torch.cat([task.answers(problems), noise], dim=1), problems).correct.all()


def test_rows_are_graded_on_their_own() -> None:
    task = TreeSearchConfig(depth=3).build()
    problems = task.sample("test", np.arange(5))
    spoken = task.answers(problems)
    spoken[2] = spoken[3]
    assert task.grade(spoken, problems).correct.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_drawing_shows_every_name_once_and_brackets_the_route(depth: int) -> None:
    task = TreeSearchConfig(depth=depth).build()
    problems = task.sample("test", np.arange(20))
    for row, text in enumerate(task.text(problems)):
        drawing = task.draw(problems, row)
        names = sorted(character for character in drawing if character.isalpha())
        assert names == sorted(set(text.split("[ROOT]")[0]) - {","})
        bracketed = [drawing[index + 1] for index, character in enumerate(drawing) if character == "["]
        assert "".join(bracketed) == text.split("[ROUTE]")[1]
        assert drawing.count("]") == depth
        assert len(drawing.splitlines()) == 2 * depth - 1


def test_a_drawing_puts_every_child_under_its_own_parent() -> None:
    task = TreeSearchConfig().build()
    problems = task.sample("test", np.arange(10))
    for row in range(10):
        levels = task.draw(problems, row).splitlines()[::2]
        places = [[index for index, character in enumerate(line) if character.isalpha()] for line in levels]
        for above, below in pairwise(places):
            nearest = [min(range(len(above)), key=lambda parent: abs(above[parent] - index)) for index in below]
            assert nearest == [child // 2 for child in range(len(below))]


def test_an_ambiguous_problem_is_drawn_without_a_route() -> None:
    task = TreeSearchConfig(targets=3).build()
    assert "[" not in task.draw(task.sample("test", np.arange(1)))


@pytest.mark.parametrize("targets", [0, 1, 2, 3])
def test_marginals_sum_to_one_on_every_level(targets: int) -> None:
    task = TreeSearchConfig(targets=targets).build()
    mass = task.marginals(task.sample("test", np.arange(50)))
    for level in range(4):
        assert np.allclose(mass[:, 2**level - 1 : 2 ** (level + 1) - 1].sum(axis=1), 1)


def test_with_one_target_the_answer_is_certain() -> None:
    task = TreeSearchConfig().build()
    problems = task.sample("test", np.arange(50))
    on_route = np.zeros((50, task.nodes))
    np.put_along_axis(on_route, task.route_nodes(problems.leaf_B), 1, axis=1)
    assert (task.marginals(problems) == on_route).all()


@pytest.mark.parametrize("targets", [0, 2, 3])
@pytest.mark.parametrize("repeat", [True, False])
def test_nodes_are_on_the_route_as_often_as_their_marginal_says(targets: int, repeat: bool) -> None:
    task = TreeSearchConfig(targets=targets, repeat_targets=repeat).build()
    problems = task.sample("train", np.arange(20_000))
    mass = task.marginals(problems)
    on_route = np.zeros(mass.shape)
    np.put_along_axis(on_route, task.route_nodes(problems.leaf_B), 1, axis=1)
    for value in np.unique(mass.round(6)):
        chosen = np.isclose(mass, value)
        # Five standard errors; none at the certain ends.
        tolerance = 5 * np.sqrt(value * (1 - value) / chosen.sum()) + 1e-9
        assert abs(on_route[chosen].mean() - value) <= tolerance


def test_a_leaf_that_is_listed_twice_is_twice_as_likely() -> None:
    task = TreeSearchConfig(depth=3, targets=3).build()
    problems = task.parse("LA,LB,AC,AD,BE,BF[ROOT]L[TARGET]CEC[ROUTE]")
    # L, A, B, C, D, E, F
    assert np.allclose(task.marginals(problems), [[1, 2 / 3, 1 / 3, 2 / 3, 0, 1 / 3, 0]])


@pytest.mark.parametrize("targets", [2, 3])
def test_the_place_in_the_list_says_nothing_about_the_answer(targets: int) -> None:
    task = TreeSearchConfig(targets=targets, repeat_targets=False).build()
    problems = task.sample("train", np.arange(12_000))
    shares = (problems.targets_BA == problems.leaf_B[:, None]).mean(axis=0)
    assert np.abs(shares - 1 / targets).max() < 0.03
