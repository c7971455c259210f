"""Do mixture coefficients match odds that are known?

In the ambiguous form of tree search the posterior over the next node is known exactly. The optimum of the SST loss is
the posterior mean on the sphere, so a latent's coefficients over the name rows should be proportional to the
probabilities of the names.

Two readings. Teacher-forced: the input has committed to a node, and the truth is the probability of each of its two
children. Rollout: the input holds the model's own mixtures, nothing has committed, and the truth (if the mixture is
carried along) is the marginal probability of every node of the level.

Axes: B problems, S steps below the root, D latent width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unspoken.analysis.mixture import all_coefficients, measure, siblings
from unspoken.analysis.superposition import entropy
from unspoken.tasks import TreeProblems, TreeSearchTask

_NEVER_ZERO = 1e-9


def forced_calibration(
    latents: Float[Tensor, "B S D"], table: Float[Tensor, "V D"], task: TreeSearchTask, problems: TreeProblems
) -> dict[str, Any]:
    """Fraction of the right child within its sibling pair against its true conditional probability.

    Returns:
        Mean absolute error a step and over all (and that of one half everywhere), and the mean reading for every
        distinct true value (the points of the figure).
    """
    nodes = task.route_nodes(problems.leaf_B)
    on_route = np.take_along_axis(task.marginals(problems), nodes, axis=1)
    truth = on_route[:, 1:] / on_route[:, :-1]
    mixture = measure(latents, table, siblings(task, problems))
    right, other = mixture.right.clamp(min=0).double(), mixture.other.clamp(min=0).double()
    fraction = (right / (right + other).clamp(min=_NEVER_ZERO)).numpy()
    # The right child is the one that was drawn, which happens in proportion to its odds; the other child is the same
    # latent seen from the other side, so both are counted with their own truth.
    both_truth, both_fraction = np.concatenate([truth, 1 - truth]), np.concatenate([fraction, 1 - fraction])
    points = []
    for value in np.unique(both_truth.round(4)):
        readings = both_fraction[np.isclose(both_truth, value, atol=1e-3)]
        points.append(
            {
                "truth": float(value),
                "mean": float(readings.mean()),
                "low": float(np.quantile(readings, 0.1)),
                "high": float(np.quantile(readings, 0.9)),
                "count": len(readings),
            }
        )
    error = np.abs(fraction - truth)
    return {
        "error": float(error.mean()),
        "error_steps": error.mean(axis=0).tolist(),
        "uniform_error": float(np.abs(0.5 - truth).mean()),
        "points": points,
    }


def rollout_calibration(
    latents: Float[Tensor, "B S D"], table: Float[Tensor, "V D"], task: TreeSearchTask, problems: TreeProblems
) -> dict[str, Any]:
    """What becomes of the mixture when nothing commits.

    Returns:
        For each step: total-variation distance between the latent's fractions over the level and the true marginals
        (and the same for equal fractions), entropy of both in nats, the largest fraction, and how much of the
        coefficients lies on names outside the level.
    """
    marginals = task.marginals(problems)
    coefficients = all_coefficients(latents, table).clamp(min=0).double().numpy()
    steps = []
    for step in range(latents.shape[1]):
        level = np.arange(2 ** (step + 1) - 1, 2 ** (step + 2) - 1)
        inside = np.take_along_axis(coefficients[:, step], problems.names_BM[:, level], axis=1)
        fractions = inside / np.clip(inside.sum(axis=1, keepdims=True), _NEVER_ZERO, None)
        truth, total = marginals[:, level], coefficients[:, step].sum(axis=1)
        readings = {
            "distance": 0.5 * np.abs(fractions - truth).sum(axis=1),
            "uniform_distance": 0.5 * np.abs(1 / len(level) - truth).sum(axis=1),
            "entropy": entropy(torch.from_numpy(fractions)).numpy(),
            "true_entropy": entropy(torch.from_numpy(truth)).numpy(),
            "largest": fractions.max(axis=1),
            "true_largest": truth.max(axis=1),
            "outside": 1 - inside.sum(axis=1) / np.clip(total, _NEVER_ZERO, None),
        }
        steps.append({key: float(values.mean()) for key, values in readings.items()})
    return {key: [step[key] for step in steps] for key in steps[0]}


def valid_routes(tokens: Int[Tensor, "B M"], task: TreeSearchTask, problems: TreeProblems) -> Bool[Tensor, " B"]:
    """Answers that are a real route from the root to a leaf that can be meant."""
    depth = task.config.depth
    valid = np.zeros(len(problems), dtype=bool)
    if tokens.shape[1] < depth:
        return torch.from_numpy(valid)
    answers, marginals = tokens[:, :depth].numpy(), task.marginals(problems)
    for leaf in range(task.first_leaf, task.nodes):
        route = np.take_along_axis(problems.names_BM, task.route_nodes(np.full(len(problems), leaf)), axis=1)
        valid |= (route == answers).all(axis=1) & (marginals[:, leaf] > 0)
    return torch.from_numpy(valid)
