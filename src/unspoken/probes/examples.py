"""Which chains of a system are written out in results, and how their latents lie on a plane."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RECORDED = 50  # the first problems, whose chains are written out


def with_first_rows(chosen: Iterable[tuple[str, int]], correct: Sequence[bool]) -> list[tuple[str, int]]:
    """Kind and row of chains: the chosen ones, then the others of the first `RECORDED` problems in their order.

    Args:
        correct: of every problem, whether its answer is right; the kind of those that were not chosen.
    """
    rows: dict[int, str] = {}
    for kind, row in chosen:
        rows.setdefault(row, kind)  # a row that was chosen twice is what it was first
    others = [row for row in range(min(RECORDED, len(correct))) if row not in rows]
    return [(kind, row) for row, kind in rows.items()] + [("right" if correct[row] else "wrong", row) for row in others]


def on_plane(latents: Sequence[Tensor], rows: Tensor) -> tuple[list[list[list[float]]], list[list[float]], list[float]]:
    """Chains ``[N, D]`` and rows ``[R, D]`` on the plane of most variance of all of them together.

    Returns:
        The points of each chain, those of the rows, and the shares of the variance on both axes.
    """
    from unspoken.analysis.geometry import on_main_plane
    from unspoken.placement import CPU, moved

    points, explained = on_main_plane([moved(cloud, CPU).float() for cloud in (*latents, rows)])
    *chains, squares = [_rounded(cloud) for cloud in points]
    return chains, squares, [round(share, 4) for share in explained]


def _rounded(cloud: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in point] for point in cloud.tolist()]
