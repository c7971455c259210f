"""One table, for a page and for a terminal: columns, rows of typed cells, and a note."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal

from markupsafe import Markup
from rich import box
from rich import table as rich_table
from rich.console import Console
from rich.text import Text

from unspoken.draw.formats import NO_VALUE, PERCENT, Format, escaped


@dataclass(frozen=True)
class Cell:
    """A text, or a number with its format and interval."""

    value: float | str | None = None  # None, where nothing was measured, is written as a dash
    format: Format = PERCENT
    interval: tuple[float, float] | None = None  # low and high end; below the number on a page
    note: str = ""  # a line below that
    short: str | None = None  # what a terminal writes in place of the value
    drawing: Markup | str = ""  # below the text, on a page only
    classes: str = ""  # of the style sheet: ``strong``, ``muted``

    @property
    def text(self) -> str:
        """The value as it is written."""
        if self.value is None:
            return NO_VALUE
        return self.value if isinstance(self.value, str) else self.format(self.value)

    @property
    def lines(self) -> tuple[str, str]:
        """What stands in small type below the text: the interval and the note."""
        return "" if self.interval is None else self.format.interval(*self.interval), self.note


BLANK = Cell("")
UNKNOWN = Cell(classes="muted")


def text(value: str, note: str = "", classes: str = "", *, short: str | None = None) -> Cell:
    """A cell of words."""
    return Cell(value, note=note, classes=classes, short=short)


def number(value: float | None, write: Format = PERCENT, note: str = "", classes: str = "") -> Cell:
    """A cell of one number; grey where it was not measured."""
    return Cell(value, write, note=note, classes="muted" if value is None else classes)


def estimate(entry: Any, write: Format = PERCENT, note: str = "", classes: str = "", bar: Markup | str = "") -> Cell:
    """A cell of a mean with its interval, out of an entry with ``mean``, ``low`` and ``high``; grey without one."""
    if entry is None:
        return UNKNOWN
    ends = (entry["low"], entry["high"])
    return Cell(entry["mean"], write, interval=ends, note=note, classes=classes, drawing=bar)


def drawing(markup: Markup) -> Cell:
    """A cell of a picture alone, which a terminal leaves empty."""
    return Cell("", drawing=markup)


@dataclass(frozen=True)
class Column:
    """The head of a column and, for tables made by `Table.of`, how it reads the entry of a row."""

    head: str = ""  # on a page, the unit after ``|`` on a second line
    read: Callable[[Any], Cell] | None = None  # the cell of an entry
    # Heads on a terminal, ``|`` between them: of the text, and of the interval and the note if they are shown there. By
    # default the title; empty where the column is not on a terminal.
    short: str | None = None
    group: str = ""  # a title over neighbouring columns
    classes: str = "num"  # of the style sheet: ``num`` (to the right), ``wide`` (left out on a phone), ``graphic``

    @property
    def title(self) -> tuple[str, str]:
        """Both lines of the head on a page."""
        first, _, second = self.head.partition("|")
        return first, second

    @property
    def heads(self) -> list[str]:
        """Heads on a terminal."""
        title = self.title[0]
        short = title[:1].lower() + title[1:] if self.short is None else self.short
        return short.split("|") if short else []


def reading(head: str, key: str, write: Format, short: str | None = None, group: str = "", classes: str = "") -> Column:
    """A column of numbers in tables whose entries are pairs of a name and a mapping that may have the number."""
    return Column(head, lambda entry: number(entry[1].get(key), write, classes=classes), short, group)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first cell of each row names it."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""  # above it on a terminal; on a page its name for those who hear it read
    note: str = ""  # what to look for in it, below it on a page
    classes: str = ""  # of the style sheet
    # Whether a terminal shows it as it is, with rows and columns exchanged (rows of one name become one), a group of
    # columns at a time, or not at all.
    terminal: Literal["as it is", "transposed", "by group", "absent"] = "as it is"
    template: ClassVar[str] = "table"

    @classmethod
    def of(cls, entries: Iterable[Any], columns: Sequence[Column], **rest: Any) -> Table:
        """A row for each entry, read by every column."""
        rows = [[column.read(entry) for column in columns if column.read] for entry in entries]
        return cls(columns=columns, rows=rows, **rest)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Titles over the columns after the first, with the number of columns below each; empty without any title."""
        groups = [(title, len([*columns])) for title, columns in groupby(self.columns[1:], lambda column: column.group)]
        return groups if any(title for title, _ in groups) else []

    @property
    def styles(self) -> list[str]:
        """Classes of every column; the first of a group keeps its distance."""
        styles, before = [""], ""
        for column in self.columns[1:]:
            styles.append(column.classes + (" first" if column.group not in ("", before) else ""))
            before = column.group
        return styles

    def __repr__(self) -> str:
        """Plain aligned text."""
        return "\n".join(line for title, lines in grids(self) for line in (title, *aligned(lines, right=False)))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from unspoken.draw.page import to_html

        return str(to_html([self]))


Grid = list[list[str]]  # the head first


def _grid(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> Grid:
    def texts(column: Column, cell: Cell) -> list[str]:
        return [cell.text if cell.short is None else cell.short, *cell.lines][: len(column.heads)]

    lines = [[head for column in columns for head in column.heads]]
    lines += [[line for pair in zip(columns, row, strict=True) for line in texts(*pair)] for row in rows]
    return [[escaped(cell) for cell in line] for line in lines]


def grids(table: Table) -> list[tuple[str, Grid]]:
    """What a terminal shows of a table: titles, each with lines of texts, the head first."""
    if table.terminal == "absent" or not table.rows:
        return []
    if table.terminal == "by group":
        first, *rest = zip(table.columns, zip(*table.rows, strict=True), strict=True)
        groups = [
            (title, zip(first, *group, strict=True)) for title, group in groupby(rest, lambda pair: pair[0].group)
        ]
        every = []
        for title, (columns, cells) in groups:
            rows = [row for row in zip(*cells, strict=True) if any(cell.value is not None for cell in row[1:])]
            every += [(escaped(f"{title}: {table.title}"), _grid(columns, rows))] if title else []
        return every
    lines = _grid(table.columns, table.rows)
    if table.terminal == "transposed":
        merged: dict[str, list[str]] = {}
        for line in lines:
            before = merged.setdefault(line[0], line)
            merged[line[0]] = [new if old == NO_VALUE else old for old, new in zip(before, line, strict=True)]
        lines = [list(line) for line in zip(*merged.values(), strict=True)]
    return [(escaped(table.title), lines)]


def aligned(lines: Grid, *, right: bool = True) -> list[str]:
    """Lines of plain text; columns after the first are numbers, to the right, or text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right and index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def write_line(line: object, console: Console, style: str = "", *, label: str = "") -> None:
    """A text as it stands: no markup, no emoji, no control characters, no wrapping at a pipe's width.

    Args:
        style: of the line; a pipe gets none.
        label: before the line, in lighter type.
    """
    console.print(Text.assemble((escaped(label), "dim"), (escaped(line), style)), soft_wrap=True)


def print_table(table: Table, console: Console) -> None:
    """A table on a terminal, or plain aligned text where the output is piped."""
    for title, lines in grids(table):
        write_line(f"\n{title}", console)
        if not console.is_terminal:
            for plain in aligned(lines):
                write_line(f"  {plain}", console)
            continue
        shown = rich_table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for index, head in enumerate(lines[0]):
            shown.add_column(Text(head), justify="right" if index else "left", no_wrap=index > 0)
        for line in lines[1:]:
            shown.add_row(*map(Text, line))
        console.print(shown)
