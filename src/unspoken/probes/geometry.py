"""Where the hidden states of chains are, beside the rows of the embedding table (Latent-SFT, preliminary experiments).

The hidden state of a step is the output of the stack that the step was made from: what a method that feeds hidden
states back would put in the step's place. The paper looks at the explicit chain of thought; here every system that
writes a chain is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from unspoken.draw import clouds
from unspoken.draw.formats import ONE_DECIMAL, THREE_DECIMALS, TWO_DECIMALS, coefficient, count, joined, percent
from unspoken.draw.section import Block, Figure, Key, Panel, Section
from unspoken.draw.table import Cell, Column, Table, reading, text
from unspoken.evaluation.results import Results, label
from unspoken.probes.probe import Probe, System, Task, View

_PROBLEMS = 200  # whose chains are taken


class GeometryProbe(Probe):
    """Norms, effective rank and distances of hidden states beside embeddings."""

    key = "geometry"
    optional = True

    def applies(self, system: System, task: Task) -> bool:
        """Of every chain but one of latents that are trained to be directions of table rows."""
        return system.targets is None and task.traits.has_chain

    def measure(self, view: View) -> dict[str, Any] | None:
        """None where there are no two different hidden states."""
        import torch

        from unspoken.analysis.geometry import geometry, principal_planes
        from unspoken.evaluation.distributions import before_latents
        from unspoken.placement import CPU, moved
        from unspoken.reasoning.superposition import embedding_table

        if not view.has_chain:
            return None
        some = view.first(_PROBLEMS)
        chain = some.graded.chain
        states = before_latents(some.system, some.task, some.problems, some.prompt_format, chain, some.batch_size)
        hidden = torch.cat(states)
        # A model that repeats itself for ever repeats its states, and no distance has a scale among equal rows.
        different = hidden.unique(dim=0)
        if len(different) < 2:
            return None
        table = moved(embedding_table(view.system.model), CPU)
        reading = {**asdict(geometry(table, different, seed=view.seed)), "states": len(hidden)}
        if view.first_seed:
            plane = principal_planes(table, different, seed=view.seed)
            reading["plane"] = {
                "embeddings": plane.embeddings.numpy().round(4).tolist(),
                "hidden": plane.hidden.numpy().round(4).tolist(),
                "explained": list(plane.explained),
            }
        return reading

    def summarise(self, readings: Mapping[str, Sequence[dict[str, Any]]], *, baseline: str | None) -> dict[str, Any]:
        """By system the numbers averaged over seeds; the first system keeps the picture of its first seed."""
        summary: dict[str, Any] = {}
        for name, seeds in readings.items():
            summary[name] = {key: float(np.mean([seed[key] for seed in seeds])) for key in seeds[-1] if key != "plane"}
            if len(summary) == 1 and "plane" in seeds[0]:
                summary[name]["plane"] = seeds[0]["plane"]
        return summary

    def draw(self, entries: Any, results: Results) -> Section | None:
        def cosine(entry: tuple[str, Mapping[str, Any]]) -> Cell:
            return text(f"{coefficient(entry[1]['cosine_mean'], 3)} ± {coefficient(entry[1]['cosine_sd'], 3)}")

        def system(entry: tuple[str, Mapping[str, Any]]) -> Cell:
            return text(label(entry[0]), f"{count(round(entry[1]['states']), 'hidden state')} per seed")

        norm, rank, beside = "Mean norm", "Effective rank", "Rows against states"
        columns = [
            Column("System", system),
            reading("Rows", "embedding_norm", TWO_DECIMALS, "norm: rows", norm),
            reading("States", "hidden_norm", TWO_DECIMALS, "states", norm),
            reading("Rows", "embedding_rank", ONE_DECIMAL, "rank: rows", rank),
            reading("States", "hidden_rank", ONE_DECIMAL, "states", rank),
            Column("Cosine|of random pairs", cosine, group=beside),
            reading("Fréchet|of fitted Gaussians", "frechet", TWO_DECIMALS, "Fréchet", beside),
            reading("MMD|Gaussian kernel", "mmd", THREE_DECIMALS, "MMD", beside),
        ]
        note = (
            "A method that feeds hidden states back as inputs assumes that they look like rows of the embedding table. Far-apart "
            "norms, a cosine near zero and large distances show that they do not; a mixture of rows lies among the rows by itself. "
            "A hidden state is the output of the stack that a step of the chain was made from; means over seeds, both distances "
            "squared."
        )
        title = "rows of the embedding table and hidden states of the chain (distances are squared)"
        blocks: list[Block] = [Table.of(entries.items(), columns, title=title, note=note)]
        blocks += [
            _plane(label(name), entry["plane"])
            for name, entry in entries.items()
            if entry.get("plane") and entry["plane"]["embeddings"] and entry["plane"]["hidden"]
        ]
        return Section(self.key, "Hidden states beside embeddings", blocks)


def _plane(name: str, plane: Mapping[str, Any]) -> Figure:
    explained = joined([percent(fraction, 1) for fraction in plane["explained"]])
    caption = (
        f"Both on the plane of most variance of the two together, which explains {explained} of it: distances "
        "here are only a hint."
    )
    described = "Embedding rows and hidden states on two principal components"
    picture = clouds.two_clouds(plane["embeddings"], plane["hidden"], label=described)
    legend = (Key("c1 squared", "rows of the embedding table"), Key("c2 dotted", "hidden states"))
    return Figure([Panel(title=name, legend=legend, drawing=picture)], caption, "beside")
