"""What everybody must be able to read: colours, sizes, order of headings, and where the numbers come from."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_browser import BROWSER, returned_by_page
from words_results import words_results

from unspoken.draw.charts import Frame, Line, line_chart, linear
from unspoken.draw.glossary import GLOSSARY
from unspoken.evaluation.results import read_results, upgraded
from unspoken.probes.colours import SERIES
from unspoken.report.findings import origin
from unspoken.report.page import render

Results = dict[str, Any]
FOLDER = resources.files("unspoken.draw").joinpath("templates")
# In this order, as a page includes them; the palette is that of the explorer too.
STYLE = "".join(FOLDER.joinpath(name).read_text() for name in ("palette.css", "style.css"))
SCREEN, PRINT = STYLE.split("@media print")
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in STYLE.split("@media screen", 2)[:2])
MODES = {"light": LIGHT, "dark": LIGHT | DARK}
# Of linear RGB, for a complete deficiency: Machado, Oliveira and Fernandes (2009), table 1, severity 1.0.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear_rgb(colour: str) -> np.ndarray:
    """Of ``#rrggbb``, as light adds up."""
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Coordinates in which equal distances look about equally far apart; 0.02 can just be seen (Ottosson 2020)."""
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    opponent = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return opponent @ np.cbrt(cones @ np.clip(rgb, 0, 1))


def contrast(one: str, two: str) -> float:
    """Of WCAG 2."""
    light, dark = sorted((linear_rgb(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, two)), reverse=True)
    return float((light + 0.05) / (dark + 0.05))


def hue(colour: str) -> str:
    """The variable behind a class of the style sheet."""
    named = re.search(rf"\.{colour} {{ --c: var\(--(\w+)\)", STYLE)
    assert named is not None
    return named[1]


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("mode", MODES)
def test_no_two_series_look_alike_to_anybody(mode: str, deficiency: str) -> None:
    seen = {colour: oklab(DEFICIENCIES[deficiency] @ linear_rgb(MODES[mode][hue(colour)])) for colour in (*SERIES,)}
    for one, two in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[two]) > 0.09, (one, two)


@pytest.mark.parametrize("mode", MODES)
def test_text_stands_out_from_what_is_below_it(mode: str) -> None:
    colours = MODES[mode]
    for ground in ("paper", "soft"):
        for text in ("ink", "muted", "link", "alarm"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for name in ("grey", *map(hue, SERIES)):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name


def test_no_text_is_smaller_than_twelve_pixels() -> None:
    sizes = [float(size) for size in re.findall(r"(?:font-size: |font: [^;]*?)([\d.]+)px", STYLE)]
    assert len(sizes) > 20
    assert min(sizes) >= 12


def test_nothing_is_left_out_in_print() -> None:
    # What a phone leaves out is left out of screens alone: paper is narrow too, measured in pixels.
    assert re.findall(r"@media ([^{]+) {", SCREEN) == [
        "screen and (prefers-color-scheme: dark)",
        "(prefers-reduced-motion: reduce)",
        "screen and (max-width: 700px)",
    ]
    hidden = re.findall(r"([^{}]+){ display: none; }", PRINT)
    assert [text.strip() for text in hidden] == ["nav, .anchor, .tools, .picker"]
    assert "::details-content" in PRINT


@pytest.mark.parametrize("several", [False, True])
def test_headings_go_down_one_level_at_a_time(complete: Callable[..., Results], several: bool) -> None:
    page = render([complete(), words_results()] if several else [complete()])
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_a_page_of_several_runs_is_folded_and_leads_to_each(complete: Callable[..., Results]) -> None:
    page = render([complete(), words_results()])
    targets = re.findall(r"<nav.*?</nav>", page, re.DOTALL)
    assert len(targets) == 1
    for anchor in re.findall(r'href="#([^"]+)"', targets[0]):
        assert f'id="{anchor}"' in page
    assert re.search(r"nav \{ position: sticky", STYLE)
    assert page.count('<details class="more"') > 10
    assert '<details class="more" open' not in page


def test_a_page_names_when_with_what_and_where_it_was_measured() -> None:
    results = words_results()
    results["made"] = {
        "date": "2026-11-28",
        "commit": "183e1f7",
        "machine": {"processor": "AMD EPYC", "threads": 2, "device": "cpu"},
        "versions": {"python": "3.12.1", "torch": "2.9.0"},
    }
    text = "Measured 2026-11-28 · commit 183e1f7 · AMD EPYC, 2 threads, computed on cpu · python 3.12.1, torch 2.9.0"
    assert origin(results) == text
    assert text in render([results]).replace("\xa0", " ")
    results["made"]["commit"] = None
    assert origin(results).endswith("torch 2.9.0 · commit not recorded")
    assert origin(upgraded({})) == "Date, commit, hardware and versions not recorded"


def test_lines_are_named_where_they_end_and_names_keep_their_distance() -> None:
    lines = [
        Line(points=[(0, 0), (1, height)], classes="c1", name=name)
        for name, height in (("first", 0.5), ("second", 0.51), ("third", 0.0), ("fourth", 0.01))
    ]
    frame = Frame(x=linear([0, 1]), y=linear([0, 1]))
    wide = frame.labelled(lines)
    assert wide.width == frame.width and wide.right > frame.right
    drawn = re.findall(r'class="end-name c1" x="([\d.]+)" y="([\d.]+)"[^>]*>(\w+)<', line_chart(wide, lines, label=""))
    heights = {name: float(y) for _, y, name in drawn}
    assert sorted(heights, key=heights.__getitem__) == ["second", "first", "fourth", "third"]
    assert all(two - one >= 13.9 for one, two in itertools.pairwise(sorted(heights.values())))
    assert max(heights.values()) <= wide.height - wide.bottom + 0.1
    for x, _, name in drawn:
        assert float(x) + 6.4 * len(name) <= wide.width + 1
    assert frame.labelled([]) == frame


def test_the_one_script_is_the_pages_own_and_nothing_depends_on_it(complete: Callable[..., Results]) -> None:
    page = render([complete()])
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (allowed,) = re.findall(r"script-src 'sha256-([^']+)'", page)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == allowed
    # It adds buttons and a picker; whatever is hidden from the start would be lost without it.
    assert "hidden" not in page.replace(script, "").split("</style>")[1]


def test_heads_of_tables_are_explained_where_they_stand_and_in_a_list(complete: Callable[..., Results]) -> None:
    page = render([complete(), words_results()])
    explained = set(re.findall(r'<abbr title="[^"]+">([^<]+)</abbr>', page))
    assert explained >= {"Exact match", "Passes", "Rank", "p", "On the frontier", "MFLOPs"}
    assert re.findall(r"<dt>([^<]+)</dt>", page) == list(GLOSSARY)


CLICKS = """(() => {
  const copied = [];
  navigator.clipboard.writeText = async (text) => { copied.push(text); };
  for (const button of document.querySelectorAll(".tools button")) button.click();
  document.querySelectorAll("table.headline th.sortable")[1].click();
  const names = [...document.querySelectorAll("table.headline tbody th")].map((cell) => cell.firstChild.textContent);
  return [copied.length, copied[0], copied[1], names];
})()"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a real browser")
def test_tables_are_sorted_and_copied(tmp_path: Path) -> None:
    number, csv, latex, names = returned_by_page(render([words_results()]), CLICKS, tmp_path)
    assert number > 10
    lines = csv.split("\n")
    assert lines[0].startswith('"System","Exact match, 95 % interval"')
    assert lines[1].startswith('"cot","61.27 %","59.17 – 63.37"')
    assert latex.startswith("\\begin{tabular}{lrr") and "cot & 61.27 \\% &" in latex
    assert names[:3] == ["cot", "latent sft 2", "soft thinking"]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a real browser")
def test_no_table_is_wider_than_paper(tmp_path: Path) -> None:
    # Twelve systems, nine of them with altered chains; A4 across has 1,031 pixels between its margins.
    page = render([read_results(Path(__file__).parents[2] / "results" / "cups-small.json")])
    script = "[...document.querySelectorAll('.table')].map((one) => one.scrollWidth - one.clientWidth)"
    wider = returned_by_page(page.replace("@media print", "@media all"), script, tmp_path, "--window-size=1031,800")
    assert len(wider) > 5
    assert max(wider) <= 1
