"""The page, the tables and the answers, made from a real (tiny, untrained) run."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from rich.console import Console
from tag_balance import unbalanced
from tiny_recipe import TEXT, quiet_train

from unspoken.evaluation.outcomes import unpacked
from unspoken.evaluation.results import read_results
from unspoken.experiment import measure_run, open_run
from unspoken.report.answers import answer_problems, print_answer
from unspoken.report.page import write_page
from unspoken.report.plan import print_plan
from unspoken.report.terminal import print_recipes, print_results
from unspoken.training.plan import plan
from unspoken.training.recipe import load, parse
from unspoken.training.recorded_plans import offers

COUPLED = """
  - name: coupled
    start: pretrain
    objective: {kind: next_token, positions: answer}
    steps_of: [sst, talker]
    batch_size: 8
    evaluate_every: 5
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    quiet_train(parse(TEXT.replace("\nevaluation:", f"{COUPLED}\nevaluation:"), "run"), output, seeds=2)
    recipe, runs = open_run(output)
    measure_run(recipe, runs, command="unspoken eval <here>", log=lambda _: None)
    return output


@pytest.fixture(scope="module")
def ambiguous(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run whose odds are known, and whose last stage is a Reasoner without a Talker."""
    output = tmp_path_factory.mktemp("ambiguous")
    before, after = TEXT.index("  - name: talker"), TEXT.index("evaluation: {problems")
    recipe = parse(TEXT[:before] + TEXT[after:], "ambiguous", ["task.targets=3"])
    quiet_train(recipe, output)
    _, runs = open_run(output)
    return measure_run(recipe, runs, command="", log=lambda _: None)


def page_of(results: list[dict[str, Any]], folder: Path) -> str:
    write_page(results, folder / "report.html")
    return (folder / "report.html").read_text()


def test_the_page_needs_no_network_and_every_tag_is_closed(run: Path, tmp_path: Path) -> None:
    page = page_of([read_results(run)], tmp_path)
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert page.count("<script") == 1
    assert unbalanced(page) == []


def test_the_page_has_every_section_the_data_allow(run: Path, tmp_path: Path) -> None:
    page = page_of([read_results(run)], tmp_path)
    titles = re.findall(r"<h[23][^>]*>(.*?)(?: <a[^>]*>#</a>)?</h[23]>", page)
    for expected in ("Beside the paper", "Does the chain do anything?", "What a latent is made of", "Training"):
        assert expected in titles
    assert not any("odds" in title.lower() or "calibrat" in title.lower() for title in titles)


def test_sections_without_data_are_left_out(ambiguous: dict[str, Any], tmp_path: Path) -> None:
    page = page_of([ambiguous], tmp_path)
    titles = re.findall(r"<h[23][^>]*>(.*?)(?: <a[^>]*>#</a>)?</h[23]>", page)
    assert "Do coefficients match known odds?" in titles
    assert "Does the chain do anything?" not in titles
    assert "Beside the paper" not in titles
    assert "sst" in ambiguous["probes"]["calibration"]


def test_text_of_a_recipe_is_escaped(run: Path, tmp_path: Path) -> None:
    results = read_results(run)
    results["name"] = "<script>alert(1)</script>"
    results["recipe"]["summary"] = "a <b>bold</b> claim"
    page = page_of([results], tmp_path)
    assert page.count("<script>") == 1
    assert "<b>bold</b>" not in page


def test_several_runs_share_one_page(run: Path, ambiguous: dict[str, Any], tmp_path: Path) -> None:
    page = page_of([read_results(run), ambiguous], tmp_path)
    assert "2 runs" in page
    identifiers = re.findall(r'\sid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_piped_tables_are_plain_and_narrow(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_results(read_results(run), Console(force_terminal=False))
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert not set(text) & set("│─┃━┏┓")
    assert max(len(line) for line in text.splitlines()) <= 120
    for expected in ("jepa-reasoner", "coupled", "cost of one answer", "altered chain", "containment"):
        assert expected in text
    header = next(line for line in text.splitlines() if "swap" in line)
    assert header.split() == ["system", "own", "zero", "mean", "random", "shuffle", "swap", "half", "none"]


def test_every_number_of_the_results_is_finite(run: Path) -> None:
    results = read_results(run)
    json.dumps(results, allow_nan=False)
    kept = results["outcomes"]["test"]
    for name, system in results["systems"].items():
        seeds = [unpacked(text, kept["problems"]).mean() for text in kept["right"][name]]
        assert seeds == pytest.approx(system["exact_match"]["seeds"])
        assert kept["cost"][name]["flops"] == system["cost"]["flops"] > 0


def test_recipes_and_plans_print(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=False)
    print_recipes(offers(), console)
    print_plan(plan(load("tree-search", "paper")), console)
    text = capsys.readouterr().out
    assert "tree-search" in text
    assert "42,489,600" in text


def test_recipes_on_a_terminal_are_a_table_without_a_margin(capsys: pytest.CaptureFixture[str]) -> None:
    print_recipes(offers(), Console(force_terminal=True, color_system=None, width=200))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    # One column of the frame, and no more of the table's own.
    assert lines[0].startswith(" recipe ")
    assert next(line for line in lines if "tree-search " in line and " tiny " in line).startswith(" * tree-search ")


def test_an_answer_shows_its_chain(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = answer_problems(run, ["LK,LC,KB,KN,CJ,CE[ROOT]L[TARGET]E[ROUTE]"], seed=1)
    assert (result["expected"], result["silent"]) == ("LCE", True)
    assert len(result["chain"]) == result["latent_steps"]
    weights = [list(step["coefficients"].values()) for step in result["chain"]]
    assert {len(some) for some in weights} == {4}
    assert all(weight == round(weight, 4) for some in weights for weight in some)
    print_answer(result, Console(force_terminal=False), chain=True)
    assert "nearest" in capsys.readouterr().out


def test_the_coupled_stage_answers_too(run: Path) -> None:
    (result,) = answer_problems(run, [None], stage="coupled")
    assert (result["system"], result["silent"]) == ("coupled", False)
    first, second = (next(answer_problems(run, [None], seed=seed)) for seed in (0, 1))
    assert first != second
    assert next(answer_problems(run, [None])) == first


@pytest.mark.parametrize(
    ("seed", "stage", "says"), [(7, None, "seed-7"), (0, "tolker", "talker"), (0, "pretrain2", "pretrain")]
)
def test_a_missing_model_is_named(run: Path, seed: int, stage: str | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(answer_problems(run, [None], seed=seed, stage=stage))


@pytest.mark.slow
@pytest.mark.skipif(which("chromium") is None, reason="needs a real browser")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_real_browser_shows_the_page_without_sideways_scrolling(run: Path, tmp_path: Path, width: int) -> None:
    page = page_of([read_results(run)], tmp_path)
    probe = "<script>document.title=document.documentElement.scrollWidth+' of '+window.innerWidth</script>"
    page = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page)
    (tmp_path / "probe.html").write_text(page.replace("</body>", probe + "</body>"))
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},900", "--dump-dom",
            (tmp_path / "probe.html").as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
    assert title is not None
    assert int(title[1]) <= int(title[2])
