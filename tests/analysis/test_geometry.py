"""Measures of two clouds: closed forms, plain loops, and what must not change them."""

from __future__ import annotations

import math
from dataclasses import asdict
from statistics import median

import numpy as np
import pytest
import torch
from torch import Tensor

from unspoken.analysis.geometry import (
    effective_rank,
    frechet_distance,
    geometry,
    principal_planes,
    squared_mmd,
)


def cloud(rows: int, width: int) -> Tensor:
    """Rows with a mean and a covariance of their own."""
    mixed = torch.randn(rows, width, dtype=torch.float64) @ torch.randn(width, width, dtype=torch.float64)
    return mixed + torch.randn(width, dtype=torch.float64)


def crosses(scales: list[float]) -> Tensor:
    """A cloud with mean zero and exactly the covariance diag(scale^2)."""
    width = len(scales)
    corners = torch.cat([torch.eye(width, dtype=torch.float64), -torch.eye(width, dtype=torch.float64)])
    return corners * torch.tensor(scales, dtype=torch.float64) * math.sqrt((2 * width - 1) / 2)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]


# --- Frechet distance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
def test_frechet_distance_of_commuting_covariances_has_a_closed_form(turned: bool) -> None:
    first, second, shift = [1.0, 2.0, 0.5], [3.0, 0.1, 0.5], torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    axes = rotation(3) if turned else torch.eye(3, dtype=torch.float64)
    expected = float(shift.square().sum()) + sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
    assert frechet_distance(crosses(first) @ axes, (crosses(second) + shift) @ axes) == pytest.approx(expected)


