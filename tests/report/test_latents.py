"""One latent in its chain, in the text and on the plane; fifty chains to pick from; a chain along training."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from in_browser import BROWSER, returned_by_page

from unspoken.evaluation.results import read_results
from unspoken.report.page import render

FOLDER = Path(__file__).parents[2] / "results"
TREES, CUPS = FOLDER / "tree-search-tiny.json", FOLDER / "cups-small.json"
OLD = FOLDER / "tree-search-small.json"  # three chains, and none along training


def section(page: str, key: str) -> str:
    """The part of a page below an anchor."""
    return page.split(f'<section id="{key}">', 1)[1].partition("</section>")[0]


def test_a_latent_of_a_tree_has_one_name_in_its_tree_in_the_answer_and_on_the_plane() -> None:
    body = section(render([read_results(TREES)]), "trees")
    for place in ('<div class="panel[^"]*"', "<code", "<circle[^>]*"):
        names = re.findall(rf'{place} data-latent="([^"]+)"', body)
        assert len(names) == len(set(names))
        assert len(names) > 140, place
    counts = Counter(re.findall(r'data-latent="([^"]+)"', body))
    assert Counter(counts.values()).most_common(1)[0][0] == 3


def test_a_latent_of_a_text_has_one_name_above_its_piece_and_on_the_plane() -> None:
    results = read_results(CUPS)
    body = section(render([results]), "chains")
    for place in ('<li class="latent"', '<p class="piece"', "<circle[^>]*"):
        assert re.findall(rf'{place} data-latent="0\.0\.0"', body), place
    # A Talker's tokens are in a line of their own.
    assert re.search(r'<code data-latent="\d+\.0\.0">', body)


def test_fifty_chains_of_what_reasons_in_latents_are_recorded_and_folded_after_the_first_three() -> None:
    results = read_results(CUPS)
    kept = Counter(entry["system"] for entry in results["probes"]["chains"]["examples"])
    assert kept["latent_sft_2"] == kept["jepa_mono"] == 50
    assert kept["cot"] <= 3
    body = section(render([results]), "chains")
    assert body.count("<summary>47 more</summary>") == 4
    assert "hidden" not in body, "nothing is lost without the script"
    assert CUPS.stat().st_size < 500_000
    assert len(render([results])) < 2_500_000


def test_older_results_have_their_chains_and_no_slider() -> None:
    page = render([read_results(OLD)])
    assert 'class="examples"' in section(page, "trees")
    assert 'id="along-training"' not in page


def test_a_chain_along_training_has_a_picture_of_every_validation() -> None:
    results = read_results(TREES)
    curve = results["training"][0]["stages"]["sst"]
    body = section(render([results]), "along-training")
    titles = re.findall(r'<div class="frame"><p class="small">([^<]+)</p>', body)
    assert [title.partition(",")[0] for title in titles] == [f"step {step:,}" for step in curve["steps"]]
    assert sum("the checkpoint that was kept" in title for title in titles) == 1
    assert body.count('<svg class="tree"') == len(curve["steps"]) * 2 * 3
    # What the Talker's stage leaves as it is has no slider.
    assert "chains" in results["training"][0]["stages"]["talker"]
    assert body.count('class="frames"') == 1


def test_a_chain_of_words_along_training_is_written_out_too(word_run: Any) -> None:
    steps = [{"tokens": [["5", 0.6], ["3", 0.4]], "entropy": 0.7}]
    example = {"question": "<b>How many?", "answer": "5", "response": "5", "correct": True, "steps": steps}
    curve = word_run["training"][0]["stages"]["latent_sft_2"]
    other = example | {"steps": [{"tokens": [["8", 1.0]], "entropy": None}], "correct": False}
    curve["chains"] = [[example]] * (len(curve["steps"]) - 1) + [[other]]
    body = section(render([word_run]), "along-training")
    assert body.count('class="example"') == len(curve["steps"])
    assert "&lt;b&gt;How many?" in body
    curve["chains"] = [[example]] * len(curve["steps"])
    assert 'id="along-training"' not in render([word_run]), "nothing changed"


HELP = """
const all = (query) => [...document.querySelectorAll(query)], first = (query) => document.querySelector(query);
const seen = (query) => all(query).filter((one) => one.checkVisibility());
const happen = (one, kind, Event, more) => one.dispatchEvent(new Event(kind, { bubbles: true, ...more }));
"""


def seen(tmp_path: Path, path: Path, script: str) -> Any:
    """What a script in the page of some results returns."""
    return returned_by_page(render([read_results(path)]), f"(() => {{{HELP}{script}}})()", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a real browser")
def test_what_is_pointed_at_or_focused_is_marked_in_all_three_places(tmp_path: Path) -> None:
    marked = seen(
        tmp_path,
        TREES,
        """
        const lit = () => all(".lit").map((one) => `${one.tagName} ${one.dataset.latent}`.toLowerCase()), found = [];
        const panel = first("#trees .panel[data-latent='0.1']"), before = first("#trees .panel[data-latent='0.0']");
        happen(panel, "pointerover", PointerEvent); found.push(lit());
        happen(panel, "pointerout", PointerEvent); found.push(lit());
        before.focus();
        happen(before, "keydown", KeyboardEvent, { key: "ArrowRight" }); found.push(lit());
        document.activeElement.blur();
        first("#trees circle[data-latent='0.2']").focus(); found.push(lit());
        return found;
        """,
    )
    three = lambda name: ["code " + name, "div " + name, "circle " + name]  # noqa: E731
    assert marked == [three("0.1"), [], three("0.1"), three("0.2")]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a real browser")
def test_one_chain_is_picked_and_its_points_are_joined(tmp_path: Path) -> None:
    found = seen(
        tmp_path,
        TREES,
        """
        const chains = (some) => some.map((one) => one.dataset.chain);
        const state = () => [chains(seen("#trees .example")), chains(all("#trees .path.shown"))];
        const picker = first("#trees select"), [back, on] = all("#trees .picker button");
        const states = [[...state(), picker.options.length]];
        back.click(); states.push(state());
        on.click(); on.click(); states.push(state());
        happen(first("#trees circle[data-latent='40.1']"), "click", MouseEvent); states.push(state());
        picker.value = -1; picker.onchange(); states.push(state());
        return states;
        """,
    )
    assert found == [
        [["0"], ["0"], 54],
        [["52"], ["52"]],
        [["1"], ["1"]],
        [["40"], ["40"]],
        [["0", "1", "2", "3"], ["0", "1", "2", "3"]],
    ]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a real browser")
def test_the_slider_shows_one_validation_and_names_it(tmp_path: Path) -> None:
    found = seen(
        tmp_path,
        TREES,
        """
        const slider = first("#along-training input");
        const shown = () => seen("#along-training .frame").map((one) => one.querySelector(".small").textContent);
        const states = [[slider.ariaValueText, shown()]];
        slider.value = 0; happen(slider, "input", Event); states.push([slider.ariaValueText, shown()]);
        return states;
        """,
    )
    assert [len(shown) for _, shown in found] == [1, 1]
    assert all(text == shown[0] for text, shown in found)
    assert found[0][0].startswith("step 60,") and found[1][0].startswith("step 0,")
