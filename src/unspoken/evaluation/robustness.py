"""What errors do: wrong tokens in the prefix, noise on latents, forced wrong tokens (JEPA-Reasoner, section 6).

Every measurement keeps one row a problem, so that intervals and tests can draw seeds and problems anew: `summary` and
`comparison` for the two noise tests (6.2, 6.3), `effect_summary` for containment (6.6). These give plain dictionaries.

Axes: B problems, T prompt tokens, N latent steps, M spoken tokens, D latent width, S seeds, L levels of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.evaluation.significance import Outcomes, bootstrap_means, interval, tested
from unspoken.placement import CPU, moved
from unspoken.reasoning.engine import Intervention, LatentStep, Reasoner, StopRule, rollout
from unspoken.reasoning.picking import FREE
from unspoken.reasoning.system import System

# Level of noise -> which of the wanted symbols ``[B, M]`` were said (0 or 1). Level 0 is the clean run.
Hits = Mapping[float, Outcomes]
# Runs a system once, with these tokens ``[B, M]`` forced (`FREE` where it chooses; None: everywhere), and gives its
# chain and what was said.
Run = Callable[[Tensor | None], tuple[LatentChain, Tensor]]

_TINY = 1e-12


# --- wrong tokens in the prefix (6.2) ----------------------------------------------------------------------------


def corrupted(
    ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], rate: float, alternatives: Int[Tensor, " K"], seed: int
) -> Int[Tensor, "B T"]:
    """Replace a share of the masked tokens of every row by wrong ones (paper_index, open point 24).

    Exactly ``rate * n`` of a row's n masked tokens, rounded, become another of the alternatives, each as likely. With
    the same seed, what is wrong at a low rate is wrong in the same way at a higher one.

    Raises:
        ValueError: a rate outside 0..1, or fewer than two alternatives.
    """
    others = torch.unique(alternatives)
    if not 0 <= rate <= 1 or len(others) < 2:
        raise ValueError(
            f"cannot corrupt at rate {rate} with {len(others)} different alternatives; the rate is between 0 and 1, "
            "and there must be at least 2 tokens to choose from"
        )
    order, choice = (torch.from_numpy(np.random.default_rng([seed, part]).random(ids.shape)) for part in range(2))
    rank = order.to(ids.device).masked_fill(~mask, 2.0).argsort(dim=1).argsort(dim=1)
    count = (rate * mask.sum(dim=1).double() + 0.5).floor()
    return torch.where(mask & (rank < count[:, None]), another(ids, others, choice.to(ids.device)), ids)


def another(ids: Int[Tensor, "B T"], others: Int[Tensor, " K"], choice: Float[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """For every token one of ``others`` (sorted, each once) that it is not itself; ``choice`` is uniform in [0, 1)."""
    # A token that is itself an alternative is left out of its own draw: what lies behind it moves up by one.
    known = torch.isin(ids, others)
    drawn = (choice * (len(others) - known.long())).long()
    drawn += (known & (drawn >= torch.searchsorted(others, ids.contiguous()))).long()
    return others[drawn]


def token_noise(
    answer: Callable[[Tensor], Tensor],
    input_ids: Int[Tensor, "B T"],
    right: Int[Tensor, "B M"],
    *,
    rates: Iterable[float],
    alternatives: Int[Tensor, " K"],
    seed: int,
) -> Hits:
    """Continue prefixes in which some tokens are wrong (section 6.2).

    Args:
        answer: prefixes ``[B, T]`` to what is said behind them.
        input_ids: clean prefixes. Only the alternatives among their tokens are corrupted, so markers and padding stay.
        right: what should be said behind the clean prefix.
        rates: shares of corrupted tokens, 0 among them.
        alternatives: tokens that may replace each other.
        seed: of the corruption. Give all systems the same one, and they continue the same prefixes.
    """
    mask = torch.isin(input_ids, alternatives)
    return {rate: hits(answer(corrupted(input_ids, mask, rate, alternatives, seed)), right) for rate in rates}


def hits(said: Int[Tensor, "B any"], right: Int[Tensor, "B M"]) -> Outcomes:
    """Which wanted symbols were said at their place; a missing one was not."""
    width = right.shape[1]
    said = F.pad(said, (0, max(0, width - said.shape[1])), value=FREE)[:, :width]
    found: Outcomes = (said == right).cpu().numpy().astype(np.float64)
    return found


# --- noise on the latents (6.3) ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LatentNoise:
    """Gaussian noise on each latent, scaled by its largest entry (section 6.3; paper_index, open point 25).

    The draw of a row at a step depends on the two and the seed alone: not on the batch, and not on the fraction, so
    that levels of noise are paired.

    Attributes:
        fraction: sigma over the largest absolute entry of the clean vector.
        seed: of the draws.
        renormalise: give the noisy vector the norm of the clean one before it is looped and spoken from.

    Raises:
        ValueError: a negative fraction or seed.
    """

    fraction: float
    seed: int = 0
    renormalise: bool = True

    def __post_init__(self) -> None:
        if not self.fraction >= 0 or self.seed < 0:
            raise ValueError(f"noise of fraction {self.fraction} and seed {self.seed}: neither can be negative")

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
    """The hook of one batch; it leaves the ratio ``[B]`` of every step behind."""

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

    The method's stop rule, and the distributions in the chain, are those of the clean output of each step: a coupled
    model says the token it chose and goes on from a noisy row.

    Args:
        method, input_ids, attention_mask, stop: as in `rollout`. A marker that opens the chain is part of the prompt.
        noise: row b of ``input_ids`` is row b of its draws.
        batch_size: problems reasoned about at once.

    Returns:
        The noisy chain, to speak from, and the mean ratio of noise norm to latent norm over its real steps.
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


def latent_noise(
    method: Reasoner,
    speak: Callable[[LatentChain], Tensor],
    input_ids: Int[Tensor, "B T"],
    right: Int[Tensor, "B M"],
    *,
    attention_mask: Tensor | None = None,
    stop: StopRule,
    fractions: Iterable[float],
    seed: int,
    renormalise: bool = True,
    batch_size: int,
) -> tuple[Hits, dict[float, float]]:
    """Answer from noisy chains (section 6.3).

    Args:
        method: what reasons; of a pair, its Reasoner.
        speak: a chain of all B problems to the tokens that are compared with ``right``; where only the last four
            count, it returns those.
        input_ids, attention_mask: prompts, padded on the left; a marker that opens the chain is part of them.
        right: what should be said.
        stop: the paper writes a fixed number of latents.
        fractions: levels of noise; level 0 is the clean run.
        seed, renormalise: see `LatentNoise`.
        batch_size: problems reasoned about at once.

    Returns:
        Hits, and the mean ratio of noise norm to latent norm, for each fraction. The ratio tells what the fraction does
        not: a model with a few very large entries gets more noise.
    """
    found, ratios = {}, {}
    for fraction in fractions:
        noise = LatentNoise(fraction=fraction, seed=seed, renormalise=renormalise)
        chain, ratios[fraction] = noisy_chain(method, input_ids, attention_mask, stop, noise, batch_size=batch_size)
        found[fraction] = hits(speak(chain), right)
    return found, ratios


# --- forced tokens (6.6) -----------------------------------------------------------------------------------------


def can_be_forced(system: System) -> bool:
    """Whether some token that a system says is its own choice; nearest rows are read off."""
    return system.explicit or system.speaker.samples


def forced_run(
    system: System, input_ids: Int[Tensor, "B T"], attention_mask: Tensor | None = None, *, fill: int
) -> Run:
    """Runs of a system in which some of its tokens are forced, and it goes on from them.

    An explicit chain that is closed before the answer is part of what is said: its steps come first, in as many columns
    as it may have. A chain whose tokens are the answer is reached by every forced token; others cannot be.

    Args:
        fill: stands after the end of a row.
    """

    def run(tokens: Tensor | None) -> tuple[LatentChain, Tensor]:
        answer = system.respond(input_ids, attention_mask, **({} if tokens is None else system.forcing(tokens)))
        chain, said = answer.chain, answer.filled(fill)
        if not system.explicit or not system.speaker.same_stack:
            return chain, said
        assert chain.support_ids is not None
        steps = torch.where(chain.mask, chain.support_ids[:, :, 0], fill)
        return chain, torch.cat([F.pad(steps, (0, system.stop.max_latents - steps.shape[1]), value=fill), said], dim=1)

    return run


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What wrong words did to one model.

    Attributes:
        counts: ``[B, 6]``, a row a problem: words that could be forced, words that were, later words, and of these
            those that changed, that were right without force, and with it. Later words are free ones behind the first
            forced one of their row, of the kind that could be forced.
        latents_identical: every latent of every chain kept its bits.
        largest_latent_change: largest absolute change of an entry of a latent. A step that only one of both runs has
            is compared with zeros.
    """

    counts: Outcomes
    latents_identical: bool
    largest_latent_change: float


