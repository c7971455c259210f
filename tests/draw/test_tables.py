"""Tables and sections on a terminal and on a page: heads, groups, what a terminal shows of them, to the letter."""

from __future__ import annotations

from io import StringIO

import pytest
from markupsafe import Markup
from rich.console import Console

from unspoken.draw import section
from unspoken.draw.formats import PERCENT_1, POINTS, TWO_DECIMALS
from unspoken.draw.section import Heading, Paragraph, Section, Verdict, Verdicts, print_section
from unspoken.draw.table import (
    BLANK,
    UNKNOWN,
    Cell,
    Column,
    Table,
    aligned,
    drawing,
    estimate,
    grids,
    number,
    print_table,
    reading,
    text,
    write_line,
)

RATE = {"mean": 0.5, "low": 0.25, "high": 0.75}


def printed(*, terminal: bool = False, width: int = 60) -> tuple[Console, StringIO]:
    out = StringIO()
    return Console(file=out, force_terminal=terminal, color_system=None, width=width), out


@pytest.mark.parametrize(
    ("cell", "shown", "lines", "classes"),
    [
        (text("a", "b", "strong"), "a", ("", "b"), "strong"),
        (number(0.5), "50.00 %", ("", ""), ""),
        (number(0.5, PERCENT_1, "note", "strong"), "50.0 %", ("", "note"), "strong"),
        (number(0.0), "0.00 %", ("", ""), ""),
        (number(None, classes="strong"), "–", ("", ""), "muted"),
        (estimate(RATE), "50.00 %", ("25.00 – 75.00", ""), ""),
        (estimate(RATE, POINTS, "n", "muted"), "+50.0", ("+25.0 to +75.0", "n"), "muted"),
        (estimate(None), "–", ("", ""), "muted"),
        (drawing(Markup("<svg/>")), "", ("", ""), ""),
        (BLANK, "", ("", ""), ""),
        (UNKNOWN, "–", ("", ""), "muted"),
        (Cell(), "–", ("", ""), ""),
    ],
)
def test_a_cell_is_text_with_small_lines_below(cell: Cell, shown: str, lines: tuple[str, str], classes: str) -> None:
    assert (cell.text, cell.lines, cell.classes) == (shown, lines, classes)


@pytest.mark.parametrize(
    ("column", "title", "heads"),
    [
        (Column("Exact match|95 % interval"), ("Exact match", "95 % interval"), ["exact match"]),
        (Column("Exact match", short="mean|95 %"), ("Exact match", ""), ["mean", "95 %"]),
        (Column("Exact match", short=""), ("Exact match", ""), []),
        (Column("|0 to 100 %"), ("", "0 to 100 %"), []),
        (Column("P|Q|R"), ("P", "Q|R"), ["p"]),
    ],
)
def test_a_head_has_two_lines_on_a_page_and_its_own_on_a_terminal(
    column: Column, title: tuple[str, str], heads: list[str]
) -> None:
    assert (column.title, column.heads) == (title, heads)


def grouped(terminal: str = "as it is", groups: tuple[str, ...] = ("Norm", "Norm", "", "Rank")) -> Table:
    columns = [Column("System"), *(Column(head, group=group) for head, group in zip("ABCD", groups, strict=True))]
    rows = [[text("one"), *(text(entry) for entry in "1234")], [text("two"), text("5"), UNKNOWN, text("7"), UNKNOWN]]
    return Table(columns=columns, rows=rows, title="all", terminal=terminal)  # type: ignore[arg-type]


def test_titles_stand_over_neighbouring_columns_and_keep_them_apart() -> None:
    assert grouped().groups == [("Norm", 2), ("", 1), ("Rank", 1)]
    assert grouped().styles == ["", "num first", "num", "num", "num first"]
    assert grouped(groups=("Norm", "Rank", "Norm", "Norm")).styles == ["", *["num first"] * 3, "num"]
    assert grouped(groups=("",) * 4).groups == []


def test_a_terminal_shows_a_table_as_it_is_or_turned_or_by_its_groups_or_not_at_all() -> None:
    lines = [["system", "a", "b", "c", "d"], ["one", *"1234"], ["two", "5", "–", "7", "–"]]
    assert grids(grouped()) == [("all", lines)]
    assert grids(grouped("transposed")) == [("all", [list(line) for line in zip(*lines, strict=True)])]
    # Titles without a name are left out, and so are rows that have nothing in a group.
    assert grids(grouped("by group")) == [
        ("Norm: all", [["system", "a", "b"], ["one", "1", "2"], ["two", "5", "–"]]),
        ("Rank: all", [["system", "d"], ["one", "4"]]),
    ]
    assert grids(grouped("absent")) == grids(Table(columns=[Column("System")], rows=[])) == []


