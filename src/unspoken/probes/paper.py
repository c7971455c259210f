"""Tree search as JEPA-Reasoner reports it, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unspoken.draw.formats import QUANTITY, percent, quantity
from unspoken.draw.table import Cell, Column, Table, number, text
from unspoken.evaluation.results import Results, averaged


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What JEPA-Reasoner (arXiv 2512.19171v3, section 5.1) reports for tree search."""

    exact_match: float = 0.9987  # of the complete route
    major: float = 0.9989  # the right child has the larger of the two coefficients
    rank: float = 0.0172  # of the sibling plane among all planes, as a fraction
    parameters: float = 42e6  # of the Reasoner


PAPER = Paper()
NEAREST = ", nearest row"  # ends the name of a Reasoner that is read out without its Talker


def compares_to_paper(results: Results) -> bool:
    """Whether the task is the paper's: tree search with one named target."""
    task = results.get("recipe", {}).get("task", {})
    return bool(task.get("kind") == "tree_search" and task.get("targets", 1) == 1)


def paper_table(results: Results, mixtures: Mapping[str, Any], reference: Mapping[str, float] | None) -> Table:
    """The paper's measures beside ours, a column a Reasoner; ``mixtures`` by Reasoner, ``reference`` ranks."""
    # A Reasoner with a Talker is measured under the name of its read-out without one.
    alone = {name.removesuffix(NEAREST): name for name in mixtures}
    systems = {name: results["systems"][name] for name in alone if name in results["systems"]}
    forced = {
        name: {key: averaged(value) for key, value in mixtures[alone[name]]["forced"].items()} for name in systems
    }

    def both(key: str) -> list[Cell]:
        inner = {name: percent(values[f"{key}_inner"]) for name, values in forced.items()}
        return [number(forced[name][key], note=f"inner nodes {inner[name]}") for name in systems]

    sizes = [results["systems"][alone[name]]["cost"]["parameters"] for name in systems]
    depth = results["recipe"]["task"].get("depth")
    rows = [
        [text("Exact match"), number(PAPER.exact_match), *(number(e["exact_match"]["mean"]) for e in systems.values())],
        [
            text("Right child has the larger coefficient", "teacher-forced, all nodes below the root"),
            number(PAPER.major),
            *both("major"),
        ],
        [
            text("Rank of the sibling plane", "among the planes of all pairs of names, nearest first"),
            number(PAPER.rank),
            *both("rank"),
        ],
        [text("Levels of the tree"), text("4"), *(Cell(None if depth is None else str(depth)) for _ in systems)],
        [
            text("Parameters of the Reasoner"),
            text(quantity(PAPER.parameters, 2)),
            *(number(size, QUANTITY) for size in sizes),
        ],
    ]
    note = "Paper: JEPA-Reasoner, arXiv 2512.19171, version 3, section 5.1, one model. "
    if reference:
        note += (
            f"A rank near {percent(reference['true_mixture'])} means a mixture of the two siblings, one near "
            f"{percent(reference['no_sibling'])} a plain name: a model that is certain has no reason to mix."
        )
    classes = "narrow" if len(systems) < 3 else ""
    columns = [*map(Column, ("Measure", "Paper", *systems))]
    return Table(columns=columns, rows=rows, note=note, classes=classes, terminal="absent")
