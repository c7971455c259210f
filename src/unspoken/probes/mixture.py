"""Are latents mixtures of the right node and its sibling? (JEPA-Reasoner, section 5.1, "mixed latents")"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unspoken.draw.formats import PERCENT, THREE_DECIMALS, percent
from unspoken.draw.section import Block, Heading, Section
from unspoken.draw.table import BLANK, Cell, Column, Table, number, text
from unspoken.evaluation.results import Results, averaged, is_ambiguous, step_names
from unspoken.evaluation.significance import seed_means
from unspoken.probes.mixing_curves import mixing_blocks
from unspoken.probes.paper import PAPER, compares_to_paper, paper_table
from unspoken.probes.probe import Probe, System, Task, View
from unspoken.probes.tree_latents import KINDS, reasons_in_trees, tree_latents
from unspoken.tasks.tree_search import LETTERS

Readings = Mapping[str, Mapping[str, Any]]  # means over seeds by reading, teacher-forced and in rollout


class MixtureProbe(Probe):
    """Rank of the sibling plane and the two coefficients, see `unspoken.analysis.mixture`."""

    key = "mixture"

    def applies(self, system: System, task: Task) -> bool:
        return reasons_in_trees(system, task)

    def measure(self, view: View) -> dict[str, dict[str, Any]]:
        from unspoken.analysis.mixture import measure, siblings

        latents = tree_latents(view)
        # A chain that stopped early has no latent to take apart: it counts as wrong, not as unmixed.
        rows = latents.complete
        if not rows.any():  # there must be something to average: the missing latents are zeros, which mix nothing
            rows = ~rows
        below, expected = slice(1, latents.task.config.depth), siblings(latents.task, latents.problems).select(rows)
        return {
            kind: measure(values[rows, below], latents.targets.target_table, expected).summary()
            for kind, values in latents.kinds.items()
        }

    def summarise(
        self, readings: Mapping[str, Sequence[dict[str, dict[str, Any]]]], *, baseline: str | None
    ) -> dict[str, Any]:
        """Means over seeds of each of the ``systems``, and the ``reference`` levels of the rank."""
        from unspoken.analysis.mixture import reference_levels

        systems = {
            name: {kind: seed_means([seed[kind] for seed in seeds]) for kind in seeds[0]}
            for name, seeds in readings.items()
        }
        return {"reference": reference_levels(len(LETTERS)), "systems": systems}

    def draw(self, summary: Any, results: Results) -> Section | None:
        systems, reference = summary["systems"], summary["reference"] or {}
        blocks: list[Block] = [_table(results, systems, reference), *mixing_blocks(results, reference)]
        if compares_to_paper(results):
            blocks += [Heading("Beside the paper"), paper_table(results, systems, reference)]
        return Section(self.key, "What a latent is made of", blocks)


def _mean_coefficient(means: Mapping[str, Any], key: str) -> float:
    if key in means:
        return float(means[key])
    values = means[f"{key}_steps"]
    return float(sum(values) / len(values))


def _row(name: str, readings: Readings, pick: str | int, classes: str = "") -> list[Cell]:
    """One row: at a step if ``pick`` is a position, else over the nodes with that suffix."""
    row = [text(name, classes=classes)]
    for means in readings.values():
        if isinstance(pick, int):
            values = [means[f"{reading}_steps"][pick] for reading in ("rank", "major", "right", "other")]
        else:
            values = [means[f"rank{pick}"], means[f"major{pick}"]]
            values += [_mean_coefficient(means, f"{side}{pick}") for side in ("right", "other")]
        formats = (PERCENT, PERCENT, THREE_DECIMALS, THREE_DECIMALS)
        row += [number(value, write, classes=classes) for value, write in zip(values, formats, strict=True)]
    return row


def _table(results: Results, systems: Mapping[str, Any], reference: Mapping[str, float]) -> Table:
    """Every step of one system, or the inner nodes of several and all their nodes."""
    every = {
        name: {kind: {key: averaged(value) for key, value in entry[kind].items()} for kind in KINDS if kind in entry}
        for name, entry in systems.items()
    }
    first = next(iter(every.values()))
    if len(every) == 1:
        depth = len(next(iter(first.values()))["rank_steps"]) + 1
        rows = [_row(name, first, index) for index, name in enumerate(step_names(depth)[1:])]
        rows += [_row("inner nodes", first, "_inner", "strong"), _row("all nodes", first, "", "strong")]
    else:
        rows = [_row(f"{name}, inner nodes", readings, "_inner") for name, readings in every.items()]
        rows += [_row(f"{name}, all nodes", readings, "") for name, readings in every.items()]
    if compares_to_paper(results):
        blank = [BLANK] * (4 * len(first) - 2)
        rows.append([text("all nodes, the paper’s"), number(PAPER.rank), number(PAPER.major), *blank])
    heads = (
        ("Rank|of the sibling plane", "rank"),
        ("Right larger|of the two", "larger"),
        ("Right child|coefficient", "right"),
        ("Other child|coefficient", "other"),
    )
    columns = [Column("Node" if len(every) == 1 else "Latents of")]
    columns += [Column(head, None, short, KINDS[kind].capitalize()) for kind in first for head, short in heads]
    title, note = (
        "sibling plane, teacher-forced and in rollout",
        "Each latent is projected on the plane of the right child and its sibling. ",
    )
    if reference:
        mixed, plain = percent(reference["true_mixture"]), percent(reference["no_sibling"])
        title += f":\nrank {plain} without the sibling, {mixed} for the two siblings alone"
        note += (
            f"Rank of that plane among the planes of all pairs of names, by distance: {mixed} "
            f"for a mixture of the two siblings alone, {plain} with no sibling in it. "
        )
    if not is_ambiguous(results):
        note += "The leaf is named in the prompt, so only the inner nodes test the search."
    return Table(title=title, columns=columns, rows=rows, note=note.strip())
