"""A results file written by hand: small, complete, and free of any trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Import mode "importlib" leaves sys.path alone; the files that these tests share lie beside this one.
sys.path.insert(0, str(Path(__file__).parent))

from words_results import words_results

Results = dict[str, Any]
NAMES = "ABCDEFGHIJKLMNO"


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
    found = {key: _mean(value, seeds) for key, value in numbers.items()}
    found |= {key: _mean([value] * below, seeds) for key, value in lists.items()}
    return found | {"right_inner": _mean(0.97, seeds), "other_inner": _mean(0.04, seeds)}


def _inside(depth: int, seeds: int) -> Results:
    accuracy = {topic: _mean([0.98] * (depth + 1), seeds) for topic in ("step", "up_to")}
    return {
        "steps": {"rollout": accuracy, "forced": accuracy},
        "mixture": {kind: _mixture(depth, seeds) for kind in ("rollout", "forced")},
    }


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


def _complete(depth: int = 3, seeds: int = 1) -> Results:
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
    better = {"mean": 0.48, "low": 0.45, "high": 0.51, "p": 0.0002}
    return {
        "schema": 1,
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
        "systems": {
            "jepa-reasoner": {"cost": _cost(5.0), "exact_match": _rate(0.98, seeds), "ended": 1.0},
            "jepa-reasoner, nearest row": {"cost": _cost(4.0), "exact_match": _rate(0.98, seeds), "ended": 1.0},
            "coupled": {"cost": _cost(4.0), "exact_match": _rate(0.5, seeds), "ended": 1.0},
        },
        "differences": {
            "jepa-reasoner - coupled": better,
            "jepa-reasoner, nearest row - coupled": better,
        },
        "controls": {
            name: {"exact_match": _rate(0.0, seeds), "symbol_accuracy": 0.07} for name in ("zero", "noise", "swap")
        },
        "inside": {"jepa-reasoner, nearest row": _inside(depth, seeds)},
        "reference": {"no_sibling": 1 / 14, "true_mixture": 1 / 105},
        "containment": {
            "talker_seeds": 5,
            "temperature": 20.0,
            "problems": 200,
            "answers_changed": 0.99,
            "latents_identical": True,
        },
        "pca": {
            "explained": [0.17, 0.14],
            "names": {name: [index % 4 - 1.5, index // 4 - 1.5] for index, name in enumerate(NAMES)},
            "predictions": [{"at": [0.1, 0.2], "name": "A"}, {"at": [-0.5, 0.5], "name": "O"}],
        },
        "examples": [_example(depth)],
        "training": [
            {"seed": seed, "stages": {stage["name"]: _curve(mixing=stage["name"] == "sst") for stage in stages}}
            for seed in range(seeds)
        ],
    }


@pytest.fixture
def complete() -> Callable[..., Results]:
    """Makes a results file; ``depth`` and ``seeds`` may be given."""
    return _complete


@pytest.fixture
def sweep() -> Results:
    """A run whose last stages are Reasoners alone: no Talker, no baseline, nothing to control."""
    results = _complete(seeds=2)
    names = ("sst_k1", "sst_k4")
    one, inside = results["systems"]["coupled"], results["inside"]["jepa-reasoner, nearest row"]
    results["systems"] = dict.fromkeys(names, one)
    results["inside"] = dict.fromkeys(names, inside)
    results |= {"differences": {}, "controls": {}, "containment": None, "examples": [], "pca": None}
    for entry in results["training"]:
        entry["stages"] = {"pretrain": _curve()} | {name: _curve(mixing=True) for name in names}
    return results


@pytest.fixture
def ambiguous() -> Results:
    """A run in which several leaves may be meant, so that the odds of every node are known."""
    results = _complete()
    results["recipe"]["task"]["targets"] = 2
    inside = results["inside"]["jepa-reasoner, nearest row"]
    keys = ("distance", "uniform_distance", "entropy", "true_entropy", "largest", "true_largest", "outside")
    inside["calibration"] = {
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
    results["systems"] = {"sst": results["systems"]["coupled"]}
    results["inside"] = {"sst": inside}
    results |= {"differences": {}, "controls": {}, "containment": None, "examples": [], "pca": None}
    return results


@pytest.fixture
def word_run() -> Results:
    """A run on word problems, with everything that can be measured on them."""
    return words_results()
