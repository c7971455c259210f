"""What the page and the terminal say about noise on strings, from hand-made tests and from a tiny run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tag_balance import unbalanced
from tiny_recipe import quiet_train
from tiny_strings import tiny_strings
from unspoken.report.grammar import claims, noise_curves

from unspoken.experiment import measure_run, open_run
from unspoken.report.page import render
from unspoken.report.terminal import print_results

BETTER = {"mean": 0.031, "low": 0.01, "high": 0.05, "p": 0.004}
WORSE = {"mean": -0.2, "low": -0.3, "high": -0.1, "p": 0.0002}
UNCERTAIN = {"mean": 0.02, "low": -0.01, "high": 0.05, "p": 0.2}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("strings")
    quiet_train(tiny_strings("evaluation.problems=3"), folder)
    recipe, runs = open_run(folder)
    return measure_run(recipe, runs, command="unspoken eval <here>", say=lambda _: None)


def by_hand() -> dict[str, Any]:
    """Three steps under noise, of which only the relative and absolute tests of the noisiest level are looked at."""
    steps = [
        {"relative": WORSE, "absolute": WORSE},
        {"relative": BETTER, "absolute": WORSE},
        {"relative": None, "absolute": UNCERTAIN},
    ]
    ends = [
        {"level": level, "exact": [{"absolute": WORSE}, {"absolute": test}]}
        for level, test in ((0.0, BETTER), (0.15, WORSE))
    ]
    compared = {"jepa-reasoner - coupled": {"levels": [{"level": level, "symbol": steps} for level in (0.0, 0.3)]}}
    return {
        "strings": {
            "coconut": "coconut",
            "token_noise": {"comparison": compared},
            "latent_noise": {"renormalised": {"comparison": {"jepa-reasoner - coconut": {"levels": ends}}}},
            "containment": {"jepa-reasoner": {"latents_identical": True}},
        }
    }


def test_a_claim_holds_only_where_its_test_says_so() -> None:
    told = [text for _, text in claims(by_hand())]
    assert told == [
        "step 2 holds (+3.1 points, +1.0 to +5.0, p = 0.004); step 3 not measured",
        "step 3 cannot be told (+2.0 points, −1.0 to +5.0, p = 0.20)",
        "does not hold (of 6 steps and levels it is above in 0, below in 4; −20.0 to +2.0 points)",
        "holds (+3.1 points, +1.0 to +5.0, p = 0.004)",
        "does not hold (−20.0 points, −30.0 to −10.0, p < 0.001)",
        "holds: not one bit of any latent changed",
    ]
    other = by_hand()
    other["strings"]["containment"]["jepa-reasoner"]["latents_identical"] = False
    assert claims(other)[-1][1] == "DOES NOT HOLD"


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([BETTER, UNCERTAIN], "cannot be told everywhere (of 2 steps and levels it is above in 1, below in 0; "),
        ([BETTER, BETTER], "holds (of 2 steps and levels it is above in 2, below in 0; "),
    ],
)
def test_nowhere_worse_takes_every_step_and_level(steps: list[dict[str, float]], told: str) -> None:
    found = by_hand()
    levels = [{"level": 0.3, "symbol": [{"absolute": step, "relative": step} for step in steps]}]
    found["strings"]["token_noise"]["comparison"] = {"jepa-reasoner, talker_own - coupled": {"levels": levels}}
    said = dict(claims(found))["jepa-reasoner, talker_own: nowhere worse than the coupled model"]
    assert said.startswith(told)


def test_the_page_of_a_run_is_whole(results: dict[str, Any]) -> None:
    page = render([results])
    assert unbalanced(page) == []
    for title in (
        "The paper’s claims",
        "Wrong tokens in the prompt",
        "Noise on the latents",
        "Forced wrong words",
    ):
        assert title in page
    # The paper's values of step 1 at 30 % and of Coconut at 15 %.
    assert "paper 64.0" in page
    assert "36.3" in page
    assert "nan" not in page.lower().replace("finance", "")
    assert "its end included" not in page


def test_curves_have_a_column_a_step_and_the_paper_s_lines_in_it(results: dict[str, Any]) -> None:
    columns = noise_curves(results)
    assert [[panel.remark for panel in column] for column in columns] == [["absolute", "relative"]] * 2
    for panel in (panel for column in columns for panel in column):
        assert panel.drawing.count("dashed faint") == 2
    one = columns[0][0].drawing
    assert one.count('class="dot c1"') == one.count('class="dot c2"') == 7


def test_the_terminal_shows_every_table(results: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=100)
    print_results(results, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for title in (
        "wrong tokens in the prompt, absolute",
        "wrong tokens in the prompt, relative",
        "noise on latents, renormalised and free",
        "forced wrong words",
        "continuations that begin some string",
        "wrong words never reach the chain: holds",
    ):
        assert title in text
    assert max(len(line) for line in text.splitlines()) < 130
