"""Results of schema 1, written by hand, in the layout of today; and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unspoken.evaluation.results import (
    SCHEMA,
    difference,
    differs,
    read_results,
    reasoners,
    summary_of,
    upgraded,
)

Results = dict[str, Any]
RATE = {"mean": 0.5, "low": 0.4, "high": 0.6, "seeds": [0.5], "problems": 100}
COST = {"latent_steps": 9.0, "spoken_tokens": 9.0, "sequential_passes": 99.0, "flops": 1e6, "parameters": 7}
OLD = {"words", "strings", "texts", "inside", "controls", "containment", "examples", "pca", "reference"}


def old(systems: list[str], **rest: Any) -> Results:
    """What every file of schema 1 has."""
    entries = {name: {"exact_match": RATE, "ended": 1.0, "cost": COST} for name in systems}
    empty = {"inside": {}, "controls": {}, "containment": None, "examples": [], "pca": None, "reference": {}}
    return {"schema": 1, "seeds": [0], "problems": 100, "systems": entries, **empty, **rest}


def test_tree_search_of_schema_1() -> None:
    low = RATE | {"mean": 0.1, "low": 0.05, "high": 0.2}
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
    assert swapped["difference"] == {"mean": -0.4, "low": 0.05 - 0.6, "high": 0.2 - 0.4, "p": None}
    assert differs(swapped["difference"])
    assert difference(results, "jepa-reasoner") == {"mean": 0.0, "low": -0.1, "high": 0.1, "p": 1.0}
    assert set(probes) == {"steps", "mixture", "calibration", "trees", "resampled_answers", "controls"}


def test_reasoning_problems_of_schema_1() -> None:
    def steps(latents: float) -> Results:
        return {"latents": latents, "marker": 2, "answer": 3.0, "total": latents + 5}

    words = {
        "tests": {"easy": {"cot": {"exact_match": RATE}}, "hard": {"cot": {"exact_match": RATE}}},
        "explicit": ["cot", "second"],
        "steps": {"cot": steps(8.0), "second": steps(7.0), "latent": steps(4.0), "answer_only": steps(0.0)},
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
    assert cost == COST | {"latent_steps": 4.0, "markers": 2, "spoken_tokens": 3.0, "sequential_passes": 9.0}
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
