"""Results of schema 1, written by hand, in the layout of today; and what cannot be read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unspoken.evaluation.outcomes import packed
from unspoken.evaluation.results import (
    SCHEMA,
    as_trained,
    averaged,
    difference,
    differs,
    explicit,
    is_ambiguous,
    label,
    read_results,
    reasoners,
    stage_curves,
    step_names,
    summary_of,
    title,
    upgraded,
)
from unspoken.evaluation.significance import paired_difference, rate, rate_of

Results = dict[str, Any]
RATE = asdict(rate_of([0.5], 100))
COST = {"latent_steps": 9.0, "spoken_tokens": 9.0, "sequential_passes": 99.0, "flops": 1e6, "parameters": 7}
OLD = {"words", "strings", "texts", "inside", "controls", "containment", "examples", "pca", "reference"}


def old(systems: list[str], **rest: Any) -> Results:
    """What every file of schema 1 has."""
    entries = {name: {"exact_match": RATE, "ended": 1.0, "cost": COST} for name in systems}
    empty = {"inside": {}, "controls": {}, "containment": None, "examples": [], "pca": None, "reference": {}}
    return {"schema": 1, "seeds": [0], "problems": 100, "systems": entries, **empty, **rest}


def test_tree_search_of_schema_1() -> None:
    low = asdict(rate_of([0.1], 100))
    results = upgraded(
        old(
            ["jepa-reasoner", "jepa-reasoner, nearest row", "coupled"],
            differences={"jepa-reasoner - coupled": {"mean": 0.0, "low": -0.1, "high": 0.1, "p": 1.0}},
            inside={"jepa-reasoner, nearest row": {"steps": "S", "mixture": "M", "calibration": "C"}},
            controls={"swap": {"exact_match": low}},
            containment={"talker_seeds": 5},
            examples=["E"],
            pca="P",
            reference={"no_sibling": 0.1},
        )
    )
    assert not OLD & results.keys()
    assert (results["schema"], results["baseline"]) == (SCHEMA, "coupled")
    assert {name: entry["chain"] for name, entry in results["systems"].items()} == {
        "jepa-reasoner": "latent",
        "jepa-reasoner, nearest row": "latent",
        "coupled": "tokens",
    }
    assert results["systems"]["coupled"]["cost"] == COST
    assert results["tests"] == {"test": {name: {"exact_match": RATE} for name in results["systems"]}}
    probes = results["probes"]
    assert probes["steps"] == {"jepa-reasoner, nearest row": "S"}
    assert probes["mixture"] == {"reference": {"no_sibling": 0.1}, "systems": {"jepa-reasoner, nearest row": "M"}}
    assert probes["calibration"] == {"jepa-reasoner, nearest row": "C"}
    assert probes["trees"] == {"examples": ["E"], "plane": "P"}
    assert probes["resampled_answers"] == {"jepa-reasoner": {"talker_seeds": 5}}
    # Without the problems' own outcomes a difference is as wide as both intervals allow.
    swapped = probes["controls"]["jepa-reasoner"]["swap"]
    assert swapped["exact_match"] == low
    span = {"low": low["low"] - RATE["high"], "high": low["high"] - RATE["low"]}
    assert swapped["difference"] == {"mean": -0.4, **span, "p": None}
    assert differs(swapped["difference"])
    assert difference(results, "jepa-reasoner") == {"mean": 0.0, "low": -0.1, "high": 0.1, "p": 1.0}
    assert set(probes) == {"steps", "mixture", "calibration", "trees", "resampled_answers", "controls"}


def test_reasoning_problems_of_schema_1() -> None:
    def steps(latents: float) -> Results:
        return {"latents": latents, "marker": 2, "answer": 3.0, "total": latents + 5}

    words = {
        "tests": {"easy": {"cot": {"exact_match": RATE}}, "hard": {"cot": {"exact_match": RATE}}},
        "explicit": ["cot", "second"],
        "steps": {"cot": steps(8.0), "second": steps(7.0), "latent": steps(0.5), "answer_only": steps(0.0)},
        "controls": {"latent": {"swap": "W"}},
        "containment": "F",
        "superposition": {"latent": "S"},
        "strips": ["C"],
        "geometry": None,
        "samples": {"draws": 2, "systems": {}},
    }
    results = upgraded(old(["cot", "second", "latent", "answer_only"], baseline="cot", words=words))
    assert not OLD & results.keys()
    assert results["tests"] == words["tests"]
    # Costs of older results are those of a few problems; steps were counted over all.
    cost = results["systems"]["latent"]["cost"]
    assert cost == COST | {"latent_steps": 0.5, "markers": 2, "spoken_tokens": 3.0, "sequential_passes": 5.5}
    assert {name: entry["chain"] for name, entry in results["systems"].items()} == {
        "cot": "tokens",
        "second": "tokens",
        "latent": "latent",
        "answer_only": None,
    }
    assert reasoners(results) == ["latent"]
    assert results["probes"] == {
        "controls": {"latent": {"swap": "W"}},
        "forced_tokens": "F",
        "superposition": {"latent": "S"},
        "chains": {"examples": ["C"], "planes": {}},
        "pass_at_k": {"draws": 2, "systems": {}},
    }
    assert summary_of(results, "geometry") == {}


def test_strings_of_schema_1() -> None:
    strings = {
        "symbols": 4,
        "half": 2,
        "steps": {"coupled": "S"},
        "valid": {"coupled": 0.9},
        "token_noise": {"comparison": "T"},
        "coconut": "coconut",
        "latent_noise": {"free": "L"},
        "containment": {"coupled": "F"},
        "prime": 1,
    }
    results = upgraded(old(["jepa-reasoner", "coupled", "coconut"], strings=strings))
    assert not OLD & results.keys()
    assert results["probes"] == {
        "symbols": {"symbols": 4, "half": 2, "steps": {"coupled": "S"}, "valid": {"coupled": 0.9}},
        "token_noise": {"half": 2, "comparison": "T"},
        "latent_noise": {"half": 2, "against": "coconut", "free": "L"},
        "forced_symbols": {"half": 2, "systems": {"coupled": "F"}, "prime": 1},
    }


def test_running_text_of_schema_1() -> None:
    texts = {
        "rows": 8,
        "tokens": 100,
        "language": {"pretrain": "N"},
        "sentences": 6,
        "prime": 4,
        "samples": ["E"],
        "corruption": {"dual": "C"},
    }
    results = upgraded(old([], baseline=None, texts=texts))
    assert not OLD & results.keys()
    assert (results["systems"], results["differences"]) == ({}, {})
    assert results["probes"] == {
        "next_token": {"rows": 8, "tokens": 100, "systems": {"pretrain": "N"}},
        "corruption": {"sentences": 6, "prime": 4, "samples": ["E"], "systems": {"dual": "C"}},
    }


def test_results_of_today_stay_as_they_are() -> None:
    results = upgraded(old(["coupled"]))
    assert upgraded(results) == results


def test_older_keys_of_summaries_are_read() -> None:
    results = upgraded(old(["coupled"]))
    forced = {"problems": 1, "systems": {"cot": {"says": "its answer", "effects": []}}}
    chains = [{"system": "cot", "said": "3", "steps": [{"tokens": [["said", 1.0]]}]}]
    corruption = {"samples": [{"said": {"none": "text"}}]}
    before = {"forced_tokens": forced, "chains": chains, "corruption": corruption, "symbols": {"said": 1}}
    assert upgraded(results | {"probes": before})["probes"] == {
        "forced_tokens": {"problems": 1, "systems": {"cot": {"output_kind": "its answer", "effects": []}}},
        "chains": {
            "examples": [{"system": "cot", "response": "3", "steps": [{"tokens": [["said", 1.0]]}]}],
            "planes": {},
        },
        "corruption": {"samples": [{"decoded": {"none": "text"}}]},
        "symbols": {"said": 1},
    }


def test_older_names_of_stages_and_keys_are_read(tmp_path: Path) -> None:
    stages = [
        {"name": "a", "objective": {"kind": "compress", "rows": 3}},
        {"name": "b", "objective": {"kind": "autonomy"}},
        {"name": "c", "objective": {"kind": "sst", "own_latents": 2, "own_passes": 1}},
    ]
    (tmp_path / "results.json").write_text(json.dumps(old(["coupled"], recipe={"stages": stages})))
    for path in (tmp_path, tmp_path / "results.json"):
        assert [stage["objective"] for stage in read_results(path)["recipe"]["stages"]] == [
            {"kind": "stage1", "rows": 3},
            {"kind": "stage2"},
            {"kind": "sst", "rollout_latents": 2, "rollout_passes": 1},
        ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there are no results at .*; 'unspoken eval .*' writes them"),
        ('{"schema": 1', "is damaged"),
        (json.dumps({"schema": SCHEMA + 1}), f"has schema {SCHEMA + 1}, and this version reads up to {SCHEMA}"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_no_run_to_measure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no results at .*; name a run folder or a results file$"):
        read_results(tmp_path / "other.json")


# --- facts -----------------------------------------------------------------------------------------------------------


def test_a_later_schema_is_refused_and_one_without_a_number_is_the_first(tmp_path: Path) -> None:
    results = old(["coupled"])
    del results["schema"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    first = read_results(tmp_path)
    assert first["schema"] == SCHEMA == 3
    (tmp_path / "results.json").write_text(json.dumps(first))
    assert read_results(tmp_path) == first


def test_intervals_and_tests_of_schema_2_are_made_anew() -> None:
    generator = np.random.default_rng(0)
    right = {name: generator.random((3, 40)) < share for name, share in (("cot", 0.9), ("latent", 0.4))}
    altered = right["latent"][:, :16] & (generator.random((3, 16)) < 0.5)
    narrow = {"low": 0.0, "high": 0.0, "p": 0.0}
    older = {
        "schema": 2,
        "baseline": "cot",
        "systems": {name: {"exact_match": asdict(rate(rows)) | narrow} for name, rows in right.items()},
        "differences": {"latent - cot": narrow, "gone - cot": narrow},
        "outcomes": {
            "test": {"problems": 40, "right": {name: [packed(row) for row in rows] for name, rows in right.items()}}
        },
        "probes": {"controls": {"latent": {"swap": {"exact_match": asdict(rate(altered)), "difference": narrow}}}},
    }
    results = upgraded(older)
    assert results["schema"] == SCHEMA
    for name, rows in right.items():
        assert results["systems"][name]["exact_match"] == asdict(rate(rows)) | {"p": 0.0}
    exact = asdict(paired_difference(*(right[name].astype(float) for name in ("latent", "cot"))))
    assert results["differences"] == {"latent - cot": exact, "gone - cot": narrow}
    # Of controls the outcomes are not kept, so the interval is at least as wide as the exact one.
    own = right["latent"][:, :16].astype(float)
    found, exact = results["probes"]["controls"]["latent"]["swap"]["difference"], paired_difference(altered * 1.0, own)
    assert found["mean"] == pytest.approx(exact.mean)
    assert found["low"] <= exact.low and found["high"] >= exact.high and found["p"] >= exact.p
    assert upgraded(results) == results
    assert older["differences"] == {"latent - cot": narrow, "gone - cot": narrow}


def test_systems_are_told_apart_by_their_chains_and_stages() -> None:
    results = upgraded(
        old(
            ["coupled", "jepa-reasoner", "cot, soft thinking", "jepa-reasoner, dual", "jepa-reasoner, nearest row"],
            recipe={
                "stages": [
                    {"name": "dual", "objective": {"kind": "talker"}},
                    {"name": "coupled", "objective": {"kind": "next_token"}},
                ]
            },
        )
    )
    # A coupled model is the baseline where nothing is named as one.
    assert results["baseline"] == "coupled"
    assert [name for name in results["systems"] if explicit(results, name)] == ["coupled"]
    assert reasoners(results) == [
        "jepa-reasoner",
        "cot, soft thinking",
        "jepa-reasoner, dual",
        "jepa-reasoner, nearest row",
    ]
    assert as_trained(results) == ["coupled", "jepa-reasoner", "jepa-reasoner, dual"]
    # Without a recipe nothing is known of stages.
    unknown = {**results, "recipe": {}, "systems": {"a": {"chain": None}, "b": {}}}
    assert (as_trained(unknown), reasoners(unknown)) == (["a", "b"], [])
    assert upgraded(old(["other"]))["baseline"] is None


@pytest.mark.parametrize(
    ("entry", "is_one"),
    [
        ({"low": 0.1, "high": 0.2, "p": 0.049}, True),
        ({"low": -0.2, "high": -0.1, "p": None}, True),
        ({"low": 0.1, "high": 0.2, "p": 0.05}, False),
        ({"low": 0.0, "high": 0.2, "p": 0.01}, False),
        ({"low": -0.2, "high": 0.0, "p": 0.01}, False),
        ({"low": -0.1, "high": 0.2, "p": None}, False),
    ],
)
def test_a_difference_leaves_out_zero_and_is_significant(entry: Results, is_one: bool) -> None:
    assert differs(entry) is is_one


def test_names_titles_and_steps_of_a_route() -> None:
    assert title({"name": "trees", "size": "tiny"}) == "trees, tiny"
    assert (title({"name": "trees"}), title({})) == ("trees", "run")
    assert label("answer_only_it") == "answer only it"
    assert step_names(4) == ["root", "level 2", "level 3", "leaf"]
    assert step_names(2) == ["root", "leaf"]
    assert (averaged({"mean": 2.0, "seeds": [1.0, 3.0]}), averaged({"other": 1}), averaged(3)) == (2.0, {"other": 1}, 3)
    for task, ambiguous in (({"targets": 2}, True), ({"targets": 0}, True), ({"targets": 1}, False), ({}, False)):
        assert is_ambiguous({"recipe": {"task": task}}) is ambiguous
    assert not is_ambiguous({})


def test_curves_of_a_stage_are_of_the_seeds_that_trained_it() -> None:
    training = [
        {"seed": 0, "stages": {"sst": {"loss": [1.0]}}},
        {"seed": 1, "stages": {}},
        {"seed": 2, "stages": {"sst": {"loss": [2.0]}}},
    ]
    assert stage_curves({"training": training}, "sst") == [(0, {"loss": [1.0]}), (2, {"loss": [2.0]})]
    assert stage_curves({"training": None}, "sst") == stage_curves({}, "sst") == []


def test_costs_counted_over_all_problems_go_before_those_of_a_few() -> None:
    first = {"latent_steps": 4.5, "flops": 2e6, "seconds": 0.5}
    outcomes = {"easy": {"cost": {"coupled": first}}, "hard": {"cost": {"coupled": {"flops": 9e9}}}}
    results = upgraded(old(["coupled", "other"], outcomes=outcomes))
    # Seconds were no part of the older entry.
    assert results["systems"]["coupled"]["cost"] == COST | {"latent_steps": 4.5, "flops": 2e6}
    assert results["systems"]["other"]["cost"] == COST
    recipe = {
        "stages": [
            {"name": "other", "objective": {"kind": "next_token"}},
            {"name": "coupled", "objective": {"kind": "next_token", "chain": "none"}},
        ]
    }
    chains = upgraded(old(["coupled", "other"], baseline="third", recipe=recipe))["systems"]
    # The oldest recipes leave out that the chain is explicit.
    assert {name: entry["chain"] for name, entry in chains.items()} == {"coupled": "latent", "other": "tokens"}


def test_a_talker_decodes_where_older_results_had_another_verb() -> None:
    forced = {"systems": {"dual": {"says": "all that its Talker says", "effects": []}}}
    probes = upgraded(upgraded(old(["coupled"])) | {"probes": {"forced_tokens": forced}})["probes"]
    assert probes["forced_tokens"]["systems"]["dual"]["output_kind"] == "all that its Talker decodes"
