"""What the pages say is true: numbers come from committed results, names exist, links lead to files."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unspoken
from unspoken.training.recipe import shipped

ROOT = Path(__file__).resolve().parent.parent
GUIDES = [ROOT / "AGENTS.md", ROOT / "CONTRIBUTING.md"]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *GUIDES, *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_rendered_number_agrees_with_the_results():
    check = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "render.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout


def test_the_check_notices_a_changed_number(tmp_path):
    copy = tmp_path / "project"
    (copy / "docs").mkdir(parents=True)
    (copy / "results").symlink_to(ROOT / "results")
    (copy / "docs" / "render.py").write_text((ROOT / "docs" / "render.py").read_text())
    text = (ROOT / "README.md").read_text()
    number = re.search(r"<!-- r .+? -->(.+?)<!-- /r -->", text)
    assert number is not None
    (copy / "README.md").write_text(text[: number.start(1)] + "12.34 %" + text[number.end(1) :])
    check = subprocess.run(
        [sys.executable, str(copy / "docs" / "render.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 1
    assert "README.md" in check.stdout


def module_of_docs(name):
    """A program of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sentence_about_a_trend_follows_the_curves():
    render = module_of_docs("render")
    # A point more is no rise, and neither is a return to what was there before a fall; a slow climb is one.
    scores = {"risen": [0.1, 0.3, 0.5], "level": [0.1, 0.5, 0.51], "back": [0.5, 0.1, 0.5]}
    curves = {name: {"steps": [0, 10, 20], "exact_match": curve} for name, curve in scores.items()}
    slow = [0.3, 0.4, 0.45, 0.48, 0.5, 0.51, 0.52, 0.53, 0.55]
    curves["slow"] = {"steps": list(range(9)), "exact_match": slow}
    curves["slower"] = {"steps": list(range(9)), "exact_match": [*slow[:7], 0.525, 0.53]}
    content = {"training": [{"stages": curves}]}
    assert render.trend(content, "risen") == "was still rising"
    assert render.trend(content, "level") == "had stopped rising"
    assert render.trend(content, "slow") == "was still rising"
    assert render.trend(content, "slower") == "had stopped rising"
    assert render._risen(content, "slower")[2] == 5  # no later score is two points higher
    assert render.trend(content, "risen", "risen") == "all were still rising"
    assert render.trend(content, "level", "back") == "all had stopped rising"
    assert render.trend(content, "risen", "level", "back") == "all but `level` and `back` were still rising"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not re.match(r"[a-z]+:", link):
            assert (page.parent / link).exists(), link


METHOD_PAGES = sorted((ROOT / "docs" / "methods").glob("[a-z]*.md"))


def test_every_method_has_a_page_and_a_picture():
    methods = ROOT / "src" / "unspoken" / "methods"
    names = {folder.parent.name for folder in methods.glob("*/method.py")} | {"soft_thinking"}
    assert {page.stem for page in METHOD_PAGES} == names
    for page in METHOD_PAGES:
        assert f"](../pictures/{page.stem}.svg)" in page.read_text(), page
    assert {picture.stem for picture in (ROOT / "docs" / "pictures").glob("*.svg")} == names


def test_pictures_are_as_they_are_drawn(tmp_path):
    copy = tmp_path / "pictures.py"
    copy.write_text((ROOT / "docs" / "pictures.py").read_text())
    (tmp_path / "pictures").mkdir()
    subprocess.run([sys.executable, str(copy)], check=True)
    for picture in (tmp_path / "pictures").iterdir():
        assert picture.read_text() == (ROOT / "docs" / "pictures" / picture.name).read_text(), picture.name


def test_charts_are_as_they_are_drawn_from_the_results():
    charts, page = module_of_docs("charts"), (ROOT / "docs" / "side_by_side.md").read_text()
    assert {chart.stem for chart in (ROOT / "docs" / "charts").iterdir()} == set(charts.CHARTS)
    for name, chart in charts.CHARTS.items():
        assert charts.draw(chart) == (ROOT / "docs" / "charts" / f"{name}.svg").read_text(), name
        assert f"](charts/{name}.svg)" in page


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_a_method_page_names_only_files_and_names_that_exist(page):
    """Its last tables map a paper to the code."""
    package = Path(unspoken.__file__).parent
    rows = [line for line in page.read_text().splitlines() if line.startswith("|") and ".py`" in line]
    assert len(rows) > 1
    for row in rows:
        files = [package / file for file in re.findall(r"`([\w/]+\.py)`", row)]
        files = [file if file.is_file() else package / "methods" / file.relative_to(package) for file in files]
        assert all(file.is_file() for file in files), row
        source = "".join(file.read_text() for file in files)
        for names in re.findall(r"`([A-Z]\w+)(?:\.(\w+))?`", row):
            assert all(name in source for name in names), (names, row)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_the_guides_name_only_files_that_exist(page):
    files = set(re.findall(r"(?:\w+/)+[\w.]+\.(?:py|md|yaml)\b|(?:\w+/)+(?=[`,\s])", page.read_text()))
    assert len(files) > 8
    for file in files:
        places = [ROOT, ROOT / "src" / "unspoken"]
        # A file of NAME is there for each method, task and probe that there is.
        assert any(list(place.glob(file.replace("NAME", "*"))) for place in places), file


def test_the_guides_name_only_tests_that_exist():
    names = set(re.findall(r"pytest .*? -k (\w+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert names
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in names:
        assert re.search(rf"def test_\w*{name}", tests), name


def test_every_recipe_has_a_summary():
    for name, size, summary in shipped():
        assert summary, (name, size)
