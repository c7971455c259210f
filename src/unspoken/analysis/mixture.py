"""Are latents mixtures of sibling nodes? (JEPA-Reasoner, section 5.1, "mixed latents")

Every predicted latent but the root's has a right node and its sibling, the other child of the same parent. Two
measures: the rank of the sibling plane among the planes of all pairs of names, by distance to the latent, and the two
coefficients of the latent's projection on the sibling plane.

Reference levels of the rank, with M names: a latent that equals the right row lies in M - 1 planes at once, so its
sibling plane is on average the (M / 2)-th of M (M - 1) / 2 (7.1 % with fifteen names); a latent that is a mixture of
the two siblings alone is in one plane only, the first (0.95 %).

Axes: B problems, S steps that have a sibling, D latent width, M names, P pairs of names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.placement import moved
from unspoken.tasks import TreeProblems, TreeSearchTask
from unspoken.tasks.tree_search import FIRST_LETTER, LETTERS


@dataclass(frozen=True, kw_only=True)
class Siblings:
    """For each step below the root: the right name, the other child's name, as rows of the name table ``[B, S]``."""

    right: Int[Tensor, "B S"]
    other: Int[Tensor, "B S"]

    def select(self, rows: Tensor) -> Siblings:
        """Those of some problems."""
        return Siblings(right=self.right[rows], other=self.other[rows])


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Measures of every latent below the root."""

    # Of the sibling plane among all planes, 1 for the nearest; equal distances have their mean rank.
    rank: Float[Tensor, "B S"]
    # right, other: coefficients of the projection on the sibling plane
    right: Float[Tensor, "B S"]
    other: Float[Tensor, "B S"]
    planes: int  # number of planes

    def summary(self) -> dict[str, object]:
        """Means for tables: over all nodes, over inner nodes alone (the leaf is named in the prompt), and a step."""
        major = (self.right > self.other).double()
        rank = self.rank.double() / self.planes
        steps = self.rank.shape[1]
        inner = slice(0, max(steps - 1, 1))
        return {
            "rank": float(rank.mean()),
            "rank_inner": float(rank[:, inner].mean()),
            "rank_steps": rank.mean(dim=0).tolist(),
            "major": float(major.mean()),
            "major_inner": float(major[:, inner].mean()),
            "major_steps": major.mean(dim=0).tolist(),
            "right_steps": self.right.double().mean(dim=0).tolist(),
            "other_steps": self.other.double().mean(dim=0).tolist(),
            "other_inner": float(self.other[:, inner].double().mean()),
            "right_inner": float(self.right[:, inner].double().mean()),
        }


def siblings(task: TreeSearchTask, problems: TreeProblems) -> Siblings:
    """Who the siblings are along each route, the root left out."""
    nodes = task.route_nodes(problems.leaf_B)[:, 1:]
    others = np.where(nodes % 2 == 1, nodes + 1, nodes - 1)
    names = problems.names_BM - FIRST_LETTER
    return Siblings(
        right=torch.from_numpy(np.take_along_axis(names, nodes, axis=1)),
        other=torch.from_numpy(np.take_along_axis(names, others, axis=1)),
    )


def name_rows(table: Float[Tensor, "V D"]) -> Float[Tensor, "M D"]:
    """Directions of the names in a table over the whole vocabulary."""
    return F.normalize(table[FIRST_LETTER : FIRST_LETTER + len(LETTERS)].float(), dim=-1)


def plane_coefficients(
    latents: Float[Tensor, "*N D"], first: Float[Tensor, "*N D"], second: Float[Tensor, "*N D"]
) -> tuple[Tensor, Tensor]:
    """Coefficients of the projection on the plane of two unit vectors (least squares)."""
    cosine = (first * second).sum(dim=-1)
    along_first, along_second = (latents * first).sum(dim=-1), (latents * second).sum(dim=-1)
    determinant = (1 - cosine**2).clamp(min=1e-9)
    return (along_first - cosine * along_second) / determinant, (along_second - cosine * along_first) / determinant


def measure(latents: Float[Tensor, "B S D"], table: Float[Tensor, "V D"], expected: Siblings) -> Mixture:
    """Rank of the sibling plane and the two coefficients, for latents of the steps below the root.

    Measured where the latents are, wherever the table is.
    """
    rows = moved(name_rows(table), latents.device)
    left, right = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    cosine = (rows @ rows.T)[left, right]
    along = latents.float() @ rows.T
    first, second = along[..., left], along[..., right]
    # Squared length of the projection: the larger it is, the nearer is the plane to a unit vector.
    energy = (first**2 + second**2 - 2 * cosine * first * second) / (1 - cosine**2).clamp(min=1e-9)
    low, high = torch.minimum(expected.right, expected.other), torch.maximum(expected.right, expected.other)
    position = torch.zeros(len(rows), len(rows), dtype=torch.long, device=rows.device)
    position[left, right] = torch.arange(len(left), device=rows.device)
    own = energy.gather(-1, position[low, high][..., None])
    tolerance = 1e-6
    nearer = (energy > own + tolerance).sum(dim=-1)
    equal = ((energy - own).abs() <= tolerance).sum(dim=-1)
    coefficients = plane_coefficients(latents.float(), rows[expected.right], rows[expected.other])
    return Mixture(rank=nearer + (equal + 1) / 2, right=coefficients[0], other=coefficients[1], planes=len(left))


def all_coefficients(latents: Float[Tensor, "*N D"], table: Float[Tensor, "V D"]) -> Float[Tensor, "*N V"]:
    """Least-squares coefficients of latents over every row direction of a table that is wide enough (D >= V).

    Measured where the latents are, wherever the table is.
    """
    rows = F.normalize(moved(table, latents.device).float(), dim=-1)
    return latents.float() @ torch.linalg.pinv(rows)


def reference_levels(names: int) -> dict[str, float]:
    """Rank as a fraction of all planes for a pure latent and for a mixture of the siblings alone."""
    planes = names * (names - 1) / 2
    return {"no_sibling": names / 2 / planes, "true_mixture": 1 / planes}
