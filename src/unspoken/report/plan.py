"""What a recipe needs, on a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.console import Console

from unspoken.draw.formats import QUANTITY, Format, joined
from unspoken.draw.table import Column, Table, number, print_table, text, write_line


def print_plan(facts: dict[str, Any], console: Console) -> None:
    """Parameters, budget, hours and memory of each stage, in under 120 columns."""
    print_table(_budget(facts), console)
    print_table(_memory(facts), console)
    for note in facts["notes"]:
        write_line(textwrap.fill(note, 116, subsequent_indent="  "), console)


def _budget(facts: dict[str, Any]) -> Table:
    models = facts["models"]
    gpus = list(models[0]["hours"])
    rows = [
        [
            text(model["stage"]),
            *(text(f"{model[key]:,}") for key in ("parameters", "trained", "steps", "batch_size")),
            number(model["tokens"], QUANTITY),
            number(model["flops"], _OPERATIONS),
            *(number(hours, _ROUNDED) for hours in model["hours"].values()),
        ]
        for model in models
    ]
    spent = [[model["hours"][ranks] for model in models] for ranks in gpus]
    rows.append(
        [
            text("all"),
            *[text("")] * 4,
            number(sum(model["tokens"] for model in models), QUANTITY),
            number(sum(model["flops"] for model in models), _OPERATIONS),
            *(number(None if None in hours else sum(hours), _ROUNDED) for hours in spent),
        ]
    )
    heads = ("stage", "parameters", "trained", "steps", "batch", "tokens", "FLOPs", *(f"h on {n}" for n in gpus))
    title = f"{facts['name']} {facts['size']}, built on the meta device: budget, and hours (h) on {joined(gpus)} GPUs"
    return Table(title=title, columns=[Column(head, None, head) for head in heads], rows=rows)


def _memory(facts: dict[str, Any]) -> Table:
    models = facts["models"]
    gpus = list(models[0]["hours"])
    rows = []
    for model in models:
        first = model["memory_gb"][gpus[0]] or {}
        row = [text(model["stage"])]
        row += [number(first.get(key), _ROUNDED) for key in ("weights", "gradients", "optimizer", "gathered")]
        for used in model["memory_gb"].values():
            active = None if not used else used["activations"] + used["scores"]
            row += [number(active, _ROUNDED), number(used["total"] if used else None, _ROUNDED)]
        rows.append(row)
    heads = ["stage", "weights", "gradients", "optimiser", "gathered"]
    heads += [head for n in gpus for head in ("act.", f"GB on {n}")]
    title = "GB: weights, gradients and optimiser state summed over GPUs; gathered weights, activations (act.) and total per GPU"
    return Table(title=title, columns=[Column(head, None, head) for head in heads], rows=rows)


def _rounded(value: float) -> str:
    """Two decimals below ten, fewer above; what would round to nothing is ``<0.01``."""
    if 0 < value < 0.005:
        return "<0.01"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


_ROUNDED = Format(_rounded)
# ``4.96e18``: budgets of training are known by their powers of ten.
_OPERATIONS = Format(lambda value: f"{value:.2e}".replace("e+", "e"))