def test_turned_rows_of_one_name_become_one() -> None:
    columns = [Column("Chain", short="system"), Column("one"), Column("two")]
    rows = [
        [text("swap"), text("1"), UNKNOWN],
        [text("noise", short="random"), text("2"), UNKNOWN],
        [text("mixtures", short="random"), UNKNOWN, text("3")],
    ]
    table = Table(columns=columns, rows=rows, terminal="transposed")
    assert grids(table) == [("", [["system", "swap", "random"], ["one", "1", "2"], ["two", "–", "3"]])]


def test_interval_and_note_are_on_a_terminal_where_the_head_names_them() -> None:
    cell = estimate(RATE, note="sure")
    for short, heads, shown in (
        ("mean", ["mean"], ["50.00 %"]),
        ("mean|interval", ["mean", "interval"], ["50.00 %", "25.00 – 75.00"]),
        ("mean|interval|note", ["mean", "interval", "note"], ["50.00 %", "25.00 – 75.00", "sure"]),
    ):
        table = Table(columns=[Column("System"), Column("Mean", short=short)], rows=[[text("one"), cell]])
        assert grids(table) == [("", [["system", *heads], ["one", *shown]])]


def test_numbers_stand_to_the_right_and_text_to_the_left() -> None:
    lines = [["a", "bb"], ["ccc", "d"]]
    assert aligned(lines) == ["a    bb", "ccc   d"]
    assert aligned(lines, right=False) == ["a    bb", "ccc  d"]
    assert repr(Table(columns=[Column("A"), Column("Bb")], rows=[[text("ccc"), text("d")]], title="t")) == (
        "t\na    bb\nccc  d"
    )


def test_a_row_is_read_by_every_column_that_reads() -> None:
    columns = [
        Column("System", lambda entry: text(entry[0])),
        reading("Norm|of rows", "norm", TWO_DECIMALS, "n", "Norms", "strong"),
        Column("not read"),
    ]
    table = Table.of([("one", {"norm": 1.5}), ("two", {})], columns, title="norms", classes="narrow")
    assert [[cell.text for cell in row] for row in table.rows] == [["one", "1.50"], ["two", "–"]]
    assert [row[1].classes for row in table.rows] == ["strong", "muted"]
    assert (table.title, table.classes, columns[1].heads, columns[1].group) == ("norms", "narrow", ["n"], "Norms")


def test_a_pipe_gets_plain_text_and_a_terminal_a_table() -> None:
    table = Table(columns=[Column("System"), Column("Rate")], rows=[[text("a [b]"), number(0.5)]], title="rates")
    console, out = printed()
    print_table(table, console)
    assert out.getvalue() == "\nrates\n  system     rate\n  a [b]   50.00 %\n"
    console, out = printed(terminal=True)
    print_table(table, console)
    assert [line.rstrip() for line in out.getvalue().splitlines()] == [
        "",
        "rates",
        "system     rate",
        "───────────────",
        "a [b]   50.00 %",
    ]
    # A name that does not fit is wrapped, a number never is.
    for name, width in (("a long name", 16), ("a bb", 11)):
        console, out = printed(terminal=True, width=width)
        print_table(Table(columns=[Column("A"), Column("B")], rows=[[text(name), number(0.5)]]), console)
        assert "50.00 %" in out.getvalue() and name not in out.getvalue()
        assert all(word in out.getvalue() for word in name.split())


def test_a_line_is_never_wrapped_and_holds_no_markup() -> None:
    console, out = printed(width=10)
    write_line("[bold]" + "word " * 5, console, label="label\x1b: ")
    assert out.getvalue() == "label\\x1b: [bold]word word word word word \n"


def test_a_terminal_shows_tables_then_verdicts_then_labelled_paragraphs() -> None:
    sentence = "word " * 22
    blocks = [
        Heading("heading"),
        Paragraph("not shown"),
        Verdicts(
            [
                Verdict(name="a", sentences=[sentence, "second"]),
                Verdict(name="b", tests=[section.Test("holds", "x"), section.Test("fails", "y")]),
            ]
        ),
        Paragraph("text", label="one"),
        Table(columns=[Column("A")], rows=[[text("1")]], title="table"),
    ]
    console, out = printed()
    print_section(Section("key", "title", blocks), console)
    # Ninety-six letters a line, two to the right from the second on.
    first = "a: " + " ".join(["word"] * 18)
    assert out.getvalue() == f"\ntable\n  a\n  1\n{first}\n  word word word word\nb: x; y\n\none: text\n"


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([], None),
        (["holds"], "holds"),
        (["holds", "holds"], "holds"),
        (["holds", "inconclusive"], "inconclusive"),
        (["inconclusive"], "inconclusive"),
        (["holds", "fails"], "fails"),
        (["fails", "inconclusive"], "fails"),
    ],
)
def test_a_claim_holds_where_every_test_shows_it(statuses: list[str], status: str | None) -> None:
    tests = [section.Test(one, "") for one in statuses]  # type: ignore[arg-type]
    assert Verdict(name="claim", tests=tests).status == status
