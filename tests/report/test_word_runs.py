"""Runs on reasoning problems: what page and terminal say and leave out, from results made up by hand."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from tag_balance import unbalanced
from words_results import rate, words_results

from unspoken.draw.chains import SHOWN_STEPS
from unspoken.probes.controls import chain_verdict
from unspoken.report.findings import finding
from unspoken.report.page import render
from unspoken.report.terminal import print_results

Results = dict[str, Any]
TRAINED = "systems that were trained to reason in latents"
SYSTEMS = ("cot", "answer only", "latent sft 2", "latent sft 4", "hidden 2", "no induction", "soft thinking")
CONTROLS = (
    "no chain",
    "forced answer",
    "swap",
    "shuffle",
    "random mixtures",
    "noise",
    "truncate",
    "zero",
    "mean",
)  # fmt: skip
SECTIONS = TESTS, COST, VERDICTS, SEVERAL, CHAINS, HOLDS, GEOMETRY, TRAINING, RECIPE = [
    "Accuracy on every test set",
    "What an answer costs",
    "Does the chain do anything?",
    "Several chains per problem",
    "Chains, latent by latent",
    "How much does a latent hold?",
    "Hidden states beside embeddings",
    "Training",
    "How to make it again",
]


def sections(page: str) -> dict[str, str]:
    """The text of every section by its title, and of what stands before the first as "head"."""
    parts = re.split(r'<section[^>]*><h2 class="title">(.*?) <a[^>]*>#</a></h2>', page.split("</style>")[1])
    text = [html.unescape(re.sub(r"<[^>]+>", " ", part)).replace("\xa0", " ") for part in parts]
    return {"head": text[0]} | dict(zip(text[1::2], text[2::2], strict=True))


def chain(steps: list[tuple[dict[str, float], float]], chunks: list[str], system: str = "latent_sft_2") -> Results:
    return {
        "system": system,
        "kind": "right",
        "question": "How many?",
        "answer": "18",
        "response": "\\boxed{18}",
        "correct": True,
        "steps": [{"tokens": [list(pair) for pair in tokens.items()], "entropy": entropy} for tokens, entropy in steps],
        "chunks": chunks,
    }


def chains_page(*chains: Results) -> str:
    results = words_results()
    results["probes"]["chains"] = {"examples": list(chains), "planes": {}}
    page = render([results])
    return page[page.index('id="chains"') : page.index('id="superposition"')]


def printed(results: Results, **console: Any) -> str:
    out = StringIO()
    print_results(results, Console(file=out, **console))
    return out.getvalue()


# --- the page ----------------------------------------------------------------------------------------------------


def test_a_complete_run_has_every_section_of_its_own_and_none_of_trees() -> None:
    page = render([words_results()])
    assert list(sections(page)) == ["head", *SECTIONS]
    assert unbalanced(page) == []
    assert page.count("<script") == 1
    # The recipe itself is printed as it is, and stages keep the names under which it knows them.
    text = " ".join(sections(page).values()).split("The resolved recipe")[0].replace("chain none", "")
    foreign = set(re.findall(r"\b(?:routes?|trees?|talker|coupled|none|nan|\w+_2)\b", text, re.IGNORECASE))
    assert foreign == {"encoder_2", "decoder_2", "union_2", "labels_2", "latent_sft_2", "hidden_2"}


def test_every_system_has_its_exact_match_difference_and_cost() -> None:
    found = sections(render([words_results()]))
    for name in SYSTEMS:
        for part in ("head", TESTS, COST):
            assert name in found[part], (name, part)
    for fact in ("59.83 %", "Against cot", "−1.4", "−3.8 to +1.0", "−42.9", "of gsm8k-aug", "whose answer is right"):
        assert fact in found["head"], fact
    # Made up as 0.5983 times 1.35 on the last set, and times 0.21 on the second.
    for fact in ("gsm8k-aug", "gsm-hard", "svamp", "multiarith", "80.77 %", "12.56 %"):
        assert fact in found[TESTS], fact
    # 12.44 latents, 6 marker tokens and 4 tokens of the answer.
    assert re.search(r"latent sft 2\s+12\.44\s+6\s+4\s+22\.44", found[COST])
    assert "30.6 M" in found[COST]


def test_every_control_is_shown_with_its_difference_and_a_verdict() -> None:
    found = sections(render([words_results()]))[VERDICTS]
    for name in CONTROLS:
        assert name in found, name
    # 0.5983 times 0.02 is left of it after the swap.
    assert re.search(r"1\.20 %\s+−58\.6 \(−61\.0 to −56\.2\)", found)
    assert found.count("The chain is used") == 4
    assert found.count("No evidence that the chain is used") == 1


def test_superposition_is_told_with_everything_needed_to_judge_it() -> None:
    found = sections(render([words_results()]))[HOLDS]
    # ECR@50 was made up as 2 * 50 / (50 + 2.75); two thirds of a chain a seed were left out of the other system's.
    for fact in ("1.90", "1.33", "explicit", "M 4.21", "N_naive 3.02", "0.942", "0.63", "2.71", "reconstructions"):
        assert fact in found, fact


def test_hidden_states_are_compared_in_numbers_and_in_a_picture() -> None:
    page = render([words_results()])
    found = sections(page)[GEOMETRY]
    for fact in ("0.98", "41.37", "231.4", "88.2", "0.012 ± 0.087", "1684.20", "0.831", "41.2 % and 15.3 %"):
        assert fact in found, fact
    assert re.search(r"latent sft 2\s+2,488 hidden states per seed\s+0\.98\s+20\.68\s", found)
    picture = page[page.index('id="geometry"') : page.index('id="training"')]
    assert picture.count('class="cloud"') == 600


def test_several_chains_are_shown_beside_the_clean_one() -> None:
    found = sections(render([words_results()]))[SEVERAL]
    # Of the made-up answers a draw misses, each doubling of k finds a third.
    assert re.search(r"Clean chain\s+pass@1\s+pass@2\s+pass@4\s+pass@6", found)
    assert re.search(r"latent sft 2\s+59\.83 %.*53\.85 %.*69\.23 %.*79\.49 %.*86\.33 %", found, re.DOTALL)
    assert "hidden 2" not in found
    assert "6 noisy chains" in found


def test_stages_are_told_in_the_papers_words_and_from_what_they_started() -> None:
    results = words_results()
    assert "random weights" in sections(render([results]))["Training"]
    results["recipe"]["backbone"] = "some/model"
    found = sections(render([results]))["Training"]
    for fact in ("next token, positions answer, chain none", "stage1, train encoder", "stage2", "some/model"):
        assert fact in found, fact
    assert "In encoder_2, decoder_2 and union_2 answers are decoded from latents of the gold chain" in found
    assert "random weights" not in found
    assert "the search is found" not in found


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"geometry": None}, GEOMETRY),
        ({"pass_at_k": None}, SEVERAL),
        ({"pass_at_k": {"draws": 4, "systems": {}}}, SEVERAL),
        ({"chains": {}}, CHAINS),
        ({"controls": {}}, VERDICTS),
        ({"superposition": {}}, HOLDS),
    ],
)
def test_a_part_that_was_not_measured_is_left_out(change: Results, gone: str) -> None:
    results = words_results()
    results["probes"] |= change
    assert list(sections(render([results]))) == ["head", *(title for title in SECTIONS if title != gone)]
    printed(results)


def test_a_single_test_set_has_no_section_of_its_own() -> None:
    results = words_results()
    results["tests"] = {"test": results["tests"]["svamp"]}
    assert list(sections(render([results]))) == ["head", *(title for title in SECTIONS if title != TESTS)]
    printed(results)


def test_chains_of_one_kind_only_leave_out_parallelism() -> None:
    results = words_results()
    for entry in results["probes"]["superposition"].values():
        entry["parallelism"] = None
    page = render([results])
    assert "Effective compression" in page
    assert "Effective parallelism" not in page


def test_without_a_baseline_nothing_is_compared() -> None:
    results = words_results()
    results |= {"baseline": None, "differences": {}}
    page = render([results])
    assert "Against" not in page
    assert "Of 6 trained systems, cot answers the most" in sections(page)["head"]
    assert "vs" not in printed(results).split()


def test_everything_from_outside_is_escaped() -> None:
    bad = "<img src=x onerror=alert(1)>\"'&"
    results = words_results()
    probes = results["probes"]
    for entry in probes["chains"]["examples"]:
        entry |= {"question": bad, "answer": bad, "response": bad, "kind": bad, "system": bad}
        entry["steps"][0]["tokens"] = [[bad, 0.9], ["<b>", 0.1]]
        entry["chunks"] = [f"<b>{bad}</b>", *entry["chunks"]]
    results["systems"][bad] = results["systems"]["cot"]
    results["tests"][bad] = results["tests"]["svamp"]
    probes["controls"][bad] = {bad: probes["controls"]["cot"]["swap"]}
    probes["superposition"][bad] = probes["superposition"]["latent_sft_2"]
    page = render([results])
    assert "<img" not in page
    assert not re.search(r"<b>(?!latent|cot|hidden|no induction|&lt;|\d+<|–<)", page)
    assert unbalanced(page) == []


def test_word_problems_and_trees_share_a_page(complete: Callable[..., Results]) -> None:
    page = render([complete(), words_results()])
    identifiers = re.findall(r'\sid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert "Against coupled" in page
    assert "Against cot" in page


# --- chains ------------------------------------------------------------------------------------------------------


def test_a_token_is_shared_where_the_explicit_piece_has_it_whole() -> None:
    page = chains_page(chain([({"18": 0.6, "1": 0.2, "+": 0.1, " apple": 0.1}, 0.5)], ["<<18+3 apples"]))
    shared = re.findall(r'<li class="(\w+)" style="--w:([\d.]+)" title="([^"]*)"', page)
    assert shared == [
        ("shared", "0.60", "18"),
        ("unshared", "0.20", "1"),
        ("shared", "0.10", "+"),
        ("unshared", "0.10", " apple"),
    ]
    assert '<p class="piece" data-latent="0.0.0">&lt;&lt;<mark>18</mark><mark>+</mark>3 apples</p>' in page


def test_the_longer_of_two_tokens_is_marked() -> None:
    page = chains_page(chain([({">": 0.5, ">>": 0.5}, 0.1)], ["8>> >"]))
    assert '<p class="piece" data-latent="0.0.0">8<mark>&gt;&gt;</mark> <mark>&gt;</mark></p>' in page


def test_white_space_is_made_visible() -> None:
    page = chains_page(chain([({" two\n": 0.5, "": 0.5}, 0.1)], ["x"]))
    assert "<code>␣two↵</code>" in page
    assert "<code>∅</code>" in page


def test_a_chain_that_ended_early_leaves_pieces_without_a_latent() -> None:
    page = chains_page(chain([({"5": 1.0}, 0.0)] * 2, ["5", "6", "7"]))
    assert page.count("no latent") == 1
    assert [re.sub("<[^>]+>", "", band) for band in re.findall(r'<p class="piece[^>]*>(.*?)</p>', page)] == list("567")


def test_a_chain_that_ran_on_is_cut_and_says_so() -> None:
    page = chains_page(chain([({"5": 1.0}, 0.0)] * (SHOWN_STEPS + 93), ["5"]))
    assert page.count('class="latent"') == SHOWN_STEPS
    assert "and 93 more steps" in page
    assert page.count('class="piece none"') == SHOWN_STEPS - 1


def test_without_pieces_there_is_no_band() -> None:
    page = chains_page(chain([({"5": 1.0}, 0.0)], []))
    assert 'class="piece' not in page
    assert 'class="chain bare"' in page


def test_entropy_has_one_scale_for_all_chains() -> None:
    page = chains_page(chain([({"5": 1.0}, 0.5), ({"5": 1.0}, 1.0)], []), chain([({"5": 1.0}, 2.0)], []))
    assert re.findall(r"--e:(\d+)%", page) == ["25", "50", "100"]
    assert "0.50 nats" in page


def test_latents_above_pieces_come_first_and_are_open() -> None:
    step = [({"5": 1.0}, 0.5)]
    page = chains_page(
        chain(step, ["5"], "cot"), chain(step, [], "soft thinking"), chain(step, ["5"]), chain(step, ["5"])
    )
    assert re.findall(r'<details class="strips"( open)?><summary>([^<]*) <span>([^<]*)<', page) == [
        (" open", "latent sft 2", "2 chains"),
        ("", "soft thinking", "1 chain"),
        ("", "cot", "1 chain"),
    ]
    assert "1 token<" in page


# --- charts ------------------------------------------------------------------------------------------------------


def lines(page: str, label: str) -> list[list[tuple[float, float]]]:
    """Pixels of every line of one chart."""
    drawing = re.search(rf'<svg[^>]*aria-label="{label}".*?</svg>', page)
    assert drawing is not None
    found = re.findall(r'<polyline[^>]*points="([^"]*)"', drawing[0])
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())] for points in found]


def test_an_entropy_line_ends_with_its_last_frequent_step() -> None:
    results = words_results()
    entry = results["probes"]["superposition"]["latent_sft_2"]
    entry["entropy"] = {"mean": [1.0, 0.8, 0.6, 0.4], "count": [100, 90, 10, 9]}
    results["probes"]["superposition"] = {"latent_sft_2": entry}
    page = render([results])
    (line,) = lines(page, "Entropy of the latents by step")
    assert len(line) == 3
    # Every chain counts once for each of its steps: (100 + 72 + 6 + 3.6) / 209.
    assert "0.87" in sections(page)[HOLDS]


def test_compression_rises_from_left_to_right_whatever_the_order_in_the_file() -> None:
    results = words_results()
    entry = results["probes"]["superposition"]["latent_sft_2"]
    entry["ecr"] = {"100": 1.6, "5": 0.4, "10": 0.9}
    results["probes"]["superposition"] = {"latent_sft_2": entry}
    (line,) = lines(render([results]), "Effective compression rate at K")
    assert line == sorted(line)
    assert [y for _, y in line] == sorted((y for _, y in line), reverse=True)


@pytest.mark.parametrize("questions", [1, 7, 1285])
def test_questions_are_drawn_from_the_smallest_to_the_largest(questions: int) -> None:
    results = words_results()
    entry = results["probes"]["superposition"]["latent_sft_2"]
    entry["parallelism"]["points"] = [1 + 3 * (index * 7919 % questions) / questions for index in range(questions)]
    results["probes"]["superposition"] = {"latent_sft_2": entry}
    (line,) = lines(render([results]), "N_eff of every question, latent sft 2")
    assert len(line) == min(questions, 120)
    assert line == sorted(line)
    assert [y for _, y in line] == sorted((y for _, y in line), reverse=True)


# --- sentences ---------------------------------------------------------------------------------------------------


def control(mean: float, p: float = 0.001, spread: float = 0.01, own: float = 0.5, problems: int = 200) -> Results:
    return {
        "exact_match": {"mean": own + mean, "problems": problems, "seeds": [own + mean]},
        "difference": {"mean": mean, "low": mean - spread, "high": mean + spread, "p": p},
    }


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        (
            {"swap": control(-0.4), "zero": control(-0.123)},
            ["The chain is used: without its content, accuracy falls by 12.3 to 40.0 points."],
        ),
        (
            {"swap": control(-0.4)},
            ["The chain is used: without its content, accuracy falls by 40.0 points."],
        ),
        (
            {"zero": control(-0.3), "no chain": control(-0.2), "swap": control(-0.004)},
            [
                "The chain is used in part: no chain and zero cost up to 30.0 points, while "
                "swap cost nothing detectable, so it need not be this problem’s chain."
            ],
        ),
        (
            {"zero": control(-0.3), "mean": control(-0.02, p=0.2), "swap": control(-0.2, p=0.2)},
            [
                "The chain is used in part: zero cost 30.0 points, while what swap and mean cost (up to 20.0 points) "
                "may be chance, so it is open whether it must be this problem’s chain."
            ],
        ),
        (
            {"swap": control(-0.4, p=0.2), "mean": control(0.05)},
            [
                "No evidence that the chain is used: what it costs to take away its content (up to 40.0 points) "
                "may be chance.",
            ],
        ),
        (
            {"swap": control(-0.004), "mean": control(0.05)},
            [
                "No evidence that the chain is used: without its content, accuracy does not change detectably.",
            ],
        ),
        ({"shuffle": control(-0.2)}, ["Its order (−20.0 points) matters."]),
        (
            {"shuffle": control(0.0), "truncate": control(0.001)},
            ["Its order and its second half make no detectable difference."],
        ),
        (
            {"shuffle": control(-0.2, p=0.2)},
            ["Its order (−20.0 points, which may be chance) makes no detectable difference."],
        ),
        (
            {"truncate": control(-0.1), "forced answer": control(-0.05)},
            [
                "Its second half (−10.0 points) matters.",
                "Answering right after the chain costs 5.0 points: part of the work is done in the text after it.",
            ],
        ),
        (
            {"swap": control(-0.025, own=0.025)},
            ["Inconclusive: even from its own chains, only 5 of 200 answers are right."],
        ),
        (
            {"swap": control(-0.03, own=0.03)},
            ["The chain is used: without its content, accuracy falls by 3.0 points."],
        ),
        ({"forced answer": control(0.0)}, ["Answering right after the chain costs nothing detectable."]),
    ],
)
def test_a_verdict_claims_no_more_than_its_tests(controls: Results, expected: list[str]) -> None:
    assert chain_verdict(controls) == expected


def test_of_equals_none_is_called_the_best() -> None:
    results = words_results()
    systems = results["systems"]
    systems["latent_sft_4"]["exact_match"] = systems["latent_sft_2"]["exact_match"]
    assert f"Of 4 {TRAINED}, latent sft 2 and latent sft 4 answer the most, and equally many." in finding(results)
    for name in ("hidden_2", "no_induction"):
        systems[name]["exact_match"] = systems["latent_sft_2"]["exact_match"]
    assert f"All 4 {TRAINED} answer equally many." in finding(results)


def test_the_finding_sets_the_best_latent_system_beside_the_explicit_chain() -> None:
    text = finding(words_results())
    assert text.startswith(
        "Reasoning in 12.44 latents per problem, latent sft 2 answers 59.83 % of 1,000 unseen problems"
    )
    for part in (
        "the explicit chain of thought (cot, 24.61 tokens) answers 61.27 %",
        "no detectable difference (latent sft 2 minus cot: −3.8 to +1.0 points, 95 % interval)",
        f"the best of 4 {TRAINED}, picked on these problems. ",
        "With the chain of another problem latent sft 2 answers 1.20 %.",
    ):
        assert part in text, part


def test_a_second_explicit_chain_is_no_system_that_reasons_in_latents() -> None:
    results = words_results()
    results["systems"]["latent_sft_2"]["chain"] = "tokens"
    text = finding(results)
    assert "latent sft 2" not in text and f"the best of 3 {TRAINED}" in text


def test_a_variant_that_was_not_trained_is_not_what_a_run_is_about() -> None:
    results = words_results()
    results["systems"]["soft thinking"]["exact_match"] = rate(0.9)
    assert "soft thinking" not in finding(results)
    results["baseline"] = None
    assert finding(results).startswith("Of 6 trained systems, cot answers the most")


def test_the_finding_says_equal_training_a_clear_difference_and_one_seed() -> None:
    results = words_results()
    results["seeds"] = [0]
    results["recipe"]["stages"][0]["steps_of"] = ["encoder_2", "decoder_2"]
    results["differences"]["latent_sft_2 - cot"] = {"mean": 0.1, "low": 0.05, "high": 0.15, "p": 0.0002}
    text = finding(results)
    assert "tokens), given as many training steps as encoder_2 and decoder_2 together, answers" in text
    assert "answers 61.27 % (10.0 points fewer, p < 0.001)." in text
    assert "Only one seed" in text


def test_without_a_latent_system_the_finding_ranks() -> None:
    results = words_results()
    results["systems"] = {name: results["systems"][name] for name in ("cot", "answer_only")}
    assert finding(results).startswith("Of 2 systems, cot answers the most")
    assert "answer only the least, 18.40 %" in finding(results)


# --- the terminal ------------------------------------------------------------------------------------------------


def test_piped_tables_are_plain_narrow_and_whole() -> None:
    text = printed(words_results(), width=40)
    assert "\x1b" not in text
    assert not set(text) & set("│─┃━┏┓…")
    assert max(len(line) for line in text.splitlines()) < 100
    for fact in (
        *SYSTEMS,
        "vs cot",
        "multiarith",
        "22.44",
        "−58.6",
        "(−0.6)",
        "N_naive",
        "4.21",
        "reconstructions",
        "0.98   41.37",
        "clean chain",
    ):
        assert fact in text, fact
    for verdict in ("latent sft 2: The chain is used", "hidden 2: No evidence that the chain is used"):
        assert verdict in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_of_usual_width_shows_every_number(width: int) -> None:
    assert "…" not in printed(words_results(), width=width, force_terminal=True)


def test_pass_at_k_is_printed_in_rising_order_of_k() -> None:
    text = printed(words_results())
    header = next(line for line in text.splitlines() if "@2" in line)
    assert header.split() == ["system", "clean", "chain", "@1", "@2", "@4", "@6"]
    rows = [line.replace(" %", "").split() for line in text.splitlines()]
    assert ["latent", "sft", "2", "59.83", "53.85", "69.23", "79.49", "86.33"] in rows


def test_hidden_states_have_noise_where_the_others_have_random_mixtures() -> None:
    text = printed(words_results())
    header = next(line for line in text.splitlines() if "swap" in line and "shuffle" in line)
    assert header.split() == ["system", "own", "swap", "shuffle", "half", "zero", "mean", "none", "random", "forced"]
    row = next(line for line in text.splitlines() if line.startswith("  hidden 2 ") and "(" in line)
    assert row.split()[3:] == ["(−0.3)"] * 8
