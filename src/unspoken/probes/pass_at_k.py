"""Several noisy chains per problem, and pass@k: how often one of k gives the right answer (docs/methods/latent_sft.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspoken.draw.charts import rate_bar
from unspoken.draw.formats import count
from unspoken.draw.section import Section
from unspoken.draw.table import Cell, Column, Table, estimate, text
from unspoken.evaluation.results import Results, label, summary_of
from unspoken.evaluation.significance import rate
from unspoken.probes.colours import system_colours
from unspoken.probes.probe import Probe, System, Task, View


def pass_at(k: int, right: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Chance that k of a problem's draws hold a right one: unbiased for k new draws (Chen et al., 2021, equation 1).

    Args:
        right: ``[P]``, how many draws of each problem are right.
        draws: how many there are of each problem.

    Returns:
        ``[P]``.
    """
    assert 1 <= k <= draws and ((right >= 0) & (right <= draws)).all(), (
        f"pass@{k} of {right} right out of {draws} draws"
    )
    none_right = [math.comb(draws - count, k) / math.comb(draws, k) for count in range(draws + 1)]
    return 1 - np.array(none_right)[right]


class PassAtKProbe(Probe):
    """pass@k for k in 1, 2, 4, ... up to the number of draws, and for that number itself.

    Attributes:
        draws: noisy chains of each problem.

    Raises:
        ValueError: ``draws`` is below 1.
    """

    key = "pass_at_k"
    optional = True

    def __init__(self, draws: int = 8) -> None:
        if draws < 1:
            raise ValueError(f"{draws} chains per problem cannot be drawn; ask for at least 1")
        self.draws = draws

    def applies(self, system: System, task: Task) -> bool:
        """Of chains whose steps are drawn from a distribution over the vocabulary, with noise."""
        from unspoken.evaluation.sampling import draws_differ

        return system.mixes_rows and system.stop.max_latents > 0 and task.traits.has_chain and draws_differ(system)

    def measure(self, view: View) -> NDArray[np.int64]:
        """``[P]``, how many draws of each problem are right."""
        from unspoken.evaluation.sampling import draw

        drawn = draw(
            view.system,
            view.task,
            view.problems,
            view.prompt_format,
            batch_size=view.batch_size,
            draws=self.draws,
            seed=view.seed,
        )
        return drawn.sum(axis=1)

    def summarise(self, readings: Mapping[str, Sequence[NDArray[np.int64]]], *, baseline: str | None) -> dict[str, Any]:
        """``draws``, and ``systems``: by name and k the rate over seeds and problems.

        Its interval is that of outcomes which are right or wrong, so it is rather too wide for k below ``draws``.
        """
        every = sorted({self.draws, *(2**power for power in range(self.draws.bit_length()))})
        return {
            "draws": self.draws,
            "systems": {
                name: {
                    str(k): asdict(rate(np.stack([pass_at(k, right, self.draws) for right in seeds]))) for k in every
                }
                for name, seeds in readings.items()
            },
        }

    def section(self, results: Results) -> Section | None:
        """pass@k of noisy chains, beside the exact match of the clean one."""
        entry = summary_of(results, self.key)
        if not entry or not entry["systems"]:
            return None
        colours = system_colours(results)

        def clean(name: str) -> Cell:
            return _cell(results["systems"][name]["exact_match"], colours[name])

        def noisy(name: str, k: int) -> Cell:
            return _cell(entry["systems"][name][str(k)], colours[name])

        every = sorted({int(k) for rates in entry["systems"].values() for k in rates})
        columns = [Column("System", lambda name: text(label(name))), Column("Clean chain", clean)]
        columns += [Column(f"pass@{k}", partial(noisy, k=k), f"@{k}") for k in every]
        draws = count(entry["draws"], "noisy chain")
        note = (
            f"Chance that one of k chains gives the right answer, estimated from {draws} per problem, "
            "with a 95 % interval that is rather too wide; the bar goes from 0 to 100 %. Explicit chains are sampled at temperature 1, "
            "superpositions have Gumbel noise on their weights, and every answer is decoded greedily. Guesses that differ raise pass@k "
            "too, so compare systems at the same k; pass@1 far below the clean chain means that the noise does harm."
        )
        title = f"pass@k, from {draws} per problem"
        table = Table.of(entry["systems"], columns, title=title, note=note, classes="matrix")
        return Section(self.key, "Several chains per problem", [table])


def _cell(entry: Mapping[str, Any], colour: str) -> Cell:
    return estimate(entry, bar=rate_bar(entry, colour))
