"""Results of runs on tree search, written by hand: small, complete, and free of any trained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Results = dict[str, Any]
NAMES = "ABCDEFGHIJKLMNO"
NEAREST = "jepa-reasoner, nearest row"


def _rate(mean: float, seeds: int) -> Results:
    return {
        "mean": mean,
        "low": max(0.0, mean - 0.01),
        "high": min(1.0, mean + 0.01),
        "seeds": [mean] * seeds,
        "problems": 200,
    }


def _mean(value: Any, seeds: int) -> Results:
    return {"mean": value, "seeds": [value] * seeds}


def _cost(passes: float) -> Results:
    return {
        "latent_steps": 4.0,
        "markers": 0.0,
        "spoken_tokens": 4.0,
        "sequential_passes": passes,
        "flops": 14_533_632.0,
        "seconds_batched": 0.001,
        "seconds_alone": 0.0062,
        "parameters": 298_368,
    }


def _mixture(depth: int, seeds: int) -> Results:
    below = depth - 1
    numbers = {"rank": 0.05, "rank_inner": 0.03, "major": 0.99, "major_inner": 0.98}
    lists = {"rank_steps": 0.03, "major_steps": 0.98, "right_steps": 0.97, "other_steps": -0.0001}
    readings = {key: _mean(value, seeds) for key, value in numbers.items()}
    readings |= {key: _mean([value] * below, seeds) for key, value in lists.items()}
    return readings | {"right_inner": _mean(0.97, seeds), "other_inner": _mean(0.04, seeds)}


def _steps(depth: int, seeds: int) -> Results:
    accuracy = {topic: _mean([0.98] * (depth + 1), seeds) for topic in ("step", "up_to")}
    return {"rollout": accuracy, "forced": accuracy}


def _mixtures(names: Sequence[str], depth: int, seeds: int) -> Results:
    kinds = {kind: _mixture(depth, seeds) for kind in ("rollout", "forced")}
    return {"reference": {"no_sibling": 1 / 14, "true_mixture": 1 / 105}, "systems": dict.fromkeys(names, kinds)}


def _system(mean: float, passes: float, chain: str, seeds: int) -> Results:
    return {"exact_match": _rate(mean, seeds), "ended": 1.0, "cost": _cost(passes), "chain": chain}


def _curve(*, mixing: bool = False) -> Results:
    curve: Results = {
        "selected_step": 100,
        "steps": [0, 50, 100],
        "exact_match": [0.0, 0.5, 0.98],
        "loss_steps": [25, 50, 75, 100],
        "loss": [2.0, 0.5, 0.1, 0.02],
        "seconds": 12.0,
    }
    keys = ("rank", "rank_inner", "major", "major_inner", "right_inner", "other_inner")
    readings = {f"{kind}_{key}": [0.5, 0.3, 0.1] for kind in ("forced", "rollout") for key in keys}
    return curve | (readings if mixing else {})


def _example(depth: int) -> Results:
    heap = list(NAMES[: 2**depth - 1])
    route = [heap[2**level - 1] for level in range(depth)]
    coefficients = [{name: 1.0 if name == right else -0.12 for name in NAMES} for right in route]
    return {
        "kind": "most uncertain",
        "heap": heap,
        "route": route,
        "spoken": route[:-1],
        "correct": False,
        "coefficients": coefficients,
    }


def complete(depth: int = 3, seeds: int = 1) -> Results:
    stages = [
        {"name": "pretrain", "start": None, "objective": {"kind": "next_token", "positions": "all"}},
        {"name": "sst", "start": "pretrain", "objective": {"kind": "sst", "k": 4.0}},
        {"name": "talker", "start": "sst", "objective": {"kind": "talker"}},
        {
            "name": "coupled",
            "start": "pretrain",
            "objective": {"kind": "next_token", "positions": "answer"},
            "steps_of": ["sst", "talker"],
        },
    ]
    better, lost = ({"mean": mean, "low": mean - 0.03, "high": mean + 0.03, "p": 0.0002} for mean in (0.48, -0.98))
    systems = {
        "jepa-reasoner": _system(0.98, 5.0, "latent", seeds),
        NEAREST: _system(0.98, 4.0, "latent", seeds),
        "coupled": _system(0.5, 4.0, "tokens", seeds),
    }
    return {
        "schema": 2,
        "name": "tree-search",
        "size": "tiny",
        "command": "unspoken run tree-search",
        "recipe": {
            "name": "tree-search",
            "size": "tiny",
            "summary": "By hand.",
            "task": {"kind": "tree_search", "depth": depth, "targets": 1},
            "stages": stages,
        },
        "seeds": list(range(seeds)),
        "problems": 200,
        "baseline": "coupled",
        "systems": systems,
        "tests": {"test": {name: {"exact_match": entry["exact_match"]} for name, entry in systems.items()}},
        "differences": {f"{name} - coupled": better for name in ("jepa-reasoner", NEAREST)},
        "probes": {
            "controls": {
                "jepa-reasoner": {
                    name: {"exact_match": _rate(0.0, seeds), "difference": lost, "symbol_accuracy": 0.07}
                    for name in ("zero", "noise", "swap")
                }
            },
            "steps": {NEAREST: _steps(depth, seeds)},
            "mixture": _mixtures([NEAREST], depth, seeds),
            "resampled_answers": {
                "jepa-reasoner": {
                    "talker_seeds": 5,
                    "temperature": 20.0,
                    "problems": 200,
                    "answers_changed": 0.99,
                    "latents_identical": True,
                }
            },
            "trees": {
                "examples": [_example(depth)],
                "plane": {
                    "explained": [0.17, 0.14],
                    "names": {name: [index % 4 - 1.5, index // 4 - 1.5] for index, name in enumerate(NAMES)},
                    "predictions": [{"at": [0.1, 0.2], "name": "A"}, {"at": [-0.5, 0.5], "name": "O"}],
                },
            },
        },
        "training": [
            {"seed": seed, "stages": {stage["name"]: _curve(mixing=stage["name"] == "sst") for stage in stages}}
            for seed in range(seeds)
        ],
    }


def sweep() -> Results:
    """A run whose last stages are Reasoners alone: no Talker, no baseline, nothing to control."""
    results = complete(seeds=2)
    names = ("sst_k1", "sst_k4")
    results["probes"] = {"steps": dict.fromkeys(names, _steps(3, 2)), "mixture": _mixtures(names, 3, 2)}
    _replace_systems(results, dict.fromkeys(names, _system(0.5, 4.0, "latent", 2)))
    for entry in results["training"]:
        entry["stages"] = {"pretrain": _curve()} | {name: _curve(mixing=True) for name in names}
    return results


def ambiguous() -> Results:
    """A run in which several leaves may be meant, so that the odds of every node are known."""
    results = complete()
    results["recipe"]["task"]["targets"] = 2
    keys = ("distance", "uniform_distance", "entropy", "true_entropy", "largest", "true_largest", "outside")
    calibration = {
        "forced": {
            "error": _mean(0.03, 1),
            "error_steps": _mean([0.03, 0.03], 1),
            "uniform_error": _mean(0.35, 1),
        },
        "rollout": {key: _mean([0.1, 0.2], 1) for key in keys},
        "valid_routes": _mean(0.9, 1),
        "points": [
            {"truth": truth, "mean": truth, "low": truth / 2, "high": (1 + truth) / 2, "count": 10.0}
            for truth in (0.0, 0.5, 1.0)
        ],
    }
    results["probes"] = {
        "steps": {"sst": _steps(3, 1)},
        "mixture": _mixtures(["sst"], 3, 1),
        "calibration": {"sst": calibration},
    }
    _replace_systems(results, {"sst": _system(0.5, 4.0, "latent", 1)})
    return results


def _replace_systems(results: Results, systems: Results) -> None:
    """Systems that are compared with nothing."""
    tests = {"test": {name: {"exact_match": entry["exact_match"]} for name, entry in systems.items()}}
    results |= {"systems": systems, "tests": tests, "baseline": None, "differences": {}}
