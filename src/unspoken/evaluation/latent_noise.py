"""Noise on the latents of a chain while it is written (JEPA-Reasoner, section 6.3).

Axes: B problems, T prompt tokens, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.placement import CPU, moved
from unspoken.reasoning.engine import Intervention, LatentStep, Reasoner, StopRule, rollout

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class LatentNoise:
    """Gaussian noise on each latent, scaled by its largest entry (docs/methods/jepa_reasoner.md, open point 25).

    The draw of a row at a step depends on the two and the seed alone: not on the batch, and not on the fraction, so
    that levels of noise are paired.
    """

    fraction: float  # sigma over the largest absolute entry of the clean vector
    seed: int = 0  # of the draws
    renormalise: bool = True  # give the noisy vector the norm of the clean one before it is fed back and answered from

    def __post_init__(self) -> None:
        assert self.fraction >= 0 and self.seed >= 0, "fraction and seed of noise: neither can be negative"

    def add(
        self, latents: Float[Tensor, "B D"], step: int, rows: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        """Noisy latents, and the norm of the noise over the norm of the latent (before any renormalising)."""
        width = latents.shape[-1]
        drawn = [np.random.default_rng([self.seed, row, step]).standard_normal(width) for row in rows.tolist()]
        sigma = self.fraction * latents.abs().amax(dim=-1, keepdim=True)
        noise = sigma * torch.from_numpy(np.stack(drawn)).to(latents)
        noisy = latents + noise
        clean_norm = latents.norm(dim=-1, keepdim=True)
        if self.renormalise:
            noisy = noisy * (clean_norm / noisy.norm(dim=-1, keepdim=True).clamp(min=_TINY))
        return noisy, noise.norm(dim=-1) / clean_norm[:, 0].clamp(min=_TINY)


def _adding(noise: LatentNoise, rows: Tensor, ratios: list[Tensor]) -> Intervention:
    """The hook of one batch; it appends the ratio ``[B]`` of every step."""

    def intervene(latent_step: LatentStep, step: int) -> LatentStep:
        noisy, ratio = noise.add(latent_step.latent, step, rows)
        ratios.append(ratio)
        # Methods feed a multiple of their latent. Adding to it keeps its bits where the noise is zero.
        scale = latent_step.next_input.norm(dim=-1, keepdim=True) / latent_step.latent.norm(dim=-1, keepdim=True).clamp(
            min=_TINY
        )
        return replace(
            latent_step, latent=noisy, next_input=latent_step.next_input + (noisy - latent_step.latent) * scale
        )

    return intervene


def noisy_chain(
    method: Reasoner,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Tensor | None,
    stop: StopRule,
    noise: LatentNoise,
    *,
    batch_size: int,
) -> tuple[LatentChain, float]:
    """Reason with noise on every latent on its way into the chain and back into the stack.

    The stop rule and the distributions in the chain are those of the clean output of each step: a coupled model records
    the token it chose and goes on from a noisy row.

    Args:
        method, input_ids, attention_mask, stop: as in `rollout`. A marker that opens the chain is part of the prompt.
        noise: row b of ``input_ids`` is row b of its draws.
        batch_size: problems reasoned about at once.

    Returns:
        The noisy chain, to answer from, and the mean ratio of noise norm to latent norm over its real steps.
    """
    chains, kept = [], [torch.zeros(0)]
    for rows in torch.arange(len(input_ids)).split(batch_size):
        ratios: list[Tensor] = []
        mask = None if attention_mask is None else attention_mask[rows]
        chains.append(rollout(method, input_ids[rows], mask, stop, _adding(noise, rows, ratios)))
        real = moved(chains[-1].mask, CPU).unbind(dim=1)
        kept += [ratio[counted].float() for ratio, counted in zip(moved(ratios, CPU), real, strict=True)]
    ratio = torch.cat(kept)
    return LatentChain.concatenate(chains), float(ratio.mean()) if len(ratio) else 0.0
