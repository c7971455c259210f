"""The page as one HTML file: markup, style, script and what the script starts from."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@cache
def _templates() -> Environment:
    loader = ChoiceLoader([PackageLoader("unspoken.explorer"), PackageLoader("unspoken.draw")])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined)


def _text(name: str) -> Markup:
    """A file as it is: style and script are no templates."""
    templates = _templates()
    assert templates.loader is not None
    return Markup(templates.loader.get_source(templates, name)[0])


def _source(text: str) -> str:
    """What allows one inline text and no other in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render(start: Mapping[str, Any]) -> str:
    """The page.

    Args:
        start: what the script reads first: the model's name and kind, whether its latents can be edited, whether test
            problems have numbers, and, of a page without a server, every answer that it can show.
    """
    style, script = _text("palette.css") + _text("explorer.css"), _text("explorer.js")
    # Within a script element only "<" could end it.
    data = json.dumps(start, separators=(",", ":")).replace("<", "\\u003c")
    policy = [
        "default-src 'none'",
        f"style-src {_source(style)}",
        f"script-src {_source(script)}",
        f"connect-src {'none' if start['frozen'] else 'self'!r}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return (
        _templates()
        .get_template("explorer.html.jinja")
        .render(title=start["model"], style=style, script=script, data=Markup(data), policy="; ".join(policy))
    )
