"""Latent labels: what one is, and what labels were made of (Latent-SFT, arXiv 2510.15522).

Axes: N latents of a problem, K entries of a label, D latent width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.methods.latent_sft.stages import LatentKind, Precision
from unspoken.reasoning.latents import Readout

_TOLERANCE = 0.01  # of the sum of weights: what bfloat16 rounds away


@dataclass(frozen=True, kw_only=True)
class LabelIdentity:
    """What a store of labels was made of. Labels with another identity are refused."""

    data: str  # fingerprint of the word problems
    # split, seed: of the problems, and the seed of all random numbers
    split: str
    seed: int
    tokenizer: str  # hash of the tokenizer
    rate: int  # chain tokens that a latent stands for (the compression rate r)
    latent: LatentKind  # distributions over the vocabulary, or hidden states
    width: int  # numbers stored per latent: K entries of a superposition (V if top_k is None), or D of a hidden state
    top_k: int | None  # entries kept of a superposition, None for the whole vocabulary
    temperature: float  # of the softmax over the vocabulary
    readout: Readout  # the table that made the logits, the language-model head or the input embeddings
    # encoder, decoder: fingerprints of the models
    encoder: str
    decoder: str
    precision: Precision  # of the stored weights or vectors

    def __post_init__(self) -> None:
        assert self.rate > 0 and self.width > 0, f"rate is {self.rate} and width {self.width}; both are at least 1"
        if self.latent == "superposition" and self.top_k is not None:
            assert self.width <= self.top_k, f"width is {self.width}, but top_k keeps {self.top_k} entries"

    def stored_superposition(self, ids: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """A superposition label as it is stored, copied to the CPU: token ids ``[N, K]`` and their probabilities.

        Raises:
            ValueError: they are no distributions of width K over token ids.
        """
        if ids.shape != weights.shape or ids.is_floating_point():
            raise ValueError(f"ids are {_form(ids)} and weights {_form(weights)}; give integers [N, K] twice")
        low, high = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
        if low < 0 or high >= 2**31:
            raise ValueError(f"ids reach from {low} to {high}; token ids are in [0, 2^31)")
        stored = self._stored("weights", weights)
        sums_N = stored.sum(dim=1, dtype=torch.float64)
        if (stored < 0).any() or ((sums_N - 1).abs() > _TOLERANCE).any():
            raise ValueError("the weights of each latent must be probabilities: none negative, and 1 in sum")
        return {"ids": ids.detach().to("cpu", torch.int32, copy=True), "weights": stored}

    def stored_vectors(self, vectors: Tensor) -> dict[str, Tensor]:
        """A hidden-state label ``[N, D]`` as it is stored, copied to the CPU; a ValueError unless finite and D wide."""
        return {"vectors": self._stored("vectors", vectors)}

    def _stored(self, name: str, values: Tensor) -> Tensor:
        if values.dim() != 2 or values.shape[1] != self.width or not values.is_floating_point():
            raise ValueError(f"{name} are {_form(values)}; give floats [N, {self.width}]")
        stored = values.detach().to("cpu", getattr(torch, self.precision), copy=True)
        if not stored.isfinite().all():
            raise ValueError(f"{name} are not all finite in {self.precision}")
        return stored


def _form(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"


def differing_facts(recorded: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """The first facts that differ, with the value found and then the expected one; None if all agree."""
    differing = [name for name in {**expected, **recorded} if recorded.get(name) != expected.get(name)]
    return ", ".join(f"{name} is {recorded.get(name)!r}, not {expected.get(name)!r}" for name in differing[:3]) or None


@dataclass(frozen=True, kw_only=True)
class Label:
    """The latents that a model is trained to write for one problem."""

    # ids, weights: ``[N, K]``, a distribution a latent, None for hidden-state labels
    ids: Int[Tensor, "N K"] | None = None
    weights: Float[Tensor, "N K"] | None = None
    vectors: Float[Tensor, "N D"] | None = None  # one hidden state per latent, None for superposition labels
