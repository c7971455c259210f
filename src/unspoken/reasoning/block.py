"""Latents that are guessed all at once and refined together (PCCoT, arXiv 2506.18582; LOTUS, arXiv 2606.31779).

A chain in which each latent is made of the output before it, ``z_n = f(prompt, z_0 .. z_{n-1})``, is a triangular
system of equations. Written one after another, N latents take N passes. Guessed and refined together they take as many
passes as there are iterations, and after t of them the first t latents are those of the sequential chain (Jacobi
iteration). A latent may instead be made of its own output in the pass before, as in a looped transformer.

Axes: B batch, P prompt positions, N latents, D latent width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin


@runtime_checkable
class BlockReasoner(Protocol):
    """An `unspoken.reasoning.engine.Reasoner` whose latents are guessed all at once and refined together.

    Its chains have ``max_latents`` steps in every row; the end that ``step`` returns does not count.
    """

    @property
    def iterations(self) -> int:
        """How often all latents are refined; with 0 they are the guess."""

    @property
    def shift(self) -> int:
        """1 if a latent is made of the output before it, 0 if it is made of its own."""
        ...

    def guess(self, count: int) -> Float[Tensor, "N D"]:
        """Initial values of so many latents, for the first pass."""


def refined(
    read: Callable[[Float[Tensor, "B _ D"]], Float[Tensor, "B _ D"]],
    prompt: Float[Tensor, "B P D"],
    guess: Float[Tensor, "B N D"],
    iterations: int,
    latents_of: Callable[[Float[Tensor, "B N D"]], Float[Tensor, "B N D"]],
    shift: int = 1,
) -> tuple[Float[Tensor, "B _ D"], list[Float[Tensor, "B N D"]]]:
    """Run the first ``iterations`` passes over prompt and latents.

    The caller runs the last pass, together with the text after the chain.

    Args:
        read: runs new inputs through the stack, crops the last N cache positions (the latents), and returns the outputs
            at all inputs. Its first call gets the prompt and the latents, later calls the latents alone.
        prompt, guess: inputs of the first block; with 0 iterations the guess is the chain.
        latents_of: makes each latent from an output: with ``shift`` 1 that of the position before, with 0 its own.

    Returns:
        Inputs of the last pass, without the text after the chain; and the latents of every pass, the guess first.
    """
    length, count = prompt.shape[1], guess.shape[1]
    chains, new = [guess], torch.cat([prompt, guess], dim=1)
    for iteration in range(iterations):
        hidden = read(new)
        if iteration == 0:
            before, hidden = hidden[:, length - 1 : length], hidden[:, length:]
        made_of = torch.cat([before, hidden], dim=1)[:, 1 - shift :][:, :count]
        new = latents_of(made_of).to(guess.dtype)
        chains.append(new)
    return new, chains


def allow_rollback(cache: Cache, name: str) -> None:
    """Make an empty cache keep what it takes to remove its last positions again with ``cache.crop``.

    A ValueError if a layer of the named model keeps a recurrent state, which cannot go back.
    """
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers):
        raise ValueError(
            f"{name} has layers with a recurrent state, which cannot go back to the end of the prompt as latents are "
            "refined together; choose a model with attention alone"
        )
    if any(cache.is_sliding):
        cache.activate_past_recording()
