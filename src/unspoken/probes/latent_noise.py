"""Noise on every latent: what is left of the answer (JEPA-Reasoner, section 6.3)?

The summary holds ``half``, the symbols at the end of an answer that are compared; ``against``, the system whose latents
stand for the others, with which every system is compared; and ``renormalised`` and ``free``, each with ``systems`` and
``comparison`` (`unspoken.evaluation.degradation`) and ``norm_ratio`` (system -> for each level, the mean ratio of the
norms of noise and latent).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unspoken.draw.formats import BARE_PERCENT_1, coefficient, percent
from unspoken.draw.section import Section
from unspoken.draw.table import BLANK, Cell, Column, Table, estimate, number, text
from unspoken.evaluation.degradation import Hits, degradation
from unspoken.evaluation.outcomes import JEPA_REASONER
from unspoken.evaluation.results import Results, label
from unspoken.probes.probe import Probe, System, Task, View

FRACTIONS = (0.0, 0.05, 0.1, 0.15)
# The paper's values: sigma over the largest entry -> exact match of the last four symbols.
PAPER: Mapping[str, Mapping[float, float]] = {
    JEPA_REASONER: {0.0: 0.4588, 0.05: 0.4681, 0.1: 0.4643, 0.15: 0.4468},
    "coconut": {0.0: 0.3740, 0.05: 0.3688, 0.1: 0.3650, 0.15: 0.3629},
}
_KINDS = {"renormalised": True, "free": False}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What noise did to one model; both by kind of noise."""

    hits: Mapping[str, Hits]  # of the second half of the answers, at each level
    norm_ratios: Mapping[str, list[float]]  # of noise and latent, a mean for each level
    replaced: int  # symbols that latents stand for


class LatentNoiseProbe(Probe):
    """How does an answer bear noise on the latents that it is made of?"""

    key = "latent_noise"

    def applies(self, system: System, task: Task) -> bool:
        return task.traits.fixed_steps is not None

    def measure(self, view: View) -> Reading:
        """The second half of answers from noisy chains."""
        from unspoken.evaluation.latent_noise import LatentNoise, noisy_chain
        from unspoken.reasoning.system import opened

        half, system = view.task.traits.fixed_steps, view.system
        assert half is not None
        ids, mask = opened(*view.task.prompts(view.problems, view.prompt_format), system.opening)
        hits, ratios = {}, {}
        for kind, renormalise in _KINDS.items():
            hits[kind], ratios[kind] = {0.0: view.graded.hits[:, half:]}, [0.0]
            for fraction in FRACTIONS[1:]:
                noise = LatentNoise(fraction=fraction, seed=view.seed, renormalise=renormalise)
                how = {"batch_size": view.batch_size}
                chain, ratio = noisy_chain(system.reasoner, ids, mask, system.stop, noise, **how)
                hits[kind][fraction] = view.answer(chain=chain).hits[:, half:]
                ratios[kind].append(ratio)
        return Reading(hits=hits, norm_ratios=ratios, replaced=system.replaced)

    def summarise(self, readings: Mapping[str, Sequence[Reading]], *, baseline: str | None) -> dict[str, Any]:
        against = next((name for name, seeds in readings.items() if seeds[0].replaced), None)
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

    def draw(self, summary: Any, results: Results) -> Section | None:
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
