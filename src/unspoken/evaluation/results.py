"""What a run measured, as one mapping of plain values, and the facts that sentences about it are made of.

The layout is described in `unspoken.probes.evaluate`. Results of schemas 1 and 2, which older versions wrote, are read
too; intervals and tests of schema 2 and before, which took three seeds for many, are made anew from what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from unspoken.evaluation.outcomes import COUPLED, JEPA_REASONER, unpacked
from unspoken.evaluation.significance import Difference, difference_of, paired_difference, rate_of
from unspoken.storage import FolderError, one_line_error, read_json

RESULTS, SCHEMA = "results.json", 3
Results = Mapping[str, Any]
# Names of stages and keys that older results have.
_KINDS = {"compress": "stage1", "autonomy": "stage2"}
_KEYS = {"own_latents": "rollout_latents", "own_passes": "rollout_passes"}
# Of results of schema 1: the objective of a stage that writes an explicit chain, and what the oldest leave out of it.
_EXPLICIT, _DEFAULTS = {"kind": "next_token", "chain": "explicit"}, {"chain": "explicit"}
_SUMMARY_KEYS = {
    "forced_tokens": ("says", "output_kind"),
    "chains": ("said", "response"),
    "corruption": ("said", "decoded"),
}


def read_results(path: Path) -> dict[str, Any]:
    """Results of a run folder or of a results file.

    Raises:
        ValueError: there are none, or they were written by a later version.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        remedy = f"'unspoken eval {path}' writes them" if path.is_dir() else "name a run folder or a results file"
        raise ValueError(f"there are no results at {file}; {remedy}")
    results: dict[str, Any] = read_json(file, f"'unspoken eval {path}' writes it anew")
    with one_line_error(f"{file} does not hold what a run measured", f"'unspoken eval {path}' writes it anew"):
        if results.get("schema", SCHEMA) > SCHEMA:
            raise FolderError(
                f"{file} has schema {results['schema']}, and this version reads up to {SCHEMA}; update unspoken"
            )
        for stage in results.get("recipe", {}).get("stages", []):
            objective = {_KEYS.get(key, key): value for key, value in stage["objective"].items()}
            stage["objective"] = objective | {"kind": _KINDS.get(objective["kind"], objective["kind"])}
        return upgraded(results)


def upgraded(results: dict[str, Any]) -> dict[str, Any]:
    """Results of any schema in the layout of this one."""
    if results.get("schema") == SCHEMA:
        return {**results, "probes": _renamed(results["probes"])}
    if results.get("schema") == 2:
        return _with_todays_tests({**results, "schema": SCHEMA, "probes": _renamed(results["probes"])})
    problems, systems = results.get("words") or {}, results.get("systems") or {}
    baseline = results.get("baseline", COUPLED if COUPLED in systems else None)
    copied = ("name", "size", "command", "recipe", "seeds", "problems", "outcomes", "training", "overlap", "made")
    tests = problems.get("tests") or {
        "test": {name: {"exact_match": entry["exact_match"]} for name, entry in systems.items()}
    }
    today = {
        **{key: results[key] for key in copied if key in results},
        "schema": SCHEMA,
        "baseline": baseline,
        "systems": {name: _system(results, name, entry, baseline) for name, entry in systems.items()},
        "tests": tests,
        "differences": results.get("differences", {}),
        "probes": _renamed({key: summary for key, summary in _probes(results).items() if summary}),
    }
    return _with_todays_tests(today)


def _with_todays_tests(results: dict[str, Any]) -> dict[str, Any]:
    """The same results with intervals of rates, differences and controls as they are made today.

    Intervals of other probes stay as they were measured: what they were made of is not kept.
    """
    made: dict[str, Any] = _with_todays_rates(results)
    first: Results = next(iter((results.get("outcomes") or {}).values()), {})
    right = {
        name: np.stack([unpacked(seed, first["problems"]) for seed in seeds])
        for name, seeds in first.get("right", {}).items()
    }
    baseline = made.get("baseline")
    for name in made.get("differences", ()):
        one = name.removesuffix(f" - {baseline}")
        if one in right and baseline in right:
            made["differences"][name] = asdict(paired_difference(right[one], right[baseline]))
    for system, entries in (made["probes"].get("controls") or {}).items():
        for entry in entries.values() if system in right else ():
            altered = entry["exact_match"]
            if len(altered["seeds"]) == len(right[system]):
                own = right[system][:, : altered["problems"]].mean(axis=1)
                entry["difference"] = asdict(_difference_of_rates(altered["seeds"], own.tolist(), altered["problems"]))
    return made


