"""One run, or several, as one HTML file that needs no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from unspoken.report.compare import comparison, cost_figure
from unspoken.report.findings import Results, finding, sample, title
from unspoken.report.markup import Section, prose
from unspoken.report.sections import SECTIONS, headline
from unspoken.storage import write_text

# The page promises to fetch nothing; this makes the browser hold it to that.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def _sections(results: Results) -> list[Section]:
    return [section for make in SECTIONS if (section := make(results)) is not None]


def _links(sections: Sequence[Section], prefix: str) -> str:
    links = "".join(f'<a href="#{prefix}{section.key}">{escape(section.title)}</a>' for section in sections)
    return f'<nav aria-label="Sections">{links}</nav>'


def _facts(results: Results) -> str:
    summary = results.get("recipe", {}).get("summary", "")
    return f'<p class="facts">{prose(sample(results))}{" · " if summary else ""}{prose(summary)}</p>'


def _single(results: Results) -> str:
    sections = _sections(results)
    name, size = escape(str(results.get("name", "run"))), escape(str(results.get("size", "")))
    return (
        f'<header><p class="kicker">unspoken</p><h1>{name} <span>{size}</span></h1>'
        f'<p class="finding">{prose(finding(results))}</p>{_facts(results)}</header>'
        f'<section id="result">{headline(results)}{cost_figure(results)}</section>'
        f"{_links(sections, '')}{''.join(section.html('') for section in sections)}"
    )


def _several(every: Sequence[Results]) -> str:
    tables, runs = [], []
    for index, results in enumerate(every):
        prefix = f"run{index + 1}-"
        name = escape(title(results))
        tables.append(
            f'<section class="run"><h2><a href="#{prefix}top">{name}</a></h2>'
            f'<p class="finding">{prose(finding(results))}</p>{_facts(results)}{headline(results)}</section>'
        )
        sections = _sections(results)
        body = "".join(section.html(prefix) for section in sections)
        runs.append(f'<article id="{prefix}top"><h2>{name}</h2>{_links(sections, prefix)}{body}</article>')
    head = f'<header><p class="kicker">unspoken</p><h1>{len(every)} runs</h1></header>'
    return head + comparison(every) + "".join(tables) + "".join(runs)


def render(every: Sequence[Results]) -> str:
    """The page's HTML."""
    style = resources.files("unspoken.report").joinpath("style.css").read_text()
    name = title(every[0]) if len(every) == 1 else f"{len(every)} runs"
    body = _single(every[0]) if len(every) == 1 else _several(every)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(name)} · unspoken</title><style>\n{style}</style></head>\n<body><main>{body}</main></body></html>\n"
    )


def write_page(results_list: Sequence[Results], target: Path) -> None:
    """Write one self-contained page about some runs.

    Args:
        results_list: contents of results files (`unspoken.evaluation.measure`), at least one.
        target: where to; replaced in one move, so a reader sees the old page or the new one.

    Raises:
        ValueError: no results were given.
    """
    if not results_list:
        raise ValueError("there are no results to write a page about")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, render(results_list))
