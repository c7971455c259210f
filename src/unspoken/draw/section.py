"""A section of a page: a title over paragraphs, tables and charts, which a terminal shows as far as it can."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from markupsafe import Markup
from rich.console import Console

from unspoken.draw.table import Table, print_table, write_line

_WIDTH = 96  # of sentences on a terminal


@runtime_checkable
class Block(Protocol):
    """What a section is made of; ``template`` names the macro of ``blocks.html.jinja`` that writes it."""

    template: ClassVar[str]


class Key(NamedTuple):
    """One mark of a legend: classes of the style sheet, its name, and the number by which a chart calls it."""

    classes: str
    name: str
    number: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; a terminal writes its label before it, and leaves it out if there is none."""

    text: str
    classes: str = ""
    label: str = ""
    template: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section, with a remark in lighter type."""

    text: str
    remark: str = ""
    template: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Legend:
    """What the marks of several drawings mean."""

    keys: Sequence[Key]
    template: ClassVar[str] = "legend"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing: a title with a remark in lighter type, a legend, and a line below, its number and a remark."""

    drawing: Markup
    title: str = ""
    remark: str = ""
    legend: Sequence[Key] = ()
    below: tuple[str, str] | None = None
    width: float = 0.0  # in pixels, where the line below must not widen the panel
    latent: str = ""  # which latent it draws: the one of this name is marked wherever it is drawn
    classes: str = ""  # of the style sheet; ``miss`` raises the remark below


@dataclass(frozen=True)
class Figure:
    """Panels side by side as far as they fit, and what to look for in them."""

    panels: Sequence[Panel | Sequence[Panel]]  # several that belong together stand one below the other
    caption: str = ""
    classes: str = ""  # of the style sheet: ``beside`` (the caption stands to the right), ``example``
    title: str = ""
    remark: str = ""
    legend: Sequence[Key] = ()  # of all panels
    strip: bool = False  # on a phone the panels stay side by side and are swiped through
    chain: str = ""  # which chain it draws; its latents are named after it
    words: Sequence[tuple[str, str]] = ()  # of the answer, each with the latent that it is written from
    template: ClassVar[str] = "figure"


Status = Literal["holds", "fails", "inconclusive"]


class Test(NamedTuple):
    """One test behind a verdict: what came out, as text and as a drawing of its interval, if there is one."""

    status: Status
    text: str
    drawing: Markup | str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What follows from numbers: a name, and sentences about it or the tests of a claim."""

    name: str
    sentences: Sequence[str] = ()  # a terminal shows the first
    tests: Sequence[Test] = ()

    @property
    def status(self) -> Status | None:
        """Of a claim: it holds where every test shows it, and fails where one shows the opposite."""
        every = {test.status for test in self.tests}
        if not every:
            return None
        return "fails" if "fails" in every else "holds" if every == {"holds"} else "inconclusive"

    @property
    def text(self) -> str:
        """What a terminal shows."""
        return "; ".join(test.text for test in self.tests) if self.tests else self.sentences[0]


@dataclass(frozen=True)
class Verdicts:
    """What follows from the numbers, one verdict below the other."""

    items: Sequence[Verdict]
    template: ClassVar[str] = "verdicts"


@dataclass(frozen=True)
class Code:
    """Text of a fixed width; folded below a summary if there is one."""

    text: str
    summary: str = ""
    template: ClassVar[str] = "code"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Blocks that open below a summary, with a remark in lighter type."""

    summary: str
    remark: str
    blocks: Sequence[Block]
    opened: bool
    template: ClassVar[str] = "fold"


@dataclass(frozen=True)
class Examples:
    """Chains of single problems, of which a script shows the one that is picked; the further ones are folded away."""

    shown: Sequence[Block]
    further: Sequence[Block] = ()
    template: ClassVar[str] = "examples"


class Frame(NamedTuple):
    """What was seen at one moment."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Frames:
    """One thing at several moments, of which a script shows the one that a slider points at."""

    name: str  # of the slider
    items: Sequence[Frame]
    template: ClassVar[str] = "frames"


@dataclass(frozen=True)
class Section:
    """A headed part of a page; ``key`` is its anchor."""

    key: str
    title: str
    blocks: Sequence[Block]


def print_section(section: Section, console: Console) -> None:
    """On a terminal: the tables of a section, then what follows from them, and labelled paragraphs."""

    def write(label: str, text: str) -> None:
        write_line(textwrap.fill(f"{label}: {text}", _WIDTH, subsequent_indent="  "), console)

    for table in section.blocks:
        if isinstance(table, Table):
            print_table(table, console)
    for block in section.blocks:
        if isinstance(block, Verdicts):
            for verdict in block.items:
                write(verdict.name, verdict.text)
        elif isinstance(block, Paragraph) and block.label:
            write_line("", console)
            write(block.label, block.text)
