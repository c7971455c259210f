"""Every sentence at the top of a page, read back and checked against the numbers that it names, of random results."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.evaluation.results import differs, upgraded
from unspoken.probes.controls import chain_verdict
from unspoken.report.findings import finding

Results = dict[str, Any]
TOKENS, VARIANTS = ("cot", "coupled"), ("soft thinking", "coupled, soft thinking", "jepa_mono, nearest row")
LATENT = ("latent_sft_2", "coconut", "jepa_mono")
EVERY = (*TOKENS, *LATENT, "answer_only", *VARIANTS)
POINTS = r"([−+]?[\d.]+)"
VERDICT = (
    rf" \({POINTS} points (?P<fewer>fewer|more)(?:, p (?:=|<) [\d.]+)?\)"
    rf"|(?:, which is (?P<chance>no detectable difference)|; (?P<apart>seeds differ too much) for a significant "
    rf"difference of the two methods) \((?P<compared>.+? minus .+?): {POINTS} to {POINTS} points, 95 % interval\)"
)
LEDE = re.compile(
    r"Reasoning in (?P<latents>[\d.]+) latents per problem, (?P<best>.+?) answers (?P<rate>[\d.]+) % of "
    r"(?P<problems>[\d,]+) unseen problems?; "
    r"the explicit chain of thought \((?P<explicit>.+?), (?P<tokens>[\d.]+) tokens\)"
    r"(?:, given as many training steps as sst and jepa_mono together,)? answers (?P<other>[\d.]+) %"
    rf"(?:{VERDICT})?\."
    r"(?P<rank> (?:Both|All|Of|It is).+?(?:equally many|with its own|on these problems)\.)?"
    r"(?: With the chain of another problem (?P<again>.+?) answers (?P<swapped>[\d.]+) %\.)?"
    r"(?P<one> Only one seed: differences between systems may come from the seed and not from the method\.)?"
)
RANKING = re.compile(
    r"(?:Of (?P<among>\d+)(?P<some> trained)? systems, (?P<best>.+?) answers? the most of "
    r"(?P<problems>[\d,]+) unseen problems?, "
    r"(?P<rate>[\d.]+) %, and (?P<worst>.+?) the least, (?P<least>[\d.]+) %(?P<overlap>; their intervals overlap)?\."
    r"|(?:Both|All (?P<all>\d+)) systems answer (?P<same>[\d.]+) % of [\d,]+ unseen problems?\."
    r"|(?P<only>.+?) answers (?P<alone>[\d.]+) % of [\d,]+ unseen problems?\.)"
    r"(?P<one> Only one seed: differences between systems may come from the seed and not from the method\.)?"
)


@st.composite
def rates(draw: st.DrawFn, problems: int, seeds: int) -> Results:
    one = st.integers(0, problems) | st.just(problems)  # ties are frequent
    right = draw(st.lists(one, min_size=seeds, max_size=seeds))
    mean = sum(right) / problems / seeds
    below, above = draw(st.floats(0, 0.1)), draw(st.floats(0, 0.1))
    interval = {"low": max(0.0, mean - below), "high": min(1.0, mean + above)}
    return {"mean": mean, **interval, "seeds": [one / problems for one in right], "problems": problems}


@st.composite
def random_results(draw: st.DrawFn) -> Results:
    """What a run on word problems measured, in the layout of schema 1 or of today."""
    problems, seeds = draw(st.sampled_from([5, 40, 2000])), draw(st.integers(1, 3))
    names = draw(st.lists(st.sampled_from(EVERY), min_size=1, unique=True))
    baseline = draw(st.sampled_from([*(name for name in TOKENS if name in names), None]))
    exact = {name: draw(rates(problems, seeds)) for name in names}
    latents = {name: draw(st.floats(0.1, 40)) if name != "answer_only" else 0.0 for name in names}
    differences = {}
    for name in names if baseline else ():
        mean = exact[name]["mean"] - exact[baseline]["mean"]
        low, high = mean - draw(st.floats(0, 0.2)), mean + draw(st.floats(0, 0.2))
        p = draw(st.none() | st.floats(0, 1))
        differences[f"{name} - {baseline}"] = {"mean": mean, "low": low, "high": high, "p": p}
    stages = [
        {
            "name": name,
            "objective": {"kind": "next_token", "chain": "explicit"} if name in TOKENS else {"kind": "other"},
        }
        for name in EVERY
        if name not in VARIANTS
    ]
    if draw(st.booleans()):
        stages[TOKENS.index(baseline or "cot")]["steps_of"] = ["sst", "jepa_mono"]
    swapped = {name: {"swap": {"exact_match": draw(rates(problems, seeds))}} for name in names if draw(st.booleans())}
    cost = {"spoken_tokens": 4.0, "flops": 1e6, "seconds_batched": 0.1, "seconds_alone": 0.1, "parameters": 9}
    common = {
        "recipe": {"stages": stages},
        "seeds": list(range(seeds)),
        "problems": problems,
        "differences": differences,
    }
    if draw(st.booleans()):
        old = {name: {"exact_match": exact[name], "cost": cost | {"latent_steps": 1.0}} for name in names}
        steps = {name: {"latents": latents[name], "marker": 2.0, "answer": 4.0, "total": 30.0} for name in names}
        return upgraded(
            {**common, "baseline": baseline, "systems": old, "words": {"steps": steps, "controls": swapped}}
        )
    kinds = {name: "tokens" if name in TOKENS else None if name == "answer_only" else "latent" for name in names}
    systems = {
        name: {"exact_match": exact[name], "cost": cost | {"latent_steps": latents[name]}, "chain": kinds[name]}
        for name in names
    }
    return {**common, "schema": 2, "baseline": baseline, "systems": systems, "probes": {"controls": swapped}}


def written(name: str) -> str:
    return name.replace("_", " ")


def shown(results: Results, name: str) -> str:
    return f"{100 * results['systems'][written_as(results, name)]['exact_match']['mean']:.2f}"


def written_as(results: Results, text: str) -> str:
    """The system that a sentence calls by this text."""
    return next(name for name in results["systems"] if text in (name, written(name)))


def named(text: str, candidates: list[str]) -> set[str]:
    """The systems of an enumeration; commas are in names too, so the longest names are taken first."""
    found = set()
    for name in sorted(candidates, key=len, reverse=True):
        if written(name) in text:
            found.add(name)
            text = text.replace(written(name), "")
    return found


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def check_lede(results: Results, facts: re.Match[str]) -> None:
    systems, baseline = results["systems"], results["baseline"]
    best = written_as(results, facts["best"])
    assert written_as(results, facts["explicit"]) == baseline
    silent = [name for name in LATENT if name in systems]
    assert best in silent
    assert facts["rate"] == shown(results, best)
    assert facts["other"] == shown(results, baseline)
    assert max(number(shown(results, name)) for name in silent) == number(facts["rate"])
    assert number(facts["problems"]) == results["problems"]
    for name, steps in ((best, facts["latents"]), (baseline, facts["tokens"])):
        assert number(steps) == pytest.approx(systems[name]["cost"]["latent_steps"], abs=0.0051)
    paired = results["differences"][f"{best} - {baseline}"]
    sure = (paired["p"] is None or paired["p"] < 0.05) and (paired["low"] > 0 or paired["high"] < 0)
    if facts["fewer"]:
        assert sure
        assert (facts["fewer"] == "fewer") == (number(facts["rate"]) > number(facts["other"])) or (
            facts["rate"] == facts["other"]
        )
    else:
        assert not sure
        assert bool(facts["apart"]) == (paired["p"] is not None and paired["p"] < 0.05)
        assert facts["compared"] == f"{facts['best']} minus {facts['explicit']}"
    check_rank(results, best, silent, facts["rank"] or "")
    swapped = results["probes"].get("controls", {}).get(best)
    assert bool(facts["swapped"]) == bool(swapped)
    if swapped:
        assert written_as(results, facts["again"]) == best
        assert facts["swapped"] == f"{100 * swapped['swap']['exact_match']['mean']:.2f}"


def check_rank(results: Results, best: str, silent: list[str], rank: str) -> None:
    ties = {name for name in silent if shown(results, name) == shown(results, best)}
    if len(silent) == 1:
        assert rank == ""
    elif len(ties) == len(silent):
        assert rank.startswith((" Both systems", f" All {len(silent)} systems"))
    elif len(ties) > 1:
        assert rank.startswith(f" Of {len(silent)} systems")
        assert named(rank, silent) == ties
    else:
        assert rank.startswith(f" It is the best of {len(silent)} systems")
        exact = {name: results["systems"][name]["exact_match"] for name in silent}
        near = {name for name in silent if name != best and exact[name]["high"] >= exact[best]["low"]}
        assert named(rank.partition("interval")[2], silent) == near


def check_ranking(results: Results, facts: re.Match[str]) -> None:
    trained = [name for name in results["systems"] if name not in VARIANTS] or list(results["systems"])
    by_rate = sorted(trained, key=lambda name: number(shown(results, name)))
    if facts["only"]:
        assert (written_as(results, facts["only"]), facts["alone"]) == (trained[0], shown(results, trained[0]))
        assert len(trained) == 1
    elif facts["same"]:
        assert {shown(results, name) for name in trained} == {facts["same"]}
        assert len(trained) == int(facts["all"] or 2)
    else:
        assert len(trained) == int(facts["among"])
        assert bool(facts["some"]) == (len(trained) < len(results["systems"]))
        for names, rate, end in ((facts["best"], facts["rate"], -1), (facts["worst"], facts["least"], 0)):
            assert rate == shown(results, by_rate[end])
            assert named(names, trained) == {name for name in trained if shown(results, name) == rate}
        exact = [results["systems"][written_as(results, by_rate[end])]["exact_match"] for end in (-1, 0)]
        if exact[1]["high"] >= exact[0]["low"]:
            assert facts["overlap"]


@settings(max_examples=150, deadline=None)
@given(random_results())
def test_a_lede_says_what_its_numbers_say(results: Results) -> None:
    text = finding(results)
    silent = any(name in LATENT for name in results["systems"])
    if results["baseline"] and silent:
        facts = LEDE.fullmatch(text)
        assert facts, text
        check_lede(results, facts)
    else:
        facts = RANKING.fullmatch(text)
        assert facts, text
        check_ranking(results, facts)
    alone = facts.groupdict().get("only") is not None
    assert bool(facts["one"]) == (len(results["seeds"]) == 1 and not alone)


EMPTYING = ("no chain", "swap", "mean", "random mixtures", "noise", "zero")
SUBJECTS = {"order": "shuffle", "second half": "truncate"}


@st.composite
def controls(draw: st.DrawFn) -> Results:
    """Altered chains of one system that has 40 problems and 30 of them right."""
    names = draw(
        st.lists(st.sampled_from([*EMPTYING, "shuffle", "truncate", "forced answer"]), min_size=1, unique=True)
    )
    entries = {}
    for name in names:
        right = draw(st.integers(0, 40))
        mean = (right - 30) / 40
        ends = {"low": mean - draw(st.floats(0, 0.3)), "high": mean + draw(st.floats(0, 0.3))}
        difference = {"mean": mean, **ends, "p": draw(st.none() | st.floats(0, 1))}
        exact = {"mean": right / 40, "low": 0.0, "high": 1.0, "seeds": [right / 40], "problems": 40}
        entries[name] = {"exact_match": exact, "difference": difference}
    return entries


@settings(max_examples=150, deadline=None)
@given(controls())
def test_a_verdict_on_the_chain_says_what_its_controls_say(entries: Results) -> None:
    loss = {
        name: -100 * entry["difference"]["mean"]
        for name, entry in entries.items()
        if differs(entry["difference"]) and entry["difference"]["mean"] < 0
    }
    emptied = [name for name in EMPTYING if name in entries]
    lost = sorted(loss[name] for name in emptied if name in loss)
    text = " ".join(chain_verdict(entries))
    if all_of_it := re.search(r"without its content, accuracy falls by ([\d.]+)(?: to ([\d.]+))? points", text):
        assert len(lost) == len(emptied)
        ends = [number(end) for end in all_of_it.groups() if end is not None]
        assert (ends[0], ends[-1]) == (pytest.approx(lost[0], abs=0.051), pytest.approx(lost[-1], abs=0.051))
    elif some := re.search(
        r"used in part: (.+) cost (?:up to )?([\d.]+) points, while (what )?(.+?) cost (.+?)\.(?: |$)", text
    ):
        assert named(some[1], emptied) == {name for name in emptied if name in loss}
        assert number(some[2]) == pytest.approx(lost[-1], abs=0.051)
        spared = {name for name in emptied if name not in loss}
        assert named(some[4], emptied) == spared
        most = max(-100 * entries[name]["difference"]["mean"] for name in spared)
        assert bool(some[3]) == ("may be chance" in some[5]) == (most >= 1)
        assert not some[3] or number(re.findall(r"[\d.]+", some[5])[0]) == pytest.approx(most, abs=0.051)
        unclear = "swap" in entries and "swap" not in loss
        small = unclear and -100 * entries["swap"]["difference"]["low"] < lost[-1] / 2
        assert ("need not be this problem" in some[5]) == small
        assert ("it is open whether" in some[5]) == (unclear and not small)
    elif emptied:
        assert "No evidence that the chain is used" in text
        assert ("its content (" in text) == any(entries[name]["difference"]["mean"] <= -0.01 for name in emptied)
        assert not lost
    for subject, name in SUBJECTS.items():
        measured = re.search(rf"its {subject} \(([−\d.]+) points\)", text, re.IGNORECASE)
        assert bool(measured) == (name in loss)
        assert (subject in text) == (name in entries)
        if measured:
            assert -number(measured[1]) == pytest.approx(loss[name], abs=0.051)
    if cost := re.search(r"right after the chain costs (?:([\d.]+) points|nothing)", text):
        assert bool(cost[1]) == ("forced answer" in loss)
        assert "forced answer" in entries
