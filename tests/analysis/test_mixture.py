"""The two measures of section 5.1 on latents made by hand, whose mixture is known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from printed_trees import read_printed
from torch import Tensor

from unspoken.analysis.mixture import (
    Mixture,
    Siblings,
    all_coefficients,
    measure,
    name_rows,
    plane_coefficients,
    reference_levels,
    siblings,
)
from unspoken.tasks import TreeSearchConfig
from unspoken.tasks.tree_search import FIRST_LETTER, LETTERS

VOCABULARY, WIDTH, NAMES, PLANES = 21, 64, 15, 105


def orthogonal_table() -> Tensor:
    """Rows of different norm and orthogonal directions."""
    rotation, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH))
    return rotation[:VOCABULARY] * torch.rand(VOCABULARY, 1).add(0.5)


def slanted_table() -> Tensor:
    """Rows with a common part: every two of them are at a cosine of about a half."""
    return torch.randn(VOCABULARY, WIDTH) + torch.randn(WIDTH)


def steep_table() -> Tensor:
    """Rows of which every two are at a cosine of about nine tenths."""
    return torch.randn(VOCABULARY, WIDTH) + 3 * torch.randn(WIDTH)


def one(right: int, other: int) -> Siblings:
    return Siblings(right=torch.tensor([[right]]), other=torch.tensor([[other]]))


def plane_distance(latent: Tensor, first: Tensor, second: Tensor) -> float:
    """Distance to the plane of two vectors, by least squares in float64."""
    basis = torch.stack([first, second], dim=1).double()
    solution = torch.linalg.lstsq(basis, latent.double()[:, None]).solution
    return float((basis @ solution - latent.double()[:, None]).norm())


# --- the rank of the sibling plane -----------------------------------------------------------------------------------


def test_a_pure_right_row_shares_the_first_place_with_every_plane_through_it() -> None:
    vectors = orthogonal_table()
    mixture = measure(name_rows(vectors)[3][None, None], vectors, one(3, 8))
    assert mixture.planes == PLANES
    # Fourteen planes hold it, at places 1 to 14: their mean place is M / 2.
    assert float(mixture.rank) == NAMES / 2
    assert float(mixture.rank) / PLANES == pytest.approx(reference_levels(NAMES)["no_sibling"])


@pytest.mark.parametrize("table", [orthogonal_table, slanted_table])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_mixture_of_the_siblings_alone_is_in_their_plane_first(table: Callable[[], Tensor], share: float) -> None:
    vectors = table()
    rows = name_rows(vectors)
    latent = F.normalize(share * rows[3] + (1 - share) * rows[8], dim=-1)
    mixture = measure(latent[None, None], vectors, one(3, 8))
    assert float(mixture.rank) == 1
    assert float(mixture.rank) / PLANES == pytest.approx(reference_levels(NAMES)["true_mixture"])


def test_a_mixture_of_two_others_puts_the_sibling_plane_last() -> None:
    vectors = orthogonal_table()
    rows = name_rows(vectors)
    latent = F.normalize(rows[0] + rows[1], dim=-1)
    # All planes through neither are equally far: C(13, 2) of them share the last places.
    away = 13 * 12 / 2
    assert float(measure(latent[None, None], vectors, one(3, 8)).rank) == PLANES - away + (away + 1) / 2


@pytest.mark.parametrize("table", [orthogonal_table, slanted_table, steep_table])
def test_the_rank_counts_the_planes_that_are_nearer(table: Callable[[], Tensor]) -> None:
    vectors = table()
    rows = name_rows(vectors)
    latents = F.normalize(torch.randn(20, WIDTH) + 3 * rows[2] + 2 * rows[7], dim=-1)
    wanted = Siblings(right=torch.full((20, 1), 7), other=torch.full((20, 1), 2))
    ranks = measure(latents[:, None], vectors, wanted).rank
    for latent, rank in zip(latents, ranks, strict=True):
        distances = [plane_distance(latent, rows[a], rows[b]) for a, b in combinations(range(NAMES), 2)]
        own = plane_distance(latent, rows[2], rows[7])
        assert float(rank) == 1 + sum(distance < own - 1e-6 for distance in distances)


def test_who_is_right_does_not_change_the_rank() -> None:
    vectors = slanted_table()
    latents = F.normalize(torch.randn(1, 1, WIDTH), dim=-1)
    assert measure(latents, vectors, one(3, 8)).rank == measure(latents, vectors, one(8, 3)).rank


# --- the coefficients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [orthogonal_table, slanted_table, steep_table])
def test_coefficients_are_recovered_even_if_rows_are_not_orthogonal(table: Callable[[], Tensor]) -> None:
    vectors = table()
    rows = name_rows(vectors)
    basis, _ = torch.linalg.qr(torch.stack([rows[3], rows[8]], dim=1))
    elsewhere = torch.randn(WIDTH)
    elsewhere = elsewhere - basis @ (basis.T @ elsewhere)
    latent = 0.7 * rows[3] - 0.2 * rows[8] + elsewhere
    mixture = measure(latent[None, None], vectors, one(3, 8))
    assert float(mixture.right) == pytest.approx(0.7, abs=1e-4)
    assert float(mixture.other) == pytest.approx(-0.2, abs=1e-4)


def test_coefficients_are_those_of_least_squares() -> None:
    first, second, latents = (F.normalize(torch.randn(30, WIDTH), dim=-1) for _ in range(3))
    ours = torch.stack(plane_coefficients(latents, first, second), dim=-1)
    theirs = torch.linalg.lstsq(torch.stack([first, second], dim=-1), latents[..., None]).solution[..., 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_coefficients_of_nearly_parallel_vectors_are_those_of_their_difference() -> None:
    # At a cosine of 0.8: their difference.
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.8, 0.6])
    ours = plane_coefficients(torch.tensor([0.2, -0.6]), first, second)
    assert [float(value) for value in ours] == pytest.approx([1.0, -1.0])


def test_all_coefficients_are_exact_for_a_mixture_of_rows() -> None:
    vectors = slanted_table()
    rows = F.normalize(vectors, dim=-1)
    weights = torch.rand(4, 3, VOCABULARY)
    torch.testing.assert_close(all_coefficients(weights @ rows, vectors), weights, rtol=1e-3, atol=1e-3)


# --- who the siblings are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_siblings_are_the_two_children_of_one_printed_parent(depth: int) -> None:
    task = TreeSearchConfig(depth=depth, shuffle_edges=True).build()
    problems = task.sample("test", np.arange(50))
    wanted = siblings(task, problems)
    assert wanted.right.shape == (50, depth - 1)
    for row, text in enumerate(task.text(problems)):
        tree = read_printed(text)
        right = "".join(LETTERS[index] for index in wanted.right[row])
        assert right == tree.route[1:]
        for name, other in zip(right, wanted.other[row], strict=True):
            sibling = LETTERS[int(other)]
            assert sibling != name
            assert tree.parents[sibling] == tree.parents[name]


def test_selecting_siblings_keeps_right_and_other_together() -> None:
    task = TreeSearchConfig(depth=3).build()
    whole = siblings(task, task.sample("test", np.arange(6)))
    part = whole.select(torch.tensor([4, 1]))
    assert torch.equal(part.right, whole.right[[4, 1]])
    assert torch.equal(part.other, whole.other[[4, 1]])


# --- summaries -------------------------------------------------------------------------------------------------------


def test_the_summary_averages_shares_over_nodes_and_tells_inner_nodes_apart() -> None:
    vectors = orthogonal_table()
    rows = name_rows(vectors)
    # Two problems, two steps below the root: a true mixture, then the pure leaf; the second problem is wrong inside.
    latents = torch.stack(
        [
            torch.stack([F.normalize(0.8 * rows[1] + 0.6 * rows[2], dim=-1), rows[3]]),
            torch.stack([F.normalize(0.6 * rows[1] + 0.8 * rows[2], dim=-1), rows[3]]),
        ]
    )
    wanted = Siblings(right=torch.tensor([[1, 3], [1, 3]]), other=torch.tensor([[2, 4], [2, 4]]))
    summary = measure(latents, vectors, wanted).summary()
    assert summary["rank"] == pytest.approx((1 + 7.5) / 2 / PLANES)
    assert summary["rank_inner"] == pytest.approx(1 / PLANES)
    assert summary["rank_steps"] == pytest.approx([1 / PLANES, 7.5 / PLANES])
    assert summary["major"] == pytest.approx(0.75)
    assert summary["major_inner"] == pytest.approx(0.5)
    assert summary["major_steps"] == pytest.approx([0.5, 1.0])
    assert summary["right_inner"] == pytest.approx(0.7, abs=1e-5)
    assert summary["other_inner"] == pytest.approx(0.7, abs=1e-5)
    assert summary["right_steps"] == pytest.approx([0.7, 1.0], abs=1e-5)
    assert summary["other_steps"] == pytest.approx([0.7, 0.0], abs=1e-5)


def test_a_tree_of_two_levels_has_only_leaves_below_its_root() -> None:
    vectors = orthogonal_table()
    summary = measure(name_rows(vectors)[1][None, None], vectors, one(1, 2)).summary()
    assert summary["rank_inner"] == summary["rank"]


def test_all_nodes_but_the_leaf_are_inner_ones_and_of_equal_coefficients_none_is_larger() -> None:
    rank, even = torch.tensor([[1.0, 2.0, 9.0]]), torch.full((1, 3), 0.5)
    summary = Mixture(rank=rank, right=even, other=even, planes=10).summary()
    assert (summary["rank_inner"], summary["rank"]) == pytest.approx((0.15, 0.4))
    assert (summary["major"], summary["major_steps"]) == (0.0, [0.0] * 3)


def test_the_reference_levels_are_the_papers_percentages() -> None:
    levels = reference_levels(15)
    assert levels["no_sibling"] == pytest.approx(0.0714, abs=1e-4)
    assert levels["true_mixture"] == pytest.approx(0.0095, abs=1e-4)


def test_name_rows_are_the_directions_of_the_letters_alone() -> None:
    vectors = slanted_table()
    rows = name_rows(vectors)
    assert rows.shape == (NAMES, WIDTH)
    torch.testing.assert_close(rows, F.normalize(vectors[FIRST_LETTER:], dim=-1))
