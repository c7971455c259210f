"""The site of the documentation: it builds without a warning, its links lead somewhere, and it loads nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from lxml import html

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that tests leave nothing in the checkout."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "zensical.toml", project)
    shutil.copytree(DOCS, project / "docs")
    (project / "src").symlink_to(ROOT / "src")
    build = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    # What reads the docstrings only prints its warnings.
    assert not re.search("warning|griffe", build.stdout + build.stderr, re.IGNORECASE), build.stdout + build.stderr
    return project / "build" / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Any]:
    return {page: html.parse(str(page)).getroot() for page in site.rglob("*.html") if page.name != "404.html"}


def test_every_page_is_built(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        name = "index" if page.stem == "README" else page.stem
        assert (site / page.relative_to(DOCS)).with_name(f"{name}.html").is_file(), page


def test_every_page_is_in_the_navigation() -> None:
    def leaves(node: Any) -> list[str]:
        if isinstance(node, str):
            return [node]
        return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in leaves(child)]

    listed = leaves(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_internal_link_and_anchor_leads_somewhere(pages: dict[Path, Any]) -> None:
    anchors = {page: {*root.xpath("//@id"), *root.xpath("//a/@name"), ""} for page, root in pages.items()}
    broken = []
    for page, root in pages.items():
        for link in root.xpath("//a/@href | //img/@src | //link/@href | //script/@src"):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            if not target.exists() or (target in anchors and unquote(url.fragment) not in anchors[target]):
                broken.append(f"{page.name}: {link}")
    assert sum(map(len, anchors.values())) > 300
    assert not broken


def test_pages_load_nothing_from_other_hosts(site: Path, pages: dict[Path, Any]) -> None:
    loaded = [
        link
        for root in pages.values()
        for link in root.xpath("//img/@src | //script/@src | //link/@href | //iframe/@src")
        if urlsplit(link).netloc
    ]
    loaded += [
        address
        for sheet in site.rglob("*.css")
        for address in re.findall(r"url\(['\"]?(https?:[^)]*)", sheet.read_text())
    ]
    assert not loaded


def test_markup_is_not_shown_as_text(pages: dict[Path, Any]) -> None:
    """A list without an empty line before it, a table that is none, or a fence that is not closed."""
    shown = [
        f"{page.name}: {paragraph.text_content()[:80]}"
        for page, root in pages.items()
        for paragraph in root.xpath("//article//p")
        if re.search(r"^\s*([-*] |\|.*\|$|```|:::)", paragraph.text_content(), re.MULTILINE)
    ]
    assert not shown
