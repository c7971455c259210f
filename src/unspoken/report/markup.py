"""The few pieces of HTML that every section is made of. Text that comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from unspoken.report.figures import Panel


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: escaped when it is written.
        small: a second line in smaller type.
        html: drawing below or instead of the text, written as it is.
        classes: ``num`` (tabular figures to the right), ``wide`` (left out on a phone), ``strong``, ``muted``.
    """

    text: str = ""
    small: str = ""
    html: str = ""
    classes: str = "num"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A headed part of the page; ``key`` is its anchor."""

    key: str
    title: str
    body: str

    def html(self, prefix: str) -> str:
        """The section with an anchor that is its own on the page."""
        return f'<section id="{escape(prefix)}{self.key}"><h3>{escape(self.title)}</h3>{self.body}</section>'


def prose(text: str) -> str:
    """Escaped text in which a number and its unit stay on one line."""
    safe = escape(text)
    for loose, tight in (
        (" %", "&nbsp;%"),
        (" points", "&nbsp;points"),
        ("p = ", "p&nbsp;=&nbsp;"),
        ("p &lt; ", "p&nbsp;&lt;&nbsp;"),
    ):
        safe = safe.replace(loose, tight)
    return safe


def paragraph(text: str, classes: str = "") -> str:
    """A paragraph of prose."""
    return f'<p class="{classes}">{prose(text)}</p>' if classes else f"<p>{prose(text)}</p>"


def text_cell(text: str, small: str = "", classes: str = "") -> Cell:
    """A cell of words, to the left."""
    return Cell(text=text, small=small, classes=classes)


def heads(*titles: str) -> list[Cell]:
    """Column heads: the first names the rows, ``|`` parts a title from its unit, ``~`` marks columns a phone leaves out."""
    cells = []
    for index, title in enumerate(titles):
        text, _, small = title.removeprefix("~").partition("|")
        classes = ("num" if index else "") + (" wide" if title.startswith("~") else "")
        cells.append(Cell(text=text, small=small, classes=classes.strip()))
    return cells


def _cell(cell: Cell, tag: str) -> str:
    small = f"<small>{prose(cell.small)}</small>" if cell.small else ""
    classes = f' class="{cell.classes}"' if cell.classes else ""
    scope = ' scope="row"' if tag == "th" else ""
    return f"<{tag}{scope}{classes}>{prose(cell.text)}{small}{cell.html}</{tag}>"


def table(
    head: Sequence[Cell],
    rows: Iterable[Sequence[Cell]],
    *,
    caption: str = "",
    classes: str = "",
    groups: Sequence[tuple[str, int]] = (),
) -> str:
    """A table that scrolls inside its own frame where the screen is narrow; each row's first cell names the row.

    Args:
        groups: titles over the columns after the first, each with the number of columns it spans.
    """
    over = "".join(f'<th scope="colgroup" colspan="{span}">{escape(title)}</th>' for title, span in groups)
    over = f'<tr class="over"><td></td>{over}</tr>' if groups else ""
    heads = "".join(_cell(cell, "th").replace('scope="row"', 'scope="col"', 1) for cell in head)
    body = "".join(
        f"<tr>{_cell(first, 'th')}{''.join(_cell(cell, 'td') for cell in rest)}</tr>" for first, *rest in rows
    )
    below = f'<p class="caption">{prose(caption)}</p>' if caption else ""
    return (
        f'<div class="table" tabindex="0"><table class="{classes}"><thead>{over}<tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{below}"
    )


def figure(panels: Sequence[Panel], caption: str, *, classes: str = "") -> str:
    """Panels side by side as far as they fit, and what to look for in them."""
    inner = "".join(panel.html() for panel in panels)
    return (
        f'<figure class="{classes}"><div class="panels">{inner}</div><figcaption>{prose(caption)}</figcaption></figure>'
    )
