"""Noise on every latent: what is left of the answer (JEPA-Reasoner, section 6.3)?

The summary holds ``half``, the symbols at the end of an answer that are compared; ``against``, the system whose latents
stand for the others, with which every system is compared; and ``renormalised`` and ``free``, each with ``systems`` and
``comparison`` (`unspoken.evaluation.degradation`) and ``norm_ratio`` (system -> for each level, the mean ratio of the
norms of noise and latent).

Axes: B problems, T prompt tokens, D latent width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.draw.formats import BARE_PERCENT_1, coefficient, percent
from unspoken.draw.section import Section
from unspoken.draw.table import BLANK, Cell, Column, Table, estimate, number, text
from unspoken.evaluation.degradation import Hits, degradation, hits_of
from unspoken.evaluation.outcomes import PAIR
from unspoken.evaluation.results import Results, label, summary_of
from unspoken.placement import CPU, moved
from unspoken.probes.probe import Probe, View
from unspoken.reasoning.engine import Intervention, LatentStep, Reasoner, StopRule, rollout
from unspoken.reasoning.system import System, opened
from unspoken.tasks.task import Task

FRACTIONS = (0.0, 0.05, 0.1, 0.15)
# The paper's values: sigma over the largest entry -> exact match of the last four symbols.
PAPER: Mapping[str, Mapping[float, float]] = {
    PAIR: {0.0: 0.4588, 0.05: 0.4681, 0.1: 0.4643, 0.15: 0.4468},
    "coconut": {0.0: 0.3740, 0.05: 0.3688, 0.1: 0.3650, 0.15: 0.3629},
}
_KINDS = {"renormalised": True, "free": False}
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What noise did to one model; both by kind of noise.

    Attributes:
        hits: of the second half of the answers, at each level.
        norm_ratios: of noise and latent, a mean for each level.
        unsaid: symbols that latents stand for.
    """

    hits: Mapping[str, Hits]
    norm_ratios: Mapping[str, list[float]]
    unsaid: int


class LatentNoiseProbe(Probe):
    """How does an answer bear noise on the latents that it is made of?"""

    key = "latent_noise"

    def applies(self, system: System, task: Task) -> bool:
        """Of systems that continue strings."""
        return task.traits.fixed_steps is not None

    def measure(self, view: View) -> Reading:
        """The second half of answers from noisy chains."""
        half, system = view.task.traits.fixed_steps, view.system
        assert half is not None
        ids, mask = opened(*view.task.prompts(view.problems, view.prompt_format), system.opening)
        hits, ratios = {}, {}
        for kind, renormalise in _KINDS.items():
            hits[kind], ratios[kind] = {0.0: hits_of(view.graded)[:, half:]}, [0.0]
            for fraction in FRACTIONS[1:]:
                noise = LatentNoise(fraction=fraction, seed=view.seed, renormalise=renormalise)
                how = {"batch_size": view.batch_size}
                chain, ratio = noisy_chain(system.reasoner, ids, mask, system.stop, noise, **how)
                hits[kind][fraction] = hits_of(view.answer(chain=chain))[:, half:]
                ratios[kind].append(ratio)
        return Reading(hits=hits, norm_ratios=ratios, unsaid=system.unsaid)

    def summarise(self, readings: Mapping[str, Sequence[Reading]], *, baseline: str | None) -> dict[str, Any]:
        """See the top of this file."""
        against = next((name for name, seeds in readings.items() if seeds[0].unsaid), None)
        kinds = {}
        for kind in _KINDS:
            hits = {name: [reading.hits[kind] for reading in seeds] for name, seeds in readings.items()}
            ratios = {
                name: np.mean([reading.norm_ratios[kind] for reading in seeds], axis=0).tolist()
                for name, seeds in readings.items()
            }
            # One kind is tested: twice the tests would be twice the chances to find something.
            tested = against if kind == "renormalised" else None
            kinds[kind] = {**degradation(hits, tested), "norm_ratio": ratios}
        first = next(iter(readings.values()))[0]
        return {"half": first.hits["free"][0.0].shape[1], "against": against, **kinds}

    def section(self, results: Results) -> Section | None:
        """Exact match of the last symbols with noise on every latent, beside the paper's."""
        summary = summary_of(results, self.key)
        if not summary:
            return None
        kept, free, half = summary["renormalised"], summary["free"], summary["half"]
        levels = [level["level"] for level in next(iter(kept["systems"].values()))["levels"]]
        rows = [[text(label(name)), *_cells(kept, name, 0), *_cells(free, name, 1)] for name in kept["systems"]]
        for name, printed in PAPER.items():
            values = [number(printed.get(level), BARE_PERCENT_1, classes="muted") for level in levels]
            rows.append([text(f"the paper’s {name}", classes="muted"), *values, *(BLANK for _ in levels[1:])])
        note = (
            f"Exact match of the last {half} of {2 * half} symbols, in per cent, with its 95 % interval. Every latent "
            "gets Gaussian noise whose sigma is a fraction of its own largest entry, before it is fed back and read by "
            "the Talker; below, the norm of that noise over the norm of the latent, which differs between methods at "
            "the same fraction. Renormalised: the noisy latent is given its old norm. The paper does not state "
            "which of the two it measured."
        )
        heads = [percent(level, 0) for level in levels]
        columns = [Column("System"), *(Column(head, group="Renormalised") for head in heads)]
        columns += [Column(head, None, f"free {head}", "Not renormalised") for head in heads[1:]]
        title = f"noise on latents, renormalised and free: exact match of the last {half} symbols in per cent"
        table = Table(title=title, columns=columns, rows=rows, note=note)
        return Section("latent-noise", "Noise on the latents", [table])


def _cells(kind: Mapping[str, Any], name: str, first: int) -> list[Cell]:
    """Cells of a system from a level on."""
    levels, ratios = (values[first:] for values in (kind["systems"][name]["levels"], kind["norm_ratio"][name]))
    notes = [
        f"noise {coefficient(ratio)}" if level["level"] else "" for level, ratio in zip(levels, ratios, strict=True)
    ]
    return [estimate(level["exact"][-1], BARE_PERCENT_1, note=note) for level, note in zip(levels, notes, strict=True)]


# --- noise -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LatentNoise:
    """Gaussian noise on each latent, scaled by its largest entry (section 6.3; paper_index, open point 25).

    The draw of a row at a step depends on the two and the seed alone: not on the batch, and not on the fraction, so
    that levels of noise are paired.

    Attributes:
        fraction: sigma over the largest absolute entry of the clean vector.
        seed: of the draws.
        renormalise: give the noisy vector the norm of the clean one before it is fed back and answered from.

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
