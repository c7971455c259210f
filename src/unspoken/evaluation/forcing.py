"""Wrong tokens: in a prompt, or forced on a system while it answers (JEPA-Reasoner, sections 6.2 and 6.6).

Axes: B problems, T tokens of a prompt, M tokens or symbols of an answer, K tokens that may replace each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.evaluation.significance import Outcomes, ratios_of_counts
from unspoken.reasoning.picking import FREE
from unspoken.reasoning.system import System

# Symbols that could be forced, that were, later symbols, and of these those that changed, that were right without
# force, and with it. Later symbols are free ones after the first forced one of their row that could be forced.
_COUNTS = ("forceable", "forced", "later", "changed", "right_clean", "right_forced")
# Runs a system once, with these tokens ``[B, M]`` forced (`FREE` where it chooses; None: everywhere), and returns its
# chain and its tokens.
Run = Callable[[Tensor | None], tuple[LatentChain, Tensor]]


def corrupted(
    ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], rate: float, alternatives: Int[Tensor, " K"], seed: int
) -> Int[Tensor, "B T"]:
    """Replace some of the masked tokens of every row by wrong ones (docs/methods/jepa_reasoner.md, open point 24).

    Exactly ``rate * n`` of a row's n masked tokens, rounded, become another of the alternatives, each as likely. With
    the same seed, what is wrong at a low rate is wrong in the same way at a higher one.
    """
    others = torch.unique(alternatives)
    assert 0 <= rate <= 1 and len(others) > 1, f"cannot corrupt at rate {rate} with {len(others)} different tokens"
    order, choice = (torch.from_numpy(np.random.default_rng([seed, stream]).random(ids.shape)) for stream in range(2))
    rank = order.to(ids.device).masked_fill(~mask, torch.inf).argsort(dim=1).argsort(dim=1)
    count = (rate * mask.sum(dim=1).double() + 0.5).floor()
    return torch.where(mask & (rank < count[:, None]), another(ids, others, choice.to(ids.device)), ids)


def another(ids: Int[Tensor, "B T"], others: Int[Tensor, " K"], choice: Float[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """For every token one of ``others`` (sorted, each once) that it is not itself; ``choice`` is uniform in [0, 1)."""
    # A token that is itself an alternative is left out of its own draw: the alternatives after it move up by one.
    known = torch.isin(ids, others)
    drawn = (choice * (len(others) - known.long())).long()
    drawn += (known & (drawn >= torch.searchsorted(others, ids.contiguous()))).long()
    return others[drawn]


def forced_run(
    system: System, input_ids: Int[Tensor, "B T"], attention_mask: Tensor | None = None, *, fill: int
) -> Run:
    """Runs of a system in which some of its tokens are forced, and it goes on from them.

    Answers are greedy with and without them, also where evaluation samples: so what differs is what the tokens did.
    Where an explicit chain is closed before the answer, its steps come first, in as many columns as it may have. A
    chain whose tokens are the answer is reached by every forced token; others cannot be.

    Args:
        fill: stands after the end of a row.
    """

    system = replace(system, sampling=None)

    def run(tokens: Tensor | None) -> tuple[LatentChain, Tensor]:
        answer = system.respond(input_ids, attention_mask, **({} if tokens is None else system.forcing(tokens)))
        chain, given = answer.chain, answer.filled(fill)
        if not system.explicit or not system.speaker.same_stack:
            return chain, given
        assert chain.support_ids is not None
        steps = torch.where(chain.mask, chain.support_ids[:, :, 0], fill)
        return chain, torch.cat([F.pad(steps, (0, system.stop.max_latents - steps.shape[1]), value=fill), given], dim=1)

    return run


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What wrong tokens did to one model."""

    counts: Outcomes  # ``[B, K]``, a row a problem
    latents_identical: bool  # every latent of every chain kept its bits
    # Largest absolute change of an entry of a latent. A step that only one of both runs has is compared with zeros.
    largest_latent_change: float


def effect_of(counts: Sequence[Int[Tensor, " B"]], chain: LatentChain, again: LatentChain) -> Effect:
    """K counts, and what became of the chain in a run with forced tokens."""
    both = LatentChain.concatenate([chain, again]).latents
    change = (both[: len(chain)] - both[len(chain) :]).abs()
    return Effect(
        counts=torch.stack(list(counts), dim=1).cpu().numpy().astype(np.float64),
        latents_identical=torch.equal(chain.mask, again.mask) and torch.equal(chain.latents, again.latents),
        largest_latent_change=float(change.max()) if change.numel() else 0.0,
    )


def summed(
    seeds: Sequence[Effect], names: Sequence[str]
) -> tuple[Callable[[str, str], dict[str, float] | None], dict[str, Any]]:
    """Of the effects on the models of several seeds, ratios of counts, see `ratios_of_counts`, and facts of latents.

    Args:
        names: of the K counts.
    """
    latents = {
        "latents_identical": all(effect.latents_identical for effect in seeds),
        "largest_latent_change": max(effect.largest_latent_change for effect in seeds),
    }
    return ratios_of_counts(np.stack([effect.counts for effect in seeds]), names), latents


@torch.no_grad()
def containment(
    run: Run, right: Int[Tensor, "B M"], *, alternatives: Int[Tensor, " K"], rate: float, seed: int
) -> Effect:
    """Force wrong symbols and compare with the answers without them.

    Args:
        run: of the system; it reasons anew each time.
        right: the symbols of right answers.
        alternatives: symbols that may be forced and that may be replaced; leave the end out.
        rate: of the symbols of the clean answer that become wrong.
        seed: of places and symbols.
    """
    chain, clean = run(None)
    can = torch.isin(clean, alternatives)
    wrong = corrupted(clean, can, rate, alternatives, seed)
    forced = wrong != clean
    again, given = run(torch.where(forced, wrong, FREE))
    width = clean.shape[1]
    given, right = (F.pad(one, (0, width), value=FREE)[:, :width] for one in (given, right))
    later = can & ~forced & (forced.cumsum(dim=1) > 0)
    groups = (can, forced, later, later & (given != clean), later & (clean == right), later & (given == right))
    return effect_of([group.sum(dim=1) for group in groups], chain, again)


def effect_summary(seeds: Sequence[Effect]) -> dict[str, Any]:
    """The effects on the models of several seeds, with 95 % intervals; plain values.

    Returns:
        ``seeds``, ``problems``; ``forced`` (rate of the symbols that could be), ``later_changed`` and
        ``later_accuracy`` (``clean``, ``forced``), each ``mean``, ``low``, ``high`` or None where there was no later
        symbol; ``latents_identical`` and ``largest_latent_change`` over all seeds.
    """
    ratio, latents = summed(seeds, _COUNTS)
    return {
        "seeds": len(seeds),
        "problems": len(seeds[0].counts),
        "forced": ratio("forced", "forceable"),
        "later_changed": ratio("changed", "later"),
        "later_accuracy": {"clean": ratio("right_clean", "later"), "forced": ratio("right_forced", "later")},
        **latents,
    }