_COUNTS = ("forceable", "forced", "later", "changed", "right_clean", "right_forced")


@torch.no_grad()
def containment(
    run: Run, right: Int[Tensor, "B M"], *, alternatives: Int[Tensor, " K"], rate: float, seed: int
) -> Effect:
    """Force wrong words and see what comes of it (section 6.6).

    Args:
        run: of the system; it reasons anew each time.
        right: what should be said.
        alternatives: words that may be forced and that may be replaced; leave the end out.
        rate: share of the words of the clean answer that become wrong.
        seed: of places and words.
    """
    chain, clean = run(None)
    can = torch.isin(clean, alternatives)
    wrong = corrupted(clean, can, rate, alternatives, seed)
    forced = wrong != clean
    again, said = run(torch.where(forced, wrong, FREE))
    width = clean.shape[1]
    said, right = (F.pad(words, (0, max(0, width - words.shape[1])), value=FREE)[:, :width] for words in (said, right))
    later = can & ~forced & (forced.cumsum(dim=1) > 0)
    groups = (can, forced, later, later & (said != clean), later & (clean == right), later & (said == right))
    identical, largest = latent_change(chain, again)
    counts = torch.stack([group.sum(dim=1) for group in groups], dim=1).cpu().numpy().astype(np.float64)
    return Effect(counts=counts, latents_identical=identical, largest_latent_change=largest)


