"""A results file of a run on reasoning problems, made up: the shape of a real one, with numbers that fit together."""

from __future__ import annotations

import math
from typing import Any

Results = dict[str, Any]

SEEDS = (0, 1, 2)
PROBLEMS = 1000
BASELINE = "cot"
# Exact match on the first test set, steps of chain, markers and answer, and how much a control takes away.
SYSTEMS: dict[str, tuple[float, tuple[float, int, float]]] = {
    "cot": (0.6127, (24.61, 6, 4.0)),
    "answer_only": (0.1840, (0.0, 6, 4.02)),
    "latent_sft_2": (0.5983, (12.44, 6, 4.0)),
    "latent_sft_4": (0.5417, (6.38, 6, 4.01)),
    "hidden_2": (0.3023, (13.1, 6, 4.0)),
    "no_induction": (0.5510, (12.52, 6, 4.0)),
    "soft thinking": (0.5893, (24.9, 6, 4.0)),
}
KINDS = {"cot": "tokens", "answer_only": None, "hidden_2": "hidden"}  # of chains; the others are superpositions
TESTS = {"gsm8k-aug": 1.0, "gsm-hard": 0.21, "svamp": 1.04, "multiarith": 1.35}
CONTROLS = {
    "swap": 0.02,
    "shuffle": 0.55,
    "truncate": 0.34,
    "zero": 0.18,
    "mean": 0.24,
    "no chain": 0.19,
    "random mixtures": 0.17,
    "forced answer": 0.99,
}
TOP = (1, 5, 10, 50, 100, 150, 200, 250, 300)


def rate(mean: float, problems: int = PROBLEMS) -> Results:
    seeds = [min(1.0, mean + shift) for shift in (-0.011, 0.004, 0.007)]
    low, high = max(0.0, mean - 0.021), min(1.0, mean + 0.021)
    return {"mean": mean, "low": low, "high": high, "seeds": seeds, "problems": problems}


def change(mean: float, spread: float = 0.024) -> Results:
    return {"mean": mean, "low": mean - spread, "high": mean + spread, "p": 0.0004 if abs(mean) > spread else 0.31}


def _cost(steps: tuple[float, int, float]) -> Results:
    return {
        "latent_steps": steps[0],
        "markers": float(steps[1]),
        "spoken_tokens": steps[2],
        "sequential_passes": sum(steps),
        "flops": 61.2e6 * (40 + sum(steps)),
        "seconds_batched": 0.0021 * sum(steps),
        "seconds_alone": 0.0134 * sum(steps),
        "parameters": 30_612_480,
    }


def _controls(own: float, kept: dict[str, float]) -> Results:
    return {
        name: {"exact_match": rate(own * left), "difference": change(own * left - own)} for name, left in kept.items()
    }