def _with_todays_rates(content: Any) -> Any:
    if isinstance(content, list):
        return [_with_todays_rates(value) for value in content]
    if not isinstance(content, dict):
        return content
    if content.keys() >= {"mean", "low", "high", "seeds", "problems"}:
        return content | asdict(rate_of(content["seeds"], content["problems"]))
    return {key: _with_todays_rates(value) for key, value in content.items()}


def _difference_of_rates(first: Sequence[float], second: Sequence[float], problems: int) -> Difference:
    """A paired difference of which the rates of seeds are left, and not on which problems outcomes differ.

    The variance of problems is taken as large as such rates allow: as if the two were right together as seldom as
    they can.
    """
    by_seed = np.subtract(first, second)
    mean, of_seeds = float(by_seed.mean()), float(by_seed.var(ddof=1)) / len(by_seed) if len(by_seed) > 1 else 0.0
    apart = float(np.mean([min(one + two, 2 - one - two) for one, two in zip(first, second, strict=True)]))
    variance = of_seeds + max(0.0, apart - mean**2) / problems
    return difference_of(mean, of_seeds, variance, len(by_seed), problems)


def _renamed(probes: dict[str, Any]) -> dict[str, Any]:
    """Summaries with today's names of keys."""

    def with_new_key(content: Any, old: str, new: str) -> Any:
        if isinstance(content, dict):
            return {new if key == old else key: with_new_key(value, old, new) for key, value in content.items()}
        return [with_new_key(value, old, new) for value in content] if isinstance(content, list) else content

    named = {key: with_new_key(summary, *_SUMMARY_KEYS.get(key, ("", ""))) for key, summary in probes.items()}
    if isinstance(forced := named.get("forced_tokens"), dict):
        for system in forced["systems"].values():
            system["output_kind"] = system["output_kind"].replace("its Talker says", "its Talker decodes")
    if isinstance(named.get("chains"), list):  # without places on a plane
        named["chains"] = {"examples": named["chains"], "planes": {}}
    return named


def _system(results: Results, name: str, entry: dict[str, Any], baseline: str | None) -> dict[str, Any]:
    problems: Results = results.get("words") or {}
    steps, cost = problems.get("steps", {}).get(name), entry.get("cost")
    if steps is not None and cost is not None:  # counted over all problems; the other numbers are those of a few
        cost = cost | {
            "latent_steps": steps["latents"],
            "markers": steps["marker"],
            "spoken_tokens": steps["answer"],
            "sequential_passes": steps["total"],
        }
    if cost is not None and (of_all := _cost_of_all(results, name)):
        cost = cost | {key: value for key, value in of_all.items() if key in cost}
    tokens = name == baseline or name in problems.get("explicit", ()) or name in _writing_tokens(results)
    chained = steps is None or steps["latents"] > 0
    chain = None if not chained else "tokens" if tokens else "latent"
    return {"exact_match": entry["exact_match"], "ended": entry.get("ended"), "cost": cost, "chain": chain}


def _cost_of_all(results: Results, name: str) -> Mapping[str, float]:
    """What runs are compared by: it was counted over all problems, where ``cost`` was counted over those timed."""
    first: Results = next(iter((results.get("outcomes") or {}).values()), {})
    return (first.get("cost") or {}).get(name) or {}


def _writing_tokens(results: Results) -> set[str]:
    """The stages that learned to write an explicit chain; the recipe names the baseline and all others."""
    stages = results.get("recipe", {}).get("stages", ())
    return {stage["name"] for stage in stages if _EXPLICIT.items() <= (_DEFAULTS | stage["objective"]).items()}


def _probes(results: Results) -> dict[str, Any]:
    """What schema 1 kept by the kind of task, by the probe that measures it now."""
    problems, strings, texts = (results.get(key) or {} for key in ("words", "strings", "texts"))
    altered = {JEPA_REASONER: _with_differences(results)} if results.get("controls") else {}
    return {
        "controls": problems.get("controls") or altered,
        "forced_tokens": problems.get("containment"),
        "superposition": problems.get("superposition"),
        "chains": problems.get("strips"),
        "geometry": problems.get("geometry"),
        "pass_at_k": problems.get("samples"),
        **(_of_strings(strings) if strings else {}),
        **_of_trees(results),
        **(_of_texts(texts) if texts else {}),
    }


