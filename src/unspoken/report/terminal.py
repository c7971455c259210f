"""Results on a terminal: rich tables, or plain aligned text when the output is piped."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unspoken.draw.formats import duration, escaped
from unspoken.draw.section import print_section
from unspoken.draw.table import aligned, write_line
from unspoken.evaluation.results import Results, label
from unspoken.report.findings import training_time
from unspoken.report.names import with_short_names
from unspoken.report.sections import measured_sections
from unspoken.training.recorded_plans import Offer


def print_results(results: Results, console: Console) -> None:
    """Everything a run measured, in under a hundred columns: tables on a terminal, elsewhere plain aligned text."""
    results = with_short_names(results)
    for section in measured_sections(results):
        print_section(section, console)
    for short, name in results.get("full_names", {}).items():
        write_line(f"“{label(short)}” in full: {label(name)}", console)
    seconds = training_time(results)
    if seconds is not None:
        write_line(f"training took {duration(seconds)} per seed", console)


def print_recipes(offers: Sequence[Offer], console: Console) -> None:
    """Name, size, time, hardware and summary of every recipe, by task; a star before the one to start with."""
    heads = ["recipe", "size", "per seed", "on", "what it does"]
    groups = [
        [
            [
                f"{'* ' if offer.start_here else '  '}{offer.name}",
                offer.size,
                duration(offer.seconds),
                offer.hardware,
                offer.summary,
            ]
            for offer in group
        ]
        for _, group in groupby(offers, lambda offer: offer.task)
    ]
    titles = [task for task, _ in groupby(offers, lambda offer: offer.task)]
    if console.is_terminal:
        table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False)
        for title, rows in zip(titles, groups, strict=True):
            table.add_section()
            table.add_row(Text(escaped(title), "bold"))
            for row in rows:
                table.add_row(*(Text(escaped(entry)) for entry in row))
        console.print(table)
    else:
        lines = iter(aligned([heads, *(row for rows in groups for row in rows)], right=False))
        write_line(next(lines), console)
        for title, rows in zip(titles, groups, strict=True):
            write_line(f"\n{title}", console)
            for _ in rows:
                write_line(next(lines), console)
    write_line(
        "\n* start here. Times are estimates from the operations of a plan: two cores at 150 GFLOP/s in float32 "
        "('unspoken doctor' measures yours), or a GPU of 400 TFLOP/s used to 40 %.",
        console,
    )