def latent_change(chain: LatentChain, again: LatentChain) -> tuple[bool, float]:
    """Whether two runs have the same latents to the last bit, and the largest difference, as `Effect` has them."""
    both = LatentChain.concatenate([chain, again]).latents
    change = (both[: len(chain)] - both[len(chain) :]).abs()
    identical = torch.equal(chain.mask, again.mask) and torch.equal(chain.latents, again.latents)
    return identical, float(change.max()) if change.numel() else 0.0


def effect_summary(seeds: Sequence[Effect], *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The effects on the models of several seeds, with 95 % intervals; plain values.

    Returns:
        ``seeds``, ``problems``; ``forced`` (share of the words that could be), ``later_changed`` and
        ``later_accuracy`` (``clean``, ``forced``), each ``mean``, ``low``, ``high`` or None where there was no later
        word; ``latents_identical`` and ``largest_latent_change`` over all seeds.
    """
    counts = np.stack([effect.counts for effect in seeds])
    share = shares(counts, _COUNTS, draws, seed)
    return {
        "seeds": counts.shape[0],
        "problems": counts.shape[1],
        "forced": share("forced", "forceable"),
        "later_changed": share("changed", "later"),
        "later_accuracy": {"clean": share("right_clean", "later"), "forced": share("right_forced", "later")},
        "latents_identical": all(effect.latents_identical for effect in seeds),
        "largest_latent_change": max(effect.largest_latent_change for effect in seeds),
    }


# --- intervals and tests -----------------------------------------------------------------------------------------


def shares(counts: Outcomes, names: Sequence[str], draws: int, seed: int) -> Callable[..., dict[str, float] | None]:
    """Ratios of counts ``[S, B, K]``, summed over seeds and problems, by the K names of part and whole."""
    means, drawn = counts.mean(axis=(0, 1)), bootstrap_means(counts, draws=draws, seed=seed)

    def share(part: str, whole: str) -> dict[str, float] | None:
        a, b = names.index(part), names.index(whole)
        return _ratio(means[a], means[b], drawn[:, a], drawn[:, b])

    return share


def summary(seeds: Sequence[Hits], *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Accuracy of each generation step and of the whole, absolute and relative to the clean run; plain values.

    Args:
        seeds: hits of the models of one system, one a seed, on the same problems and levels.
        draws, seed: of the bootstrap over seeds and problems.

    Returns:
        ``seeds``, ``problems`` and ``levels``: for each, ``level``, ``symbol`` (each step on its own) and ``exact``
        (that step and all before it), as lists over the steps of ``mean``, ``low``, ``high``, ``seeds`` and
        ``relative`` (``mean``, ``low``, ``high``, or None where nothing was right without noise).

    Raises:
        ValueError: no level 0, or levels or shapes that differ between seeds.
    """
    levels, values = _stacked(seeds)
    means, drawn = _bootstrapped(values, draws, seed)
    by_seed = values.mean(axis=1)

    def entry(level: int, kind: int, step: int) -> dict[str, Any]:
        mean, here = means[:, kind, step], drawn[:, :, kind, step]
        return {
            **asdict(interval(float(mean[level]), here[:, level])),
            "seeds": by_seed[:, level, kind, step].tolist(),
            "relative": _ratio(mean[level], mean[0], here[:, level], here[:, 0]),
        }

    return {"seeds": len(values), "problems": values.shape[1], "levels": _by_level(levels, values.shape[-1], entry)}


def comparison(first: Sequence[Hits], second: Sequence[Hits], *, draws: int = 5000, seed: int = 0) -> dict[str, Any]:
    """Paired tests of ``first - second``, absolute and relative to each system's own clean accuracy; plain values.

    Seeds and problems are drawn together for both. The p-values are those of single tests: a table of many needs a
    correction.

    Returns:
        ``levels`` as in `summary`, whose entries have ``absolute`` and ``relative``: ``mean``, ``low``, ``high``, ``p``
        (``relative`` is None where one of them has nothing right without noise).

    Raises:
        ValueError: as `summary`, or two systems that differ so.
    """
    levels, one = _stacked(first)
    others, two = _stacked(second)
    if levels != others or one.shape != two.shape:
        raise ValueError(
            f"hits of shape {one.shape} at levels {levels} and of shape {two.shape} at levels {others} cannot be "
            "paired; measure both systems with the same seeds, problems and levels"
        )
    means, drawn = _bootstrapped(np.stack([one, two]), draws, seed)

    def entry(level: int, kind: int, step: int) -> dict[str, Any]:
        mean, here = means[..., kind, step], drawn[..., kind, step]
        relative = None
        if (mean[:, 0] > 0).all():
            own = here[(here[:, :, 0] > 0).all(axis=1)]
            relative = _test(mean[:, level] / mean[:, 0], own[:, :, level] / own[:, :, 0])
        return {"absolute": _test(mean[:, level], here[:, :, level]), "relative": relative}

    return {"levels": _by_level(levels, one.shape[-1], entry)}


def _test(means: Outcomes, drawn: Outcomes) -> dict[str, float]:
    return asdict(tested(float(means[0] - means[1]), drawn[:, 0] - drawn[:, 1]))


def _stacked(seeds: Sequence[Hits]) -> tuple[list[float], Outcomes]:
    """Levels in order, and ``[S, B, L, 2, M]``: each step on its own, and with all before it."""
    levels = sorted(seeds[0]) if seeds else []
    shapes = {values.shape for run in seeds for values in run.values()}
    if not levels or levels[0] != 0 or any(sorted(run) != levels for run in seeds) or len(shapes) > 1:
        raise ValueError(
            f"hits have levels {[sorted(run) for run in seeds]} and shapes {sorted(shapes)}; every seed needs the same "
            "levels, the clean level 0 among them, and the same problems and steps"
        )
    steps = np.stack([np.stack([run[level] for level in levels], axis=1) for run in seeds])
    return levels, np.stack([steps, steps.cumprod(axis=-1)], axis=3)


def _bootstrapped(values: Outcomes, draws: int, seed: int) -> tuple[Outcomes, Outcomes]:
    """Means ``[..., L, 2, M]`` of ``[..., S, B, L, 2, M]`` values, and ``draws`` of them in a new first axis."""
    together = np.moveaxis(values, (-5, -4), (0, 1))
    drawn = bootstrap_means(together.reshape(*together.shape[:2], -1), draws=draws, seed=seed)
    return together.mean(axis=(0, 1)), drawn.reshape(draws, *together.shape[2:])


def _by_level(
    levels: list[float], steps: int, entry: Callable[[int, int, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    return [
        {
            "level": float(level),
            "symbol": [entry(index, 0, step) for step in range(steps)],
            "exact": [entry(index, 1, step) for step in range(steps)],
        }
        for index, level in enumerate(levels)
    ]


def _ratio(part: float, whole: float, drawn_part: Outcomes, drawn_whole: Outcomes) -> dict[str, float] | None:
    """Ratio of two means with its interval, None where the whole is zero; draws in which it is are left out."""
    if whole == 0:
        return None
    some = drawn_whole > 0
    return asdict(interval(float(part / whole), drawn_part[some] / drawn_whole[some]))
