"""One run, or several, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unspoken.draw.page import Run, to_page
from unspoken.evaluation.results import Results, title
from unspoken.report.compare import comparison, cost_blocks
from unspoken.report.findings import finding, origin, sample
from unspoken.report.names import with_short_names
from unspoken.report.sections import made_sections, measured_sections
from unspoken.storage import one_line_error, write_text

PAGE = "report.html"


def default_page(first: Path, *, alone: bool) -> Path:
    """Where the page about some runs is written: the first run's own, or beside it one that compares them."""
    if not alone:
        return first.parent / "compare.html"
    return first / PAGE if first.is_dir() else first.with_suffix(".html")


def _run(results: Results, prefix: str = "") -> Run:
    summary = results.get("recipe", {}).get("summary", "")
    headline, *sections = measured_sections(results)
    blocks = headline.blocks
    return Run(
        name=str(results.get("name", "run")),
        size=str(results.get("size", "")),
        title=title(results),
        finding=finding(results),
        facts=f"{sample(results)} · {summary}" if summary else sample(results),
        origin=origin(results),
        # On a page of several runs, their costs are in one picture.
        headline=blocks if prefix else [*blocks, *cost_blocks(results)],
        sections=[*sections, *made_sections(results)],
        prefix=prefix,
    )


def render(every: Sequence[Results]) -> str:
    """The page's HTML.

    Raises:
        ValueError: the results are not what a run measured.
    """
    with one_line_error(
        "the page cannot be written, since results are not what a run measured", "'unspoken eval' writes them"
    ):
        every = [with_short_names(results) for results in every]
        if len(every) == 1:
            return to_page(title(every[0]), [_run(every[0])])
        runs = [_run(results, f"run{index + 1}-") for index, results in enumerate(every)]
        return to_page(f"{len(every)} runs", runs, comparison(every))


def write_page(results_list: Sequence[Results], target: Path) -> None:
    """Write one self-contained page about some runs; a ValueError if there are none, or they measured nothing.

    Args:
        results_list: contents of results files (`unspoken.evaluation.results.read_results`).
        target: where to; replaced in one move, so a reader sees the old page or the new one.
    """
    if not results_list:
        raise ValueError("there are no results to write a page about")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, render(results_list))
