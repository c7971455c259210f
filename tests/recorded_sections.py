"""What a page and a terminal show of results, section by section, compared with recorded digests.

The results are those of the repository and some that are made up. A digest is of a section as HTML, drawings included,
and as printed on a terminal: whatever changes a number, a label, a rounding, a note or a mark changes it. After a
change that is meant, ``python tests/recorded_sections.py`` records all of them anew; with a run and a section it
prints what is compared, to be set beside the same of an older version.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import takewhile
from pathlib import Path

import tree_results
from rich.console import Console
from words_results import words_results

from unspoken.draw.page import to_html
from unspoken.draw.section import Block, Section, print_section
from unspoken.evaluation.results import Results, read_results, title
from unspoken.probes.catalogue import PROBES
from unspoken.report.accuracy import accuracy_section, cost_section
from unspoken.report.compare import comparison, cost_blocks
from unspoken.report.findings import finding, origin, sample
from unspoken.report.names import with_short_names
from unspoken.report.sections import made_sections, tests_section
from unspoken.report.terminal import print_results

FOLDER = Path(__file__).parents[1] / "results"
RECORDED = Path(__file__).parent / "recorded_sections.json"
Texts = dict[str, str]  # by section


def _one_system() -> Results:
    """Words without a baseline: nothing is compared, and every section has one system alone."""
    results = words_results()
    kept = {"latent_sft_2"}
    results |= {"baseline": None, "differences": {}}
    results["systems"] = {name: entry for name, entry in results["systems"].items() if name in kept}
    results["tests"] = {
        test: {name: entry for name, entry in rates.items() if name in kept} for test, rates in results["tests"].items()
    }
    for key in ("controls", "superposition", "geometry"):
        results["probes"][key] = {name: one for name, one in results["probes"][key].items() if name in kept}
    for key in ("chains", "pass_at_k"):
        del results["probes"][key]
    return results


MADE: dict[str, Callable[[], Results]] = {
    "made up: words": words_results,
    "made up: one system": _one_system,
    "made up: trees": tree_results.complete,
    "made up: trees of four levels, two seeds": lambda: tree_results.complete(depth=4, seeds=2),
    "made up: a sweep": tree_results.sweep,
    "made up: known odds": tree_results.ambiguous,
}
COMMITTED = [path.stem for path in sorted(FOLDER.glob("*.json")) if "systems" in json.loads(path.read_text())]
RUNS = [*COMMITTED, *MADE]
# Runs that are put on one page: of the same problems, of others, and some that are older than fingerprints.
TOGETHER = [
    ("cups-small", "cups-codi-small"),
    ("tree-search-small", "tree-search-siblings-small", "arithmetic-tiny"),
    ("cups-tiny", "cups-tiny"),
    ("grammar-small", "prose-small"),
    ("made up: words", "made up: trees"),
]


def results_of(run: str) -> Results:
    """The results of a run, with the names of systems that pages and terminals use."""
    return with_short_names(MADE[run]() if run in MADE else read_results(FOLDER / f"{run}.json"))


def _shown(section: Section) -> str:
    printed = StringIO()
    print_section(section, Console(file=printed, width=100))
    return _html(section.title, section.blocks) + printed.getvalue()


def _html(heading: str, blocks: Sequence[Block]) -> str:
    """Without white space between tags, which nobody sees."""
    tight = re.sub(r">\s+<", "> <", str(to_html(blocks)))
    return f"{heading}\n{tight}\n"


def probe_texts(run: str) -> Texts:
    """The sections that probes make of a run."""
    results = results_of(run)
    made = {probe.key: probe.section(results) for probe in PROBES}
    return {key: _shown(section) for key, section in made.items() if section is not None}


def report_texts(run: str) -> Texts:
    """What else there is on the page of a run, and its terminal as a whole."""
    results, printed = results_of(run), StringIO()
    print_results(results, Console(file=printed, width=100))
    lede = [title(results), finding(results), sample(results), origin(results)]
    sections = [accuracy_section(results), cost_section(results), tests_section(results), *made_sections(results)]
    texts = {section.key: _shown(section) for section in sections if section is not None}
    costs = _html("", cost_blocks(results))
    return {"lede": "\n".join(lede), **texts, "cost blocks": costs, "terminal": printed.getvalue()}


def comparison_texts(runs: Sequence[str]) -> Texts:
    """What the page of several runs shows of all of them, by heading."""
    section = comparison([results_of(run) for run in runs])
    return {} if section is None else dict(_by_heading(section))


def _by_heading(section: Section) -> Iterator[tuple[str, str]]:
    blocks = list(section.blocks)
    part = list(takewhile(lambda block: block.template != "heading", blocks))
    yield "begin", _html(section.title, part)
    blocks = blocks[len(part) :]
    while blocks:
        head, *rest = blocks
        part = [head, *takewhile(lambda block: block.template != "heading", rest)]
        yield head.text, _html("", part)  # type: ignore[attr-defined]
        blocks = blocks[len(part) :]


def digests(texts: Texts) -> dict[str, str]:
    """Twelve letters for each section."""
    return {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in texts.items()}


def changed(kind: str, run: str, texts: Texts) -> list[str]:
    """The sections of a run that are not as recorded, those that are new or gone included."""
    recorded, now = json.loads(RECORDED.read_text())[kind].get(run, {}), digests(texts)
    return [name for name in dict.fromkeys([*recorded, *now]) if recorded.get(name) != now.get(name)]


def main() -> None:
    if len(sys.argv) == 3:
        run, section = sys.argv[1:]
        texts = probe_texts(run) | report_texts(run) if run in RUNS else comparison_texts(run.split(" + "))
        print(texts[section])
        return
    every = {
        "probes": {run: digests(probe_texts(run)) for run in RUNS},
        "report": {run: digests(report_texts(run)) for run in RUNS},
        "together": {" + ".join(runs): digests(comparison_texts(runs)) for runs in TOGETHER},
    }
    RECORDED.write_text(json.dumps(every, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
