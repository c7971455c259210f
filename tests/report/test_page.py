"""What the page says and leaves out, from results written by hand."""

from __future__ import annotations

import html
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from unspoken.report.page import default_page, render, write_page
from unspoken.report.sections import recipe_section

Results = dict[str, Any]
NEAREST = "jepa-reasoner, nearest row"
ALONG = ["Along SST, teacher-forced", "Along SST, rollout"]
WITH_A_TALKER = [
    "Does the chain do anything?",
    "Does the answer affect the chain?",
    "Chains, latent by latent",
]


def titles(page: str) -> list[str]:
    return [html.unescape(title) for title in re.findall(r'<h2 class="title">(.*?) <a', page)]


def headings(page: str) -> list[str]:
    """Headings within sections."""
    return [html.unescape(title) for title in re.findall(r'<h\d class="small run-in">(.*?)</h\d>', page)]


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_complete_file_fills_every_section_but_the_one_about_odds(
    complete: Callable[..., Results], depth: int, seeds: int
) -> None:
    page = render([complete(depth=depth, seeds=seeds)])
    assert titles(page) == [
        "What an answer costs",
        "Accuracy by step",
        *WITH_A_TALKER[:2],
        "What a latent is made of",
        *WITH_A_TALKER[2:],
        "Training",
        "How to make it again",
    ]
    assert headings(page) == ["Accuracy against cost", *ALONG, "Beside the paper", "Where latents lie"]
    for number in ("98.00\xa0%", "99.87\xa0%", "99.89\xa0%", "1.72\xa0%", "14.5", "298 k"):
        assert number in page, number


def test_a_sweep_without_a_talker_leaves_out_what_needs_one(sweep: Results) -> None:
    page = render([sweep])
    assert not set(WITH_A_TALKER) & set(titles(page))
    assert "Against coupled" not in page
    assert "sst_k4" in page


def test_known_odds_have_their_own_section_and_finding(ambiguous: Results) -> None:
    page = render([ambiguous])
    assert "Do coefficients match known odds?" in titles(page)
    assert "Beside the paper" not in headings(page)
    assert "off by 3.0" in page


def test_results_that_hold_nothing_but_systems_make_a_page(complete: Callable[..., Results]) -> None:
    results = complete()
    bare = {key: results[key] for key in ("name", "size", "seeds", "problems", "baseline", "systems", "tests")}
    bare["probes"] = {}
    assert titles(render([bare])) == ["What an answer costs"]


def test_everything_from_outside_is_escaped(complete: Callable[..., Results]) -> None:
    bad = "<img src=x onerror=alert(1)>\"'&"
    results = complete()
    results["name"] = results["size"] = results["command"] = results["recipe"]["summary"] = bad
    results["systems"][bad] = results["systems"]["coupled"]
    results["differences"][f"{bad} - coupled"] = results["differences"]["jepa-reasoner - coupled"]
    probes = results["probes"]
    probes["steps"][bad] = probes["steps"][NEAREST]
    probes["mixture"]["systems"][bad] = probes["mixture"]["systems"][NEAREST]
    probes["controls"][bad] = {bad: probes["controls"]["jepa-reasoner"]["zero"]}
    probes["trees"]["examples"][0] |= {"kind": bad, "spoken": [bad]}
    for entry in results["training"]:
        entry["stages"][bad] = entry["stages"]["sst"]
    for page in (render([results]), render([results, results])):
        assert "<img" not in page


def test_a_chain_that_speech_reached_raises_an_alarm(complete: Callable[..., Results]) -> None:
    results = complete()
    assert 'class="statement alarm"' not in render([results])
    results["probes"]["resampled_answers"]["jepa-reasoner"]["latents_identical"] = False
    assert 'class="statement alarm"' in render([results])


def test_a_page_replaces_the_old_one_and_leaves_nothing_beside_it(
    complete: Callable[..., Results], tmp_path: Path
) -> None:
    target = tmp_path / "new" / "folder" / "report.html"
    write_page([complete()], target)
    write_page([complete(depth=4)], target)
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    with pytest.raises(ValueError, match="no results"):
        write_page([], target)


def test_a_page_is_written_beside_its_results(tmp_path: Path) -> None:
    assert default_page(tmp_path, alone=True) == tmp_path / "report.html"
    assert default_page(Path("results/cups.json"), alone=True) == Path("results/cups.html")
    assert default_page(Path("results/cups.json"), alone=False) == Path("results/compare.html")


def test_a_recipe_is_shown_as_it_was_written() -> None:
    section = recipe_section({"command": "", "recipe": {"task": "cups", "summary": "one – é"}})
    assert section is not None
    assert [block.text for block in section.blocks] == ["task: cups\nsummary: one – é\n"]  # type: ignore[attr-defined]


BROWSER = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
    "--window-size=1400,900", "--dump-dom",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(which("chromium") is None, reason="needs a real browser")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["complete", "sweep", "ambiguous", "word_run"])
def test_no_page_scrolls_sideways_or_complains(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, width: int
) -> None:
    made = request.getfixturevalue(kind)
    page = render([made(depth=4, seeds=3) if kind == "complete" else made])
    # A browser window cannot be as narrow as a telephone, but a frame can.
    (tmp_path / "frame.html").write_text(
        f'<!doctype html><title>none</title><iframe style="border:0;width:{width}px;height:800px" '
        f'srcdoc="{html.escape(page)}"></iframe><script>onload = () => {{'
        "const inner = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = inner.scrollWidth + ' of ' + inner.clientWidth }</script>"
    )
    command = [*BROWSER, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    measured = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
    assert measured is not None
    assert int(measured[2]) > width - 30
    assert int(measured[1]) <= int(measured[2])
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
