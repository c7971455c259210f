"""Results that are in the repository, whatever version wrote them, can be read, printed and put on a page."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tag_balance import unbalanced

from unspoken.evaluation.results import explicit, read_results, reasoners
from unspoken.probes.catalogue import PROBES
from unspoken.report.findings import finding
from unspoken.report.page import render
from unspoken.report.terminal import print_results

FOLDER = Path(__file__).parents[2] / "results"
RUNS = [path for path in sorted(FOLDER.glob("*.json")) if "systems" in json.loads(path.read_text())]
# What `unspoken.probes.evaluate` describes, and what `unspoken.experiment.measure_run` adds to it.
REQUIRED = {"schema", "seeds", "problems", "baseline", "systems", "tests", "differences", "probes"}
ALLOWED = REQUIRED | {"name", "size", "command", "recipe", "made", "outcomes", "training"}
ALLOWED |= {"splits", "dropped", "overlap"}


def test_there_are_runs_of_every_kind_of_task() -> None:
    kinds = {read_results(path)["recipe"]["task"]["kind"] for path in RUNS}
    assert kinds >= {"tree_search", "arithmetic", "grammar", "prose", "logic", "grade_school"}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_committed_run_is_read_printed_and_put_on_a_page(path: Path) -> None:
    results = read_results(path)
    assert REQUIRED <= results.keys() <= ALLOWED
    for system in results["systems"].values():
        assert system.keys() == {"exact_match", "ended", "cost", "chain"}
        assert system["chain"] in (None, "tokens", "superposition", "hidden", "latent")
    assert results["probes"].keys() <= {probe.key for probe in PROBES}
    assert {name for rates in results["tests"].values() for name in rates} == set(results["systems"])
    page = render([results])
    assert unbalanced(page) == []
    out = StringIO()
    print_results(results, Console(file=out, width=100))
    for text in (page, out.getvalue()):
        assert not re.search(r"\bnan\b", text)
        assert all(name.replace("_", " ") in text for name in results["systems"])


# Words of our own where the field has plainer ones; problems and recipes are not our sentences.
PRIVATE = (
    r"cannot be told|cannot tell|\btell\b|\bsa(ys|id)\b|\btold\b|\bspoken\b|\bspeech\b|\bhears?\b|\bknows\b"
    r"|\bhonest\b|made up its mind|lost the tree|worth drawing|nowhere worse|not one bit|behind|has a part|sibling part"
    r"|wrong words?\b"
)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_committed_page_is_in_the_words_of_the_field(path: Path) -> None:
    results = read_results(path)
    page = re.sub(r"<(style|script|pre|code|title)\b.*?</\1>", "", render([results]), flags=re.DOTALL)
    page = re.sub(r'<p class="question">.*?</p>|<section id="corruption">.*?</section>', "", page, flags=re.DOTALL)
    out = StringIO()
    print_results({**results, "probes": {**results["probes"], "corruption": {}}}, Console(file=out, width=100))
    for text in (re.sub(r"<[^>]+>", " ", page), out.getvalue()):
        assert [text[max(0, hit.start() - 30) : hit.end() + 20] for hit in re.finditer(PRIVATE, text)] == []


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_committed_run_knows_its_explicit_chains_and_has_one_cost(path: Path) -> None:
    results = read_results(path)
    learned = {
        stage["name"]
        for stage in results["recipe"]["stages"]
        if stage["objective"]["kind"] == "next_token" and stage["objective"].get("chain") != "none"
    }
    # A budget shortens an explicit chain, which stays one; such a way to reason is named after its stage.
    written = {name.partition(",")[0] for name in results["systems"] if explicit(results, name)}
    assert written == learned & results["systems"].keys()
    assert not learned & set(reasoners(results))
    kept = next(iter(results.get("outcomes", {}).values()), {}).get("cost", {})
    for name, cost in kept.items():
        shared = {key: results["systems"][name]["cost"][key] for key in ("latent_steps", "sequential_passes", "flops")}
        assert shared == pytest.approx({key: cost[key] for key in shared}), name


@pytest.mark.parametrize("name", ["arithmetic-jepa-small", "prosqa-small", "arithmetic-small", "cups-tiny"])
def test_a_committed_finding_is_about_what_was_trained(name: str) -> None:
    text = finding(read_results(FOLDER / f"{name}.json"))
    assert "soft thinking" not in text
    assert not re.search(r"latents per problem, (cot|coupled)", text)
