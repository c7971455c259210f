"""Steps of Soft Thinking: which tokens a mixture holds, noise on their weights, and when the model is certain.

Details as in the published code, eric-ai-lab/Soft-Thinking at b97407c.

Axes: B batch, K entries of a mixture, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unspoken.ranges import require_value
from unspoken.reasoning.causal_lm import CausalLMReasoner
from unspoken.reasoning.engine import LatentStep
from unspoken.reasoning.superposition import embedding_table, heaviest, mix

MixtureNoise = Literal["none", "gumbel", "dirichlet"]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What stays of a distribution: the likeliest ``top_k``, of these as many as reach ``top_p``, and of these no token
    that is less than ``min_p`` times as likely as the first.
    """

    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        require_value(self, "top_k", lambda value: value is None or value >= 1, "at least 1, or None for all tokens")
        require_value(self, "top_p", lambda value: 0 < value <= 1, "above 0 and at most 1")
        require_value(self, "min_p", lambda value: 0 <= value < 1, "at least 0 and below 1")

    def __call__(self, probabilities: Float[Tensor, "B V"]) -> tuple[Tensor, Tensor]:
        """Weights ``[B, K]`` that sum to 1, largest first and 0 where nothing stays, and their ids."""
        kept = probabilities.shape[-1] if self.top_k is None else min(self.top_k, probabilities.shape[-1])
        values, ids = probabilities.topk(kept, dim=-1)
        values = values / values.sum(dim=-1, keepdim=True)
        values = values * (values.cumsum(dim=-1) - values < self.top_p)
        values = values * (values >= self.min_p * values[:, :1])
        return values / values.sum(dim=-1, keepdim=True), ids


def entropy(probabilities: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """In nats."""
    return torch.special.entr(probabilities).sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class SoftReasoner(CausalLMReasoner):
    """Mixes the likeliest tokens; a row is done where the heaviest token is the first of the end marker.

    A mixture's noise is a function of ``seed``, prompt and step, whatever the batch.

    Attributes:
        filter: of the distribution, before ``settings.top_k`` entries of it are mixed.
        mixture_noise: ``gumbel`` weighs entries by ``softmax((log w + G) / level)``, ``dirichlet`` draws the filtered
            distribution from one with ``level`` times its entries as parameters; ``none`` for no noise.
        level: temperature of the first, or concentration of the second.
        certain_below: entropy of the distribution without filter, in nats, below which a step is certain.
    """

    filter: Filter
    mixture_noise: MixtureNoise = "none"
    level: float = 0.5
    certain_below: float = 0.0
    seed: int = 0

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """Without noise."""
        return self._mixed(hidden, None)

    def random_step(self, hidden: Float[Tensor, "B D"], keys: Sequence[tuple[int, int]]) -> LatentStep:
        """With the noise of each row."""
        return self._mixed(hidden, None if self.mixture_noise == "none" else keys)

    def _mixed(self, hidden: Tensor, keys: Sequence[tuple[int, int]] | None) -> LatentStep:
        probabilities = F.softmax(self.logits(hidden) / self.settings.temperature, dim=-1)
        weights, ids = self.filter(probabilities)
        if keys is not None and self.mixture_noise == "dirichlet":
            concentrations = (weights * self.level).double().cpu().numpy()
            drawn = row_draws(keys, self.seed, lambda source, row: source.standard_gamma(concentrations[row]))
            weights, ids = _sorted(_normal(drawn.to(weights)), ids)
        weights, ids = weights[:, : self.settings.top_k], ids[:, : self.settings.top_k]
        weights = _normal(weights)
        if keys is not None and self.mixture_noise == "gumbel":
            size = weights.shape[-1]
            gumbel = row_draws(keys, self.seed, lambda source, _: source.gumbel(size=size)).to(weights)
            weights, ids = _sorted(F.softmax((weights.log() + gumbel) / self.level, dim=-1), ids)
        done = ids[:, 0] == self.settings.end_ids[0]
        latent = mix(weights, ids, embedding_table(self.model))
        kept, places = heaviest(weights, ids)
        return LatentStep(
            latent=latent,
            next_input=latent,
            done=done,
            recorded=~done,
            support_ids=places,
            support_weights=kept,
            certain=entropy(probabilities) < self.certain_below,
        )


def row_draws(
    keys: Sequence[tuple[int, int]], seed: int, draw: Callable[[np.random.Generator, int], np.ndarray]
) -> Float[Tensor, "B K"]:
    """What is drawn for each row by a source of its own, a function of seed, prompt and step."""
    rows = [draw(np.random.default_rng([seed, *key]), row) for row, key in enumerate(keys)]
    return torch.from_numpy(np.stack(rows))


def _normal(weights: Tensor) -> Tensor:
    """Weights that sum to 1; all on the first where there are none."""
    total = weights.sum(dim=-1, keepdim=True)
    first = F.one_hot(torch.zeros_like(weights[:, 0]).long(), weights.shape[-1]).to(weights)
    return torch.where(total > 0, weights / total.clamp(min=torch.finfo(weights.dtype).tiny), first)


def _sorted(weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    weights, order = weights.sort(dim=-1, descending=True)
    return weights, ids.gather(-1, order)
