"""Results on a terminal: rich tables, or plain aligned text when the output is piped."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unspoken.draw.formats import duration, escaped
from unspoken.draw.section import print_section
from unspoken.draw.table import aligned, write_line
from unspoken.evaluation.results import Results
from unspoken.report.findings import training_time
from unspoken.report.sections import measured_sections


def print_results(results: Results, console: Console) -> None:
    """Everything a run measured, in under a hundred columns: tables on a terminal, elsewhere plain aligned text."""
    for section in measured_sections(results):
        print_section(section, console)
    seconds = training_time(results)
    if seconds is not None:
        write_line(f"training took {duration(seconds)} a seed", console)


def print_recipes(recipes: Sequence[tuple[str, str, str]], console: Console) -> None:
    """Name, size and summary of every recipe."""
    if not console.is_terminal:
        for line in aligned([list(recipe) for recipe in recipes], right=False):
            write_line(line, console)
        return
    table = Table("recipe", "size", "what it does", box=box.SIMPLE_HEAD, pad_edge=False)
    for recipe in recipes:
        table.add_row(*(Text(escaped(entry)) for entry in recipe))
    console.print(table)
