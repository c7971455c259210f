"""Do mixture coefficients match odds that are known?

In the ambiguous form of tree search the posterior over the next node is known exactly. The optimum of the SST loss is
the posterior mean on the sphere, so a latent's coefficients over the name rows should be proportional to the
probabilities of the names.

Two readings. Teacher-forced: the input has committed to a node, and the truth is the probability of each of its two
children. Rollout: the input holds the model's own mixtures, nothing has committed, and the truth (if the mixture is
carried along) is the marginal probability of every node of the level.

Axes: B problems, S steps below the root, L nodes of a level, D latent width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from unspoken.analysis.mixture import all_coefficients, measure, siblings
from unspoken.tasks import TreeProblems, TreeSearchTask


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    safe = np.clip(shares, 1e-12, 1.0)
    entropy: NDArray[np.float64] = -(shares * np.log(safe)).sum(axis=-1)
    return entropy


def forced_calibration(
    latents: Float[Tensor, "B S D"], table: Float[Tensor, "V D"], task: TreeSearchTask, problems: TreeProblems
) -> dict[str, Any]:
    """Share of the right child within its sibling plane against its true conditional probability.

    Returns:
        Mean absolute error a step and over all (and that of saying one half), and the mean reading for every distinct
        true value (the points of the calibration figure).
    """
    marginals = task.marginals(problems)
    nodes = task.route_nodes(problems.leaf_B)
    at = np.take_along_axis(marginals, nodes, axis=1)
    truth = at[:, 1:] / at[:, :-1]
    mixture = measure(latents, table, siblings(task, problems))
    right, other = mixture.right.clamp(min=0).double(), mixture.other.clamp(min=0).double()
    share = (right / (right + other).clamp(min=1e-9)).numpy()
    # The right child is the one that was drawn, which happens in proportion to its odds; the other child is the same
    # latent seen from the other side, so both are counted with their own truth.
    both_truth, both_share = np.concatenate([truth, 1 - truth]), np.concatenate([share, 1 - share])
    points = []
    for value in np.unique(both_truth.round(4)):
        chosen = np.isclose(both_truth, value, atol=1e-3)
        readings = both_share[chosen]
        points.append(
            {
                "truth": float(value),
                "mean": float(readings.mean()),
                "low": float(np.quantile(readings, 0.1)),
                "high": float(np.quantile(readings, 0.9)),
                "count": int(chosen.sum()),
            }
        )
    return {
        "error": float(np.abs(share - truth).mean()),
        "error_steps": np.abs(share - truth).mean(axis=0).tolist(),
        "uniform_error": float(np.abs(0.5 - truth).mean()),
        "points": points,
    }


def rollout_calibration(
    latents: Float[Tensor, "B S D"], table: Float[Tensor, "V D"], task: TreeSearchTask, problems: TreeProblems
) -> dict[str, Any]:
    """What becomes of the mixture when nothing commits, a step at a time.

    Returns:
        For each step: total-variation distance between the latent's shares over the level and the true marginals (and
        the same for uniform shares), entropy of both in nats, the largest share, and the part of the coefficients
        that lies on names outside the level.
    """
    marginals = task.marginals(problems)
    coefficients = all_coefficients(latents, table).clamp(min=0).double().numpy()
    found: dict[str, list[float]] = {
        key: []
        for key in ("distance", "uniform_distance", "entropy", "true_entropy", "largest", "true_largest", "outside")
    }
    for step in range(latents.shape[1]):
        level = np.arange(2 ** (step + 1) - 1, 2 ** (step + 2) - 1)
        inside = np.take_along_axis(coefficients[:, step], problems.names_BM[:, level], axis=1)
        shares = inside / np.clip(inside.sum(axis=1, keepdims=True), 1e-9, None)
        truth = marginals[:, level]
        found["distance"].append(float(0.5 * np.abs(shares - truth).sum(axis=1).mean()))
        found["uniform_distance"].append(float(0.5 * np.abs(1 / len(level) - truth).sum(axis=1).mean()))
        found["entropy"].append(float(_entropy(shares).mean()))
        found["true_entropy"].append(float(_entropy(truth).mean()))
        found["largest"].append(float(shares.max(axis=1).mean()))
        found["true_largest"].append(float(truth.max(axis=1).mean()))
        total = coefficients[:, step].sum(axis=1)
        found["outside"].append(float((1 - inside.sum(axis=1) / np.clip(total, 1e-9, None)).mean()))
    return dict(found)


def valid_routes(spoken: Tensor, task: TreeSearchTask, problems: TreeProblems) -> Tensor:
    """Rows ``[B]`` whose words are a real route from the root to a leaf that can be meant."""
    names, depth = problems.names_BM, task.config.depth
    said = spoken[:, :depth].numpy()
    good = np.zeros(len(problems), dtype=bool)
    leaves = np.arange(task.first_leaf, task.nodes)
    possible = task.marginals(problems)[:, leaves] > 0
    for column, leaf in enumerate(leaves):
        route = task.route_nodes(np.full(len(problems), leaf))
        if said.shape[1] == depth:
            good |= (np.take_along_axis(names, route, axis=1) == said).all(axis=1) & possible[:, column]
    return torch.from_numpy(good)
