"""Wrong symbols forced on a system that continues strings, and what becomes of the others (JEPA-Reasoner, section 6.6).

Axes: B problems, M symbols, K symbols that may replace each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from unspoken.evaluation.forcing import Effect, Run, corrupted, effect_of, summed
from unspoken.reasoning.picking import FREE

# Symbols that could be forced, that were, later symbols, and of these those that changed, that were right without
# force, and with it. Later symbols are free ones after the first forced one of their row that could be forced.
_COUNTS = ("forceable", "forced", "later", "changed", "right_clean", "right_forced")


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
    given, right = (F.pad(one, (0, max(0, width - one.shape[1])), value=FREE)[:, :width] for one in (given, right))
    later = can & ~forced & (forced.cumsum(dim=1) > 0)
    groups = (can, forced, later, later & (given != clean), later & (clean == right), later & (given == right))
    return effect_of([group.sum(dim=1) for group in groups], chain, again)


def effect_summary(seeds: Sequence[Effect], *, draws: int = 2000) -> dict[str, Any]:
    """The effects on the models of several seeds, with 95 % intervals; plain values.

    Returns:
        ``seeds``, ``problems``; ``forced`` (rate of the symbols that could be), ``later_changed`` and
        ``later_accuracy`` (``clean``, ``forced``), each ``mean``, ``low``, ``high`` or None where there was no later
        symbol; ``latents_identical`` and ``largest_latent_change`` over all seeds.
    """
    ratio, latents = summed(seeds, _COUNTS, draws=draws)
    return {
        "seeds": len(seeds),
        "problems": len(seeds[0].counts),
        "forced": ratio("forced", "forceable"),
        "later_changed": ratio("changed", "later"),
        "later_accuracy": {"clean": ratio("right_clean", "later"), "forced": ratio("right_forced", "later")},
        **latents,
    }
