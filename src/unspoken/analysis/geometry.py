"""Are hidden states where token embeddings are? (Latent-SFT, arXiv 2510.15522, preliminary experiments)

A method that feeds hidden states back as inputs assumes that they look like rows of the embedding table. These are the
paper's measures of how far they do not, and the effective rank of rows and states. The paper does not give estimators;
ours are named with each function.

Axes: V vocabulary, N hidden states, D width, P and Q points of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unspoken.analysis.superposition import entropy

_SAMPLE = 2_000
_PICTURE = 500


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Two clouds of vectors, compared."""

    # embedding_norm, hidden_norm: mean L2 norm
    embedding_norm: float
    hidden_norm: float
    frechet: float  # `frechet_distance`
    mmd: float  # `squared_mmd` of at most 2,000 rows each
    # cosine_mean, cosine_sd: over the pairs of an embedding and a hidden state out of the same rows
    cosine_mean: float
    cosine_sd: float
    # embedding_rank, hidden_rank: `effective_rank`
    embedding_rank: float
    hidden_rank: float


@dataclass(frozen=True, kw_only=True)
class PrincipalPlane:
    """Two clouds on one plane, for a picture."""

    # embeddings, hidden: coordinates on the two main axes
    embeddings: Float[Tensor, "P 2"]
    hidden: Float[Tensor, "Q 2"]
    explained: tuple[float, float]  # share of the variance on each axis


def geometry(embeddings: Float[Tensor, "V D"], hidden: Float[Tensor, "N D"], *, seed: int) -> Geometry:
    """Every measure of the two clouds.

    Args:
        embeddings: rows of the input table.
        hidden: last hidden states.
        seed: of the choice of rows where not all are used.

    Raises:
        ValueError: clouds of different width or with fewer than two rows, or rows that mostly coincide.
    """
    _check(embeddings, hidden)
    generator = torch.Generator().manual_seed(seed)
    some_embeddings, some_hidden = (_sample(rows, _SAMPLE, generator).double() for rows in (embeddings, hidden))
    cosine = F.normalize(some_embeddings, dim=-1) @ F.normalize(some_hidden, dim=-1).T
    norms = [float(torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64).mean()) for rows in (embeddings, hidden)]
    return Geometry(
        embedding_norm=norms[0],
        hidden_norm=norms[1],
        frechet=frechet_distance(embeddings, hidden),
        mmd=squared_mmd(some_embeddings, some_hidden),
        cosine_mean=float(cosine.mean()),
        cosine_sd=float(cosine.std()),
        embedding_rank=effective_rank(embeddings),
        hidden_rank=effective_rank(hidden),
    )


def principal_planes(embeddings: Float[Tensor, "V D"], hidden: Float[Tensor, "N D"], *, seed: int) -> PrincipalPlane:
    """Both clouds on the plane of most variance of the two together, at most 500 rows each; signs mean nothing.

    The seed is of the choice of rows where not all are used.

    Raises:
        ValueError: clouds of different width or with fewer than two rows.
    """
    _check(embeddings, hidden)
    generator = torch.Generator().manual_seed(seed)
    (at_embeddings, at_hidden), explained = on_main_plane(
        [_sample(rows, _PICTURE, generator) for rows in (embeddings, hidden)]
    )
    return PrincipalPlane(embeddings=at_embeddings, hidden=at_hidden, explained=explained)


def on_main_plane(clouds: Sequence[Float[Tensor, "_ D"]]) -> tuple[list[Float[Tensor, "_ 2"]], tuple[float, float]]:
    """Clouds on the plane of most variance of all of them together, and the share of the variance on each axis."""
    pooled = torch.cat([cloud.double() for cloud in clouds])
    pooled = pooled - pooled.mean(dim=0)
    _, spread, axes = torch.linalg.svd(pooled, full_matrices=False)
    first, second = (spread**2 / (spread**2).sum())[:2].tolist()
    return list((pooled @ axes[:2].T).split([len(cloud) for cloud in clouds])), (first, second)


def frechet_distance(left: Float[Tensor, "V D"], right: Float[Tensor, "N D"]) -> float:
    """Squared Frechet distance of the Gaussians that fit two clouds (unbiased covariances).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``; the last trace is that of the root of the symmetric
    ``C1^(1/2) C2 C1^(1/2)``, which has the same eigenvalues.

    Raises:
        ValueError: clouds of different width or with fewer than two rows.
    """
    _check(left, right)
    (mean_1, covariance_1), (mean_2, covariance_2) = _fit(left), _fit(right)
    root_1 = _root(covariance_1)
    overlap = torch.linalg.eigvalsh(root_1 @ covariance_2 @ root_1).clamp(min=0).sqrt().sum()
    distance = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * overlap
    # Rounding takes equal clouds a little below zero.
    return float(distance.clamp(min=0))


def squared_mmd(left: Float[Tensor, "V D"], right: Float[Tensor, "N D"]) -> float:
    """Squared maximum mean discrepancy, unbiased, so a little below zero at times (Gretton et al., 2012, lemma 6).

    The kernel is ``exp(-d^2 / (2 s^2))`` with s the median distance between two rows of the pooled clouds.

    Raises:
        ValueError: clouds of different width or with fewer than two rows, or a median distance of zero.
    """
    _check(left, right)
    # One number a pair of different rows: a row's kernel with itself would bias the means.
    distances = torch.pdist(torch.cat([left, right]).double())
    bandwidth = distances.median()
    if bandwidth == 0:
        raise ValueError("at least half of the pairs of rows coincide, so the median distance is 0; drop repeated rows")
    first, second = len(left), len(right)
    above = torch.ones(first + second, first + second, dtype=torch.bool, device=distances.device).triu(diagonal=1)
    kernel = torch.zeros(above.shape, dtype=torch.float64, device=distances.device)
    kernel[above] = torch.exp(-distances.square() / (2 * bandwidth**2))
    within_first = kernel[:first, :first].sum() / (first * (first - 1) / 2)
    within_second = kernel[first:, first:].sum() / (second * (second - 1) / 2)
    return float(within_first + within_second - 2 * kernel[:first, first:].mean())


def effective_rank(rows: Float[Tensor, "N D"]) -> float:
    """Exp of the entropy of the singular values, scaled to sum to one (Roy and Vetterli, 2007); rows are not centred.

    Raises:
        ValueError: every entry is zero.
    """
    values = torch.linalg.svdvals(rows.double())
    if not values.sum() > 0:
        raise ValueError("effective rank of rows that are all zero is undefined; check that the tensor was filled")
    return float(entropy(values / values.sum()).exp())


def _check(left: Tensor, right: Tensor) -> None:
    if left.shape[-1] != right.shape[-1]:
        raise ValueError(f"clouds of width {left.shape[-1]} and {right.shape[-1]}; take both from one model")
    if min(len(left), len(right)) < 2:
        raise ValueError(f"clouds of {len(left)} and {len(right)} rows; each needs at least 2")


def _sample(rows: Float[Tensor, "N D"], most: int, generator: torch.Generator) -> Float[Tensor, "_ D"]:
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:most].to(rows.device)]


def _fit(rows: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]]:
    """Mean and unbiased covariance in float64."""
    mean = rows.mean(dim=0, dtype=torch.float64)
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    # In parts, because a whole table in float64 takes gigabytes.
    for rows_at_once in rows.split(8_192):
        centred = rows_at_once.double() - mean
        covariance += centred.T @ centred
    return mean, covariance / (len(rows) - 1)


def _root(matrix: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """Symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
