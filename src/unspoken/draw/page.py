"""Sections as one HTML page that needs no network, and no script to be read: its own sorts and copies."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unspoken.draw.chains import visible
from unspoken.draw.formats import coefficient
from unspoken.draw.glossary import GLOSSARY
from unspoken.draw.section import Block, Section

_NO_BREAK = "\u00a0"
_LOOSE = (" %", " points", "p = ", "p < ")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a page has about one run."""

    name: str
    size: str
    title: str
    finding: str  # what came out, in a sentence or two
    facts: str  # how it was measured
    origin: str  # when, with what and where
    headline: Sequence[Block]  # the numbers at the top
    sections: Sequence[Section]
    prefix: str = ""  # of its anchors, which are its own on a page of several runs


def _prose(text: str) -> str:
    """The text with each number and its unit on one line."""
    for loose in _LOOSE:
        text = text.replace(loose, loose.replace(" ", _NO_BREAK))
    return text


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("unspoken.draw"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    templates.globals["glossary"] = GLOSSARY
    templates.filters |= {"prose": _prose, "coefficient": coefficient, "visible": visible}
    return templates


def to_html(blocks: Sequence[Block]) -> Markup:
    """Blocks as they stand on a page."""
    return Markup(_templates().get_template("blocks.html.jinja").module.all(blocks))  # type: ignore[attr-defined]


def to_page(title: str, runs: Sequence[Run], comparison: Section | None = None) -> str:
    """The whole page.

    Args:
        comparison: what several runs say together.
    """
    script = resources.files("unspoken.draw").joinpath("templates/page.js").read_text()
    # A browser runs the one script that has this digest, whatever a results file smuggles in.
    digest = b64encode(sha256(script.encode()).digest()).decode()
    page = _templates().get_template("page.html.jinja")
    return page.render(title=title, runs=runs, comparison=comparison, script=Markup(script), digest=digest)
