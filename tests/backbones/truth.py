"""What is right, found without the library: whole rows, one at a time, through the model as transformers runs it.

No cache, no padding and no mask of ours take part, and wherever a row is made of tokens alone the model reads its ids.

Axes: T places of a row, D width, V vocabulary, N latents, K entries of a superposition.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Largest relative error of float32 that is still called equal; of what a state was carried to step by step, where the
# library sums in another order than for a whole row; and of gradients, which add up many more numbers.
CLOSE, CLOSE_STEPS, CLOSE_GRADIENT = 3e-4, 3e-3, 1e-2


@dataclass
class Agreement:
    """The largest relative error of every comparison, by its name."""

    errors: dict[str, float] = field(default_factory=dict)

    def note(self, check: str, error: float) -> None:
        """Keep the worst error of a check; what is not a number is infinitely wrong."""
        error = float("inf") if math.isnan(error) else error
        self.errors[check] = max(self.errors.get(check, 0.0), error)

    def compare(self, check: str, found: Tensor, true: Tensor) -> None:
        """Largest difference over the largest true number."""
        self.note(check, relative(found, true))

    def steps(self, check: str, error: float) -> None:
        """The error of what was computed step by step, scaled so that ``CLOSE`` bounds it too."""
        self.note(check, error * CLOSE / CLOSE_STEPS)

    def gradients(self, check: str, found: dict[str, Tensor], true: dict[str, Tensor]) -> None:
        """Distance of two gradients over the length of the true one, scaled so that ``CLOSE`` bounds it too."""
        assert found, "nothing was trained"
        distance = torch.stack([(found[name] - true[name]).norm() for name in found]).norm()
        length = torch.stack([true[name].norm() for name in found]).norm()
        self.note(check, float(distance / length) * CLOSE / CLOSE_GRADIENT)

    @property
    def wrong(self) -> dict[str, float]:
        """The checks that failed."""
        return {check: error for check, error in self.errors.items() if error > CLOSE}


def relative(found: Tensor, true: Tensor) -> float:
    """Largest difference over the largest true number; infinite where shapes differ or a number is none."""
    found, true = found.detach().float(), true.detach().float()
    if found.shape != true.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return ((found - true).abs().max() / true.abs().max().clamp(min=1e-6)).item() if true.numel() else 0.0


def table(truth: PreTrainedModel, ids: Tensor) -> Tensor:
    """What tokens become before the first block."""
    rows: Tensor = truth.get_input_embeddings()(ids)
    return rows


def scores(truth: PreTrainedModel, row: Tensor, seen: Tensor | None = None) -> Tensor:
    """Scores ``[T, V]`` of the token after each place of a row, which is ``[T]`` ids or ``[T, D]`` vectors.

    Args:
        seen: ``[T]``, false at places that no other may see, as if they were padding; their positions count.
    """
    logits: Tensor = truth(**_one(truth, row, seen)).logits
    return logits[0].float()


def hidden(truth: PreTrainedModel, row: Tensor, seen: Tensor | None = None) -> Tensor:
    """Outputs ``[T, D]`` of the last block, as the head is given them."""
    states: Tensor = truth.base_model(**_one(truth.base_model, row, seen)).last_hidden_state
    return states[0]


def _one(model: nn.Module, row: Tensor, seen: Tensor | None) -> dict[str, Any]:
    # Some models scale what they are given in place.
    given = {"inputs_embeds": row[None].clone()} if row.is_floating_point() else {"input_ids": row[None]}
    if seen is not None and not bool(seen.all()):
        given["attention_mask"] = seen.long()[None]
        if "position_ids" in inspect.signature(model.forward).parameters:
            given["position_ids"] = torch.arange(len(row))[None]
    return {**given, "use_cache": False}


def superposition(truth: PreTrainedModel, scores_V: Tensor, top_k: int) -> Tensor:
    """The mixture ``[D]`` of the rows of the k likeliest tokens, weighted by their probabilities among themselves."""
    values, ids = scores_V.topk(top_k)
    mixed: Tensor = values.softmax(dim=-1) @ table(truth, ids)
    return mixed


def mixture_error(scores_V: Tensor, weights_K: Tensor, ids_K: Tensor) -> float:
    """How far a superposition is from the softmax of the k best of these scores.

    The larger of two numbers: the total variation of the weights, and how much worse the chosen tokens score than
    the best ones (two tokens that score alike may change places), relative to the largest score.
    """
    scores_V = scores_V.detach()
    best = scores_V.topk(len(ids_K)).values
    chosen = scores_V[ids_K]
    variation = (chosen.softmax(dim=-1) - weights_K.float()).abs().sum() / 2
    worse = (best - chosen.sort(descending=True).values).abs().max() / scores_V.abs().max()
    return max(variation.item(), worse.item())


def gradient_of(value: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient by each parameter, zero where there is none."""
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(parameters.items(), found, strict=True)
    }