def test_frechet_distance_uses_the_root_of_the_product_when_covariances_do_not_commute() -> None:
    left, right = cloud(50, 4), cloud(40, 4)
    # The eigenvalues of the plain product, without any symmetric form.
    first, second = np.cov(left.numpy(), rowvar=False), np.cov(right.numpy(), rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    means = ((left.mean(dim=0) - right.mean(dim=0)) ** 2).sum().item()
    expected = means + np.trace(first) + np.trace(second) - 2 * roots
    assert frechet_distance(left, right) == pytest.approx(expected)
    assert frechet_distance(right, left) == pytest.approx(expected)


def test_equal_clouds_are_at_no_frechet_distance_even_if_they_are_flat() -> None:
    rows = cloud(6, 10)
    assert frechet_distance(rows, rows.flip(0)) == pytest.approx(0, abs=1e-5)


def test_the_covariance_of_many_rows_is_the_same_as_of_parts_of_them() -> None:
    # More rows than one part of the sum holds.
    left, right = cloud(20_000, 3), cloud(9_000, 3)
    first, second = np.cov(left.numpy(), rowvar=False), np.cov(right.numpy(), rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    means = ((left.mean(dim=0) - right.mean(dim=0)) ** 2).sum().item()
    expected = means + np.trace(first) + np.trace(second) - 2 * roots
    assert frechet_distance(left, right) == pytest.approx(expected)


# --- maximum mean discrepancy ----------------------------------------------------------------------------------------


def test_squared_mmd_is_that_of_plain_loops() -> None:
    left, right = cloud(7, 3).numpy(), (cloud(6, 3) + 1).numpy()
    pooled = [*left, *right]
    distances = [float(np.linalg.norm(a - b)) for place, a in enumerate(pooled) for b in pooled[place + 1 :]]
    assert len(distances) == 78
    # torch takes the lower of the two middle values.
    middle = sorted(distances)[38]
    assert middle <= median(distances)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-float(((a - b) ** 2).sum()) / (2 * middle**2))

    def within(rows: np.ndarray) -> float:
        values = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(values) / len(values)

    across = [kernel(a, b) for a in left for b in right]
    expected = within(left) + within(right) - 2 * sum(across) / len(across)
    assert squared_mmd(torch.from_numpy(left), torch.from_numpy(right)) == pytest.approx(expected)


def test_squared_mmd_of_one_distribution_is_zero_on_average() -> None:
    values = [squared_mmd(torch.randn(40, 3), torch.randn(40, 3)) for _ in range(200)]
    error = float(np.std(values)) / math.sqrt(200)
    # An estimator that kept a row's kernel with itself would stand near 2 (1 - mean kernel) / 40, far away.
    assert abs(float(np.mean(values))) < 4 * error
    assert error < 0.001
    assert min(values) < 0


def test_squared_mmd_of_one_cloud_with_itself_is_nearly_zero_and_of_distant_ones_is_large() -> None:
    rows = torch.randn(200, 5)
    assert squared_mmd(rows, rows) == pytest.approx(0, abs=0.01)
    assert squared_mmd(rows, rows + 10) > 0.5


def test_squared_mmd_does_not_depend_on_the_unit() -> None:
    left, right = cloud(30, 4), cloud(20, 4)
    assert squared_mmd(1000 * left, 1000 * right) == pytest.approx(squared_mmd(left, right))


def test_rows_that_mostly_coincide_are_refused() -> None:
    with pytest.raises(ValueError, match="median distance is 0"):
        squared_mmd(torch.ones(10, 3), torch.ones(2, 3) + 1)


# --- effective rank --------------------------------------------------------------------------------------------------


def test_effective_rank_of_an_orthonormal_set_is_its_size_and_of_parallel_rows_is_one() -> None:
    assert effective_rank(rotation(6)[:4]) == pytest.approx(4)
    assert effective_rank(torch.outer(torch.arange(1.0, 9.0), torch.randn(5))) == pytest.approx(1)


def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values_not_of_their_squares() -> None:
    left, right = rotation(5)[:, :2], rotation(3)[:2]
    rows = left @ torch.diag(torch.tensor([6.0, 2.0], dtype=torch.float64)) @ right
    assert effective_rank(rows) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert effective_rank(0.01 * rows) == pytest.approx(effective_rank(rows))


def test_rows_of_zeros_have_no_rank() -> None:
    with pytest.raises(ValueError, match="all zero"):
        effective_rank(torch.zeros(3, 3))


# --- everything together ---------------------------------------------------------------------------------------------


def test_norms_and_cosines_by_hand() -> None:
    embeddings = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    hidden = torch.tensor([[10.0, 0.0], [0.0, 20.0], [0.0, -30.0]])
    found = geometry(embeddings, hidden, seed=0)
    assert found.embedding_norm == pytest.approx(3)
    assert found.hidden_norm == pytest.approx(20)
    cosines = [0.6, 0.8, -0.8, 0.0, 1.0, -1.0]
    assert found.cosine_mean == pytest.approx(np.mean(cosines))
    assert found.cosine_sd == pytest.approx(np.std(cosines, ddof=1))


def test_turning_both_clouds_changes_nothing() -> None:
    embeddings, hidden, turn = cloud(80, 6), 3 * cloud(70, 6), rotation(6)
    plain, turned = (
        asdict(geometry(*pair, seed=0)) for pair in [(embeddings, hidden), (embeddings @ turn, hidden @ turn)]
    )
    assert turned == pytest.approx(plain)


def test_turning_one_cloud_changes_what_compares_the_two_and_nothing_else() -> None:
    embeddings, hidden = cloud(80, 6), cloud(70, 6)
    plain, turned = geometry(embeddings, hidden, seed=0), geometry(embeddings, hidden @ rotation(6), seed=0)
    for name in ("embedding_norm", "hidden_norm", "embedding_rank", "hidden_rank"):
        assert getattr(turned, name) == pytest.approx(getattr(plain, name))
    for name in ("frechet", "mmd", "cosine_mean"):
        assert getattr(turned, name) != pytest.approx(getattr(plain, name), rel=0.01)


def test_only_pairwise_measures_use_a_sample_and_the_seed_chooses_it() -> None:
    # One row more than are used.
    embeddings, hidden = torch.randn(2_001, 2), torch.randn(50, 2)
    one, again, other = (geometry(embeddings, hidden, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.mmd != other.mmd
    assert one.cosine_mean != other.cosine_mean
    for name in ("embedding_norm", "hidden_norm", "frechet", "embedding_rank", "hidden_rank"):
        assert getattr(one, name) == getattr(other, name)


def test_single_precision_agrees_with_double() -> None:
    embeddings, hidden = cloud(80, 6), cloud(70, 6)
    double, single = geometry(embeddings, hidden, seed=0), geometry(embeddings.float(), hidden.float(), seed=0)
    assert asdict(single) == pytest.approx(asdict(double), rel=1e-4)


def test_clouds_that_do_not_compare_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        geometry(torch.randn(5, 3), torch.randn(1, 3), seed=0)
    # The check of shapes, on in tests only, would refuse other widths before the function's own words.
    function = getattr(geometry, "__wrapped__", geometry)
    with pytest.raises(ValueError, match="clouds of width 3 and 4"):
        function(torch.randn(5, 3), torch.randn(5, 4), seed=0)


# --- the picture -----------------------------------------------------------------------------------------------------


def test_the_picture_shows_the_two_widest_directions_of_both_clouds() -> None:
    # One cloud varies along the first axis, the other along the second; the third hardly varies.
    along = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    embeddings = torch.stack([4 * along, 0 * along, 0.1 * along], dim=1)
    hidden = torch.stack([0 * along, 2 * along, -0.1 * along], dim=1)
    plane = principal_planes(embeddings, hidden, seed=0)
    np.testing.assert_allclose(plane.embeddings.abs().numpy(), [[4, 0], [4, 0]], atol=0.1)
    np.testing.assert_allclose(plane.hidden.abs().numpy(), [[0, 2], [0, 2]], atol=0.1)
    total = 2 * 16 + 2 * 4 + 4 * 0.01
    assert plane.explained == pytest.approx((32 / total, 8 / total), abs=1e-3)


def test_flat_clouds_keep_their_distances_in_the_picture() -> None:
    axes, centre = rotation(7)[:2], torch.randn(7, dtype=torch.float64)
    flat = torch.randn(30, 2, dtype=torch.float64)
    plane = principal_planes(flat[:20] @ axes + centre, flat[20:] @ axes + centre, seed=0)
    shown = torch.cat([plane.embeddings, plane.hidden])
    torch.testing.assert_close(torch.pdist(shown), torch.pdist(flat))
    assert sum(plane.explained) == pytest.approx(1)
    assert plane.explained[0] > plane.explained[1]


def test_a_picture_has_at_most_five_hundred_points_of_each() -> None:
    embeddings, hidden = torch.randn(700, 3), torch.randn(40, 3)
    one, again, other = (principal_planes(embeddings, hidden, seed=seed) for seed in (1, 1, 2))
    assert one.embeddings.shape == (500, 2)
    assert one.hidden.shape == (40, 2)
    assert torch.equal(one.embeddings, again.embeddings)
    assert not torch.allclose(one.embeddings.abs(), other.embeddings.abs())


def test_a_cloud_of_five_hundred_points_is_shown_in_its_order() -> None:
    embeddings, hidden = torch.randn(500, 3), torch.randn(40, 3)
    one, other = (principal_planes(embeddings, hidden, seed=seed) for seed in (1, 2))
    assert torch.equal(one.embeddings, other.embeddings)
