"""Does the chain do anything? The same model answers from an altered chain, or from none.

Its weights stay as they are. If accuracy survives a control, that part of the chain was not used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.placement import CPU, moved
from unspoken.reasoning.superposition import embedding_table, mix
from unspoken.reasoning.system import System

Control = Callable[[LatentChain, torch.Generator], LatentChain]


def zero(chain: LatentChain, _: torch.Generator) -> LatentChain:
    """Every latent is the zero vector."""
    return chain.with_latents(torch.zeros_like(chain.latents))


def mean(chain: LatentChain, _: torch.Generator) -> LatentChain:
    """Every latent is the mean over problems at its step: position without content."""
    weights = chain.mask[..., None].to(chain.latents.dtype)
    average = (chain.latents * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1)
    return chain.with_latents(average.expand_as(chain.latents) * weights)


def noise(chain: LatentChain, generator: torch.Generator) -> LatentChain:
    """Every latent is a Gaussian direction of the same norm (appendix C of JEPA-Reasoner)."""
    drawn = torch.randn(chain.latents.shape, generator=generator).to(chain.latents)
    return chain.with_latents(F.normalize(drawn, dim=-1) * chain.latents.norm(dim=-1, keepdim=True))


def shuffle(chain: LatentChain, generator: torch.Generator) -> LatentChain:
    """The steps of each chain in another order: content without order."""
    drawn = torch.rand(chain.mask.shape, generator=generator).to(chain.latents)
    order = drawn.masked_fill(~chain.mask, torch.inf).argsort(dim=1)
    return chain.with_latents(chain.latents.gather(1, order[..., None].expand_as(chain.latents)))


def swap(chain: LatentChain, generator: torch.Generator) -> LatentChain:
    """The chain of another question; no chain stays in its place."""
    shift = int(torch.randint(1, len(chain), (1,), generator=generator))
    return chain.select(torch.arange(len(chain), device=chain.mask.device).roll(shift))


def truncate(chain: LatentChain, _: torch.Generator) -> LatentChain:
    """Only the first half of the steps; the rest are zero vectors."""
    kept = (chain.lengths + 1) // 2
    early = torch.arange(chain.mask.shape[1], device=chain.mask.device)[None] < kept[:, None]
    return chain.with_latents(chain.latents * early[..., None])


def absent(chain: LatentChain, _: torch.Generator) -> LatentChain:
    """No chain at all: a single zero vector is all there is to answer from."""
    latents = torch.zeros_like(chain.latents)
    mask = torch.zeros_like(chain.mask)
    mask[:, :1] = True
    return chain.with_latents(latents, mask)


CONTROLS: dict[str, Control] = {
    "zero": zero,
    "mean": mean,
    "noise": noise,
    "shuffle": shuffle,
    "swap": swap,
    "truncate": truncate,
    "no chain": absent,
}


def _random_mixtures(chain: LatentChain, generator: torch.Generator, table: Tensor) -> LatentChain:
    """The same weights on random tokens: vectors of the same kind and number, without their content."""
    assert chain.support_ids is not None and chain.support_weights is not None
    ids = torch.randint(len(table), chain.support_ids.shape, generator=generator)
    return chain.with_latents(mix(chain.support_weights, ids, table) * chain.mask[..., None])


def altered_chains(system: System, chain: LatentChain, seed: int) -> dict[str, LatentChain]:
    """A system's chains, altered in every way that makes sense for it.

    Where the stack that reasons also answers, "no chain" is no latent at all; a Talker must have one, and gets a single
    zero vector. Latents that are mixtures of rows are replaced by other mixtures, others by noise. One chain alone has
    no other to be swapped for.
    """

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    mixed = system.mixes_rows and chain.support_ids is not None
    left_out = {"noise": mixed, "swap": len(chain) < 2}
    names = [name for name in CONTROLS if not left_out.get(name, False)]
    altered = {name: CONTROLS[name](chain, generator()) for name in names}
    if system.speaker.same_stack:
        altered["no chain"] = chain.with_latents(torch.zeros_like(chain.latents), torch.zeros_like(chain.mask))
    if mixed:
        altered["random mixtures"] = _random_mixtures(chain, generator(), moved(embedding_table(system.model), CPU))
    return altered
