"""The pages about Python are run as they stand, with a tiny model for the one that a reader has."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from tiny_hub import save_hub_folder, save_problems

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "python.md"
PAGES = [PAGE, *sorted((DOCS / "how_to").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_job_on_the_page_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_hub_folder(tmp_path / "hub")
    save_problems(tmp_path / "mine.jsonl")
    text = re.sub(r"^```.*$", "", page.read_text(), flags=re.MULTILINE)  # a fence is no output
    test = doctest.DocTestParser().get_doctest(text, {"folder": "hub"}, page.name, str(page), 0)
    report: list[str] = []
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert results.failed == 0, "".join(report)
    assert results.attempted > (15 if page == PAGE else 2)


def test_every_job_has_at_most_ten_lines() -> None:
    jobs = re.findall(r"```pycon\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(jobs) > 3
    for job in jobs:
        assert len(re.findall(r"^(>>>|\.\.\.) ", job, flags=re.MULTILINE)) <= 10