def _superposition(rate_of: int, *, parallel: bool, level: float) -> Results:
    """Rates that rise towards the tokens a latent, and an entropy that falls along the chain."""
    steps = 24 // rate_of
    points = [1.0 + 2.9 * math.sin(0.5 * math.pi * (index + 0.5) / 240) for index in range(240)]
    n_eff = sum(points) / len(points)
    return {
        "ecr": {str(most): rate_of * most / (most + 2.5 * (rate_of - 0.9)) for most in TOP},
        "ecr_left_out": 1.333 if rate_of > 2 else 0.0,
        "entropy": {
            "mean": [level * (1 - 0.035 * step) + 0.06 * math.sin(step) for step in range(steps)],
            "count": [PROBLEMS if step < steps // 2 else PROBLEMS - 80 * (step - steps // 2) for step in range(steps)],
        },
        "top1": 0.98 - 0.11 * level,
        "exit_rate": 0.994,
        "parallelism": {
            "questions": float(len(points)),
            "chains": 4.21,
            "n_eff": n_eff,
            "n_naive": 3.02,
            "ratio": n_eff / 3.02,
            "n_eff_v1": 2.71,
            "top2": 0.634,
            "top2_v1": 0.602,
            "points": points,
        }
        if parallel
        else None,
    }


def _step(entropy: float, tokens: dict[str, float]) -> Results:
    return {"tokens": [[text, weight] for text, weight in tokens.items()], "entropy": entropy}


def _chains() -> list[Results]:
    pears = (
        "Ann has 5 pears. Bo has 3 more pears than Ann. Cy has 2 times as many pears as Bo. "
        "How many pears do Ann and Cy have together?"
    )
    coins = (
        "Max has 48 coins. Sue owns 9 coins less than Max does. "
        "How many coins must Sue find to have twice as many as Max?"
    )
    by_two = ["<<5", "+3", "=8", ">> <<", "8*", "2=", "16>>", "<<5", "+16", "=21", ">>"]
    by_four = ["<<5+3", "=8>> <<", "8*2=", "16>> <<5", "+16=21", ">>"]
    right = [
        _step(0.83, {"5": 0.61, "<<": 0.27, "3": 0.07, "2": 0.03, "8": 0.02}),
        _step(0.94, {"3": 0.55, "+": 0.31, "*": 0.08, "2": 0.04, "-": 0.02}),
        _step(0.52, {"8": 0.79, "=": 0.17, "6": 0.02, "10": 0.01, "7": 0.01}),
        _step(1.21, {">>": 0.41, "<<": 0.33, " ": 0.14, "8": 0.08, "5": 0.04}),
        _step(1.08, {"8": 0.52, "*": 0.29, "5": 0.13, "+": 0.05, "2": 0.01}),
        _step(0.71, {"2": 0.66, "=": 0.27, "3": 0.04, "5": 0.02, "16": 0.01}),
        _step(0.38, {"16": 0.88, ">>": 0.09, "10": 0.01, "18": 0.01, "14": 0.01}),
        _step(0.97, {"5": 0.49, "<<": 0.38, "8": 0.07, "16": 0.05, "3": 0.01}),
        _step(0.66, {"16": 0.72, "+": 0.22, "*": 0.03, "8": 0.02, "2": 0.01}),
        _step(0.24, {"21": 0.93, "=": 0.05, "24": 0.01, "13": 0.005, "11": 0.005}),
        _step(0.09, {">>": 0.98, "</think>": 0.02}),
    ]
    wide = [
        _step(1.62, {"5": 0.34, "3": 0.28, "+": 0.21, "<<": 0.12, "8": 0.05}),
        _step(1.31, {"8": 0.47, ">>": 0.22, "=": 0.17, "<<": 0.11, "2": 0.03}),
        _step(1.77, {"8": 0.29, "2": 0.27, "*": 0.22, "=": 0.14, "16": 0.08}),
        _step(1.55, {"16": 0.39, "5": 0.27, "<<": 0.16, ">>": 0.14, "+": 0.04}),
        _step(1.12, {"21": 0.55, "16": 0.26, "+": 0.12, "=": 0.06, "24": 0.01}),
    ]
    wrong = [
        _step(0.91, {"48": 0.58, "<<": 0.29, "9": 0.08, "39": 0.03, "40": 0.02}),
        _step(0.87, {"9": 0.63, "-": 0.25, "+": 0.08, "8": 0.02, "4": 0.02}),
        _step(1.44, {"39": 0.44, "57": 0.3, "=": 0.15, "41": 0.07, "38": 0.04}),
        _step(1.39, {">>": 0.37, "48": 0.35, "<<": 0.18, "39": 0.06, "2": 0.04}),
        _step(1.58, {"9": 0.36, "2": 0.31, "*": 0.18, "-": 0.11, "39": 0.04}),
        _step(1.02, {"87": 0.51, "57": 0.33, "=": 0.1, "39": 0.05, "96": 0.01}),
    ]
    endless = [
        _step(2.1 - 0.02 * step, {"48": 0.4, "39": 0.3, " coins": 0.15, "\n": 0.1, "9": 0.05}) for step in range(128)
    ]
    explicit = ["<<", "5", "+", "3", "=", "8", ">>", "<<", "8", "*", "2", "=", "16", ">>"]
    spoken = [_step(0.0, {text: 1.0}) for text in explicit]
    chunks = ["<<48", "-9", "=39", ">> <<", "48*", "2=", "96>>", "<<96", "-39", "=57", ">>"]
    common = {"right": (pears, "21", "\\boxed{21}", True), "wrong": (coins, "57", "\\boxed{87}", False)}

    def chain(system: str, kind: str, steps: list[Results], pieces: list[str]) -> Results:
        question, answer, response, correct = common[kind]
        found = {"system": system, "kind": kind, "question": question, "answer": answer, "response": response}
        return found | {"correct": correct, "steps": steps, "chunks": pieces}

    return [
        chain("latent_sft_2", "right", right, by_two),
        chain("latent_sft_2", "wrong", wrong, chunks),
        chain("latent_sft_4", "right", wide, by_four),
        chain("soft thinking", "wrong", endless, []),
        chain("cot", "right", spoken, explicit),
    ]


def _geometry() -> Results:
    def cloud(x: float, y: float, spread: float, count: int) -> list[list[float]]:
        angles = [2.399963 * index for index in range(count)]  # the golden angle: an even disc
        radii = [spread * math.sqrt((index + 0.5) / count) for index in range(count)]
        return [[x + r * math.cos(a), y + r * math.sin(a)] for r, a in zip(radii, angles, strict=True)]

    explicit = {
        "states": 4922.0,
        "embedding_norm": 0.982,
        "hidden_norm": 41.37,
        "frechet": 1684.2,
        "mmd": 0.8312,
        "cosine_mean": 0.0123,
        "cosine_sd": 0.0871,
        "embedding_rank": 231.4,
        "hidden_rank": 88.25,
    }
    plane = {
        "embeddings": cloud(-6, 0, 2, 300),
        "hidden": cloud(8, 1, 9, 300),
        "explained": [0.412, 0.153],
    }
    # The picture is of the first system alone.
    return {"cot": explicit | {"plane": plane}, "latent_sft_2": explicit | {"states": 2488.0, "hidden_norm": 20.685}}


def _samples() -> Results:
    """Each doubling of k finds a third of what was missed; a number that is no power of two was drawn."""

    def rates(own: float) -> Results:
        missed = 1 - 0.9 * own
        return {str(k): rate(1 - missed * (2 / 3) ** place) for place, k in enumerate((1, 2, 4, 6))}

    return {"draws": 6, "systems": {name: rates(SYSTEMS[name][0]) for name in ("cot", "latent_sft_2", "soft thinking")}}


def _curve(steps: int, best: float, *, free: bool) -> Results:
    """A stage's; where answers are free, their latents are counted."""
    at = [steps * index // 8 for index in range(9)]
    return {
        **({"latents": [12.0] * 9} if free else {}),
        "selected_step": at[-2],
        "steps": at,
        "exact_match": [best * (1 - math.exp(-index / 2)) for index in range(9)],
        "loss_steps": at[1:],
        "loss": [2.2 * math.exp(-index / 2.5) + 0.11 for index in range(8)],
        "seconds": 2.1 * steps,
    }


def _stages() -> list[Results]:
    line = {"kind": "stage1"}
    return [
        {"name": "cot", "start": None, "objective": {"kind": "next_token", "positions": "answer", "chain": "explicit"}},
        {
            "name": "answer_only",
            "start": None,
            "objective": {"kind": "next_token", "positions": "answer", "chain": "none"},
        },
        {"name": "encoder_2", "start": "cot", "objective": line | {"train": "encoder", "shape": {"rate": 2}}},
        {"name": "decoder_2", "start": "encoder_2", "objective": line | {"train": "decoder"}},
        {"name": "union_2", "start": "decoder_2", "objective": line | {"train": "union"}},
        {"name": "labels_2", "start": "union_2", "objective": {"kind": "labels", "rows": 20000}},
        *(
            {"name": name, "start": "labels_2", "objective": {"kind": "stage2", "ce_weight": 1.0}}
            for name in ("latent_sft_2", "latent_sft_4", "hidden_2", "no_induction")
        ),
    ]


def words_results() -> Results:
    """A new, complete dictionary."""
    own = {name: mean for name, (mean, _) in SYSTEMS.items()}
    # Hidden states have no weights that could stand on other tokens; they are replaced by noise.
    useless = {name: 0.99 for name in CONTROLS if name != "random mixtures"} | {"noise": 0.99}
    stages = _stages()
    return {
        "schema": 2,
        "name": "latent-sft",
        "size": "small",
        "command": "unspoken run latent-sft --size small --seeds 3",
        "recipe": {
            "name": "latent-sft",
            "size": "small",
            "summary": "Chains of superpositions against explicit chains.",
            "task": {"kind": "grade_school", "train": "train.jsonl"},
            "stages": stages,
        },
        "seeds": list(SEEDS),
        "problems": PROBLEMS,
        "baseline": BASELINE,
        "systems": {
            name: {
                "exact_match": rate(mean),
                "ended": 0.994,
                "cost": _cost(steps),
                "chain": KINDS.get(name, "superposition"),
            }
            for name, (mean, steps) in SYSTEMS.items()
        },
        "differences": {
            f"{name} - {BASELINE}": change(mean - own[BASELINE]) for name, mean in own.items() if name != BASELINE
        },
        "tests": {
            test: {name: {"exact_match": rate(min(0.99, mean * ease))} for name, mean in own.items()}
            for test, ease in TESTS.items()
        },
        "probes": {
            "controls": {
                "cot": _controls(own["cot"], CONTROLS),
                "latent_sft_2": _controls(own["latent_sft_2"], CONTROLS),
                "latent_sft_4": _controls(own["latent_sft_4"], CONTROLS | {"swap": 0.05, "forced answer": 0.6}),
                "hidden_2": _controls(own["hidden_2"], useless),
                "no_induction": _controls(own["no_induction"], CONTROLS | {"swap": 0.98, "mean": 0.98, "shuffle": 1.0}),
            },
            "superposition": {
                "cot": _superposition(1, parallel=False, level=0.3),
                "latent_sft_2": _superposition(2, parallel=True, level=1.3),
                "latent_sft_4": _superposition(4, parallel=True, level=1.9),
                "no_induction": _superposition(2, parallel=True, level=1.1),
                "soft thinking": _superposition(1, parallel=False, level=0.5),
            },
            "chains": {"examples": _chains(), "planes": {}},
            "geometry": _geometry(),
            "pass_at_k": _samples(),
        },
        "training": [
            {
                "seed": seed,
                "stages": {
                    # A stage that writes labels has no curve.
                    stage["name"]: _curve(4000, 0.6, free=stage["objective"]["kind"] != "stage1")
                    for stage in stages
                    if stage["objective"]["kind"] != "labels"
                },
            }
            for seed in SEEDS
        ],
    }