def _of_strings(strings: Results) -> dict[str, Any]:
    half = strings["half"]
    return {
        "symbols": {key: strings[key] for key in ("symbols", "half", "steps", "valid")},
        "token_noise": {"half": half, **strings["token_noise"]},
        "latent_noise": {"half": half, "against": strings["coconut"], **strings["latent_noise"]},
        "forced_symbols": {"half": half, "systems": strings["containment"], "prime": strings.get("prime")},
    }


def _of_trees(results: Results) -> dict[str, Any]:
    inside, examples = results.get("inside") or {}, results.get("examples")
    resampled = results.get("containment")
    systems = {name: entry["mixture"] for name, entry in inside.items()}
    return {
        "steps": {name: entry["steps"] for name, entry in inside.items()},
        "mixture": inside and {"reference": results.get("reference"), "systems": systems},
        "calibration": {name: entry["calibration"] for name, entry in inside.items() if "calibration" in entry},
        "trees": examples and {"examples": examples, "plane": results["pca"]},
        "resampled_answers": resampled and {JEPA_REASONER: resampled},
    }


def _of_texts(texts: Results) -> dict[str, Any]:
    corruption = {key: texts[key] for key in ("sentences", "prime", "samples")}
    return {
        "next_token": texts["language"]
        and {"rows": texts["rows"], "tokens": texts["tokens"], "systems": texts["language"]},
        "corruption": texts["corruption"] and corruption | {"systems": texts["corruption"]},
    }


def _with_differences(results: Results) -> dict[str, Any]:
    """Controls that were kept without a paired test: differences of rates, within the extremes of their intervals."""
    own = results["systems"][JEPA_REASONER]["exact_match"]
    return {
        name: entry
        | {
            "difference": {
                "mean": entry["exact_match"]["mean"] - own["mean"],
                "low": entry["exact_match"]["low"] - own["high"],
                "high": entry["exact_match"]["high"] - own["low"],
                "p": None,
            }
        }
        for name, entry in results["controls"].items()
    }


def summary_of(results: Results, probe: str) -> Any:
    """What a probe summarised; empty where it was not measured."""
    return results["probes"].get(probe) or {}


def title(results: Results) -> str:
    """Name and size of the run."""
    return f"{results.get('name', 'run')}, {results.get('size', '')}".rstrip(", ")


def label(system: str) -> str:
    """A system or a stage as it is written."""
    return system.replace("_", " ")


def explicit(results: Results, system: str) -> bool:
    """Whether the chain of a system is made of tokens."""
    return bool(results["systems"][system].get("chain") == "tokens")


def reasoners(results: Results) -> list[str]:
    """Systems that reason in latents; the steps of an explicit chain are tokens."""
    return [name for name, entry in results["systems"].items() if entry.get("chain") not in (None, "tokens")]


def as_trained(results: Results) -> list[str]:
    """Systems that answer as their stage was trained to, not in a further way that their model can answer in.

    They are named by their stage, or as `JEPA_REASONER`. All systems, where the recipe of the results does not tell.
    """
    stages = {stage["name"] for stage in results.get("recipe", {}).get("stages", ())}
    names = list(results["systems"])
    trained = [name for name in names if name == JEPA_REASONER or name.removeprefix(f"{JEPA_REASONER}, ") in stages]
    return trained or names


def difference(results: Results, system: str) -> Mapping[str, Any] | None:
    """The paired test of a system against the baseline, if there is one."""
    return results.get("differences", {}).get(f"{system} - {results['baseline']}")


def differs(entry: Mapping[str, Any]) -> bool:
    """Whether a paired difference is one: its interval leaves out zero and its p-value, if known, is below 0.05."""
    return bool((entry["p"] is None or entry["p"] < 0.05) and (entry["low"] > 0 or entry["high"] < 0))


def averaged(entry: Any) -> Any:
    """The mean over seeds of an entry that keeps the seeds' own values beside it."""
    return entry["mean"] if isinstance(entry, Mapping) and "mean" in entry else entry


def is_ambiguous(results: Results) -> bool:
    """Whether the prompt leaves open where a route leads."""
    return bool(results.get("recipe", {}).get("task", {}).get("targets", 1) != 1)


def stage_curves(results: Results, stage: str) -> list[tuple[int, Mapping[str, Any]]]:
    """The curve of a stage in each seed that trained it, with the seed."""
    every = results.get("training") or ()
    return [(entry["seed"], entry["stages"][stage]) for entry in every if stage in entry["stages"]]


def step_names(depth: int) -> list[str]:
    """What each step of a route must name: ``root, level 2, ..., leaf``."""
    return ["root", *(f"level {level}" for level in range(2, depth)), "leaf"]
