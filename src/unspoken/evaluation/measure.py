"""Measures finished seeds and writes one small JSON file that every table and figure is made from.

Layout (``schema`` 1): ``seeds``; ``problems``; ``systems`` (name -> ``exact_match`` with interval, ``ended``,
``cost``); ``outcomes`` (`unspoken.evaluation.outcomes`); ``differences`` (paired tests against the coupled baseline);
``controls`` (name -> rate, of Reasoner and Talker); ``inside`` (system -> ``steps`` and ``mixture``, each for rollout
and teacher forcing, and ``calibration`` where the odds are known); ``reference`` levels of the sibling-plane rank;
``containment``; ``training`` (a curve for each stage of each seed); ``pca`` and ``examples`` of the first seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unspoken.analysis.calibration import forced_calibration, rollout_calibration, valid_routes
from unspoken.analysis.mixture import Siblings, all_coefficients, measure, name_rows, reference_levels, siblings
from unspoken.chain import LatentChain
from unspoken.evaluation.answering import Graded, answer_trees
from unspoken.evaluation.controls import CONTROLS
from unspoken.evaluation.cost import tree_cost
from unspoken.evaluation.curves import curve
from unspoken.evaluation.outcomes import COUPLED, compared, fingerprint_of, outcomes_of
from unspoken.evaluation.seeds import SeedModels, named_systems
from unspoken.evaluation.significance import Outcomes, paired_difference, rate
from unspoken.methods.loading import load_model
from unspoken.placement import CPU, moved
from unspoken.reasoning.engine import RowTargets
from unspoken.reasoning.picking import Sampler
from unspoken.reasoning.system import System
from unspoken.tasks import TreeProblems, TreeSearchTask
from unspoken.tasks.tree_search import FIRST_LETTER, LETTERS


@torch.no_grad()
def forced_latents(system: System, task: TreeSearchTask, problems: TreeProblems) -> Tensor:
    """Teacher-forced latents ``[B, depth + 1, D]`` of the answer positions."""
    assert system.targets is not None
    ids, device = task.rows(problems)["input_ids"], system.model.device
    parts = [system.targets.read(moved(part, device))[:, task.prompt_length - 1 : -1] for part in ids.split(500)]
    return moved(torch.cat(parts), CPU)


def containment(system: System, task: TreeSearchTask, problems: TreeProblems) -> dict[str, Any]:
    """Change every seed of the Talker: the answer may change, the chain must stay the same to the last bit."""
    prompts = task.prompts(problems)[0]
    samplers = [Sampler(20.0, torch.Generator().manual_seed(seed)) for seed in range(5)]
    answers = [system.respond(prompts, sample=sampler) for sampler in samplers]
    first, *others = answers
    changed = [(first.tokens != other.tokens).any(dim=1).double().mean() for other in others]
    return {
        "talker_seeds": len(answers),
        "temperature": 20.0,
        "problems": len(problems),
        "answers_changed": float(torch.stack(changed).mean()),
        "latents_identical": all(torch.equal(first.chain.latents, other.chain.latents) for other in others),
    }


def _step_accuracy(tokens: Tensor, answers: Tensor) -> dict[str, list[float]]:
    """Accuracy of each step on its own, and of everything up to it."""
    right = tokens[:, : answers.shape[1]] == answers
    return {
        "step": right.double().mean(dim=0).tolist(),
        "up_to": right.cumprod(dim=1).double().mean(dim=0).tolist(),
    }


def _mixture(latents: Tensor, targets: RowTargets, expected: Siblings, depth: int) -> dict[str, object]:
    return measure(latents[:, 1:depth], targets.target_table, expected).summary()


def _pad(latents: Tensor, steps: int) -> Tensor:
    return torch.nn.functional.pad(latents, (0, 0, 0, max(0, steps - latents.shape[1])))


def _average(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds of every number and list of numbers, with the seeds' own values beside."""
    return {
        key: {"mean": np.mean([entry[key] for entry in entries], axis=0).tolist(), "seeds": [e[key] for e in entries]}
        for key in entries[0]
    }


def _calibration(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds; the points of the figure belong to the same true values in every seed."""
    readings = [entry["calibration"] for entry in entries]
    points = [reading["forced"].pop("points") for reading in readings]
    return {
        "forced": _average([reading["forced"] for reading in readings]),
        "rollout": _average([reading["rollout"] for reading in readings]),
        "valid_routes": _average([{"share": reading["valid_routes"]} for reading in readings])["share"],
        "points": [
            {key: float(np.mean([seed[index][key] for seed in points])) for key in point}
            for index, point in enumerate(points[0])
        ],
    }


def _example(
    task: TreeSearchTask, problems: TreeProblems, row: int, answers: Graded, targets: RowTargets, kind: str
) -> dict[str, Any]:
    """One problem with the coefficients of each latent over all names, for drawing."""
    steps = task.config.depth
    latents = _pad(answers.chain.latents, steps)[row, :steps]
    coefficients = all_coefficients(latents, targets.target_table)
    names = [LETTERS[token - FIRST_LETTER] for token in problems.names_BM[row]]
    return {
        "kind": kind,
        "heap": names,
        "route": [names[node] for node in task.route_nodes(problems.leaf_B)[row]],
        "spoken": task.words(answers.tokens[row]),
        "correct": bool(answers.correct[row]),
        "coefficients": [
            {LETTERS[index]: round(float(step[FIRST_LETTER + index]), 4) for index in range(len(LETTERS))}
            for step in coefficients
        ],
    }


def _examples(
    task: TreeSearchTask, problems: TreeProblems, answers: Graded, targets: RowTargets, expected: Siblings
) -> list[dict[str, Any]]:
    steps = task.config.depth
    mixture = measure(_pad(answers.chain.latents, steps)[:, 1:steps], targets.target_table, expected)
    gap = (mixture.right - mixture.other).min(dim=1).values
    picks: list[tuple[str, int]] = []
    right, wrong = torch.where(answers.correct)[0], torch.where(~answers.correct)[0]
    if len(right):
        picks.append(("right", int(right[0])))
        picks.append(("most uncertain", int(right[gap[right].argmin()])))
    picks += [("wrong", int(row)) for row in wrong[:2]]
    return [_example(task, problems, row, answers, targets, kind) for kind, row in picks]


def _pca(latents: Tensor, answers: Tensor, table: Tensor) -> dict[str, Any]:
    """First two principal components of the name rows, and the predictions of inner nodes in the same axes."""
    rows = moved(name_rows(table), latents.device)
    points = latents.reshape(-1, latents.shape[-1])
    both = torch.cat([rows, points])
    centre = both.mean(dim=0)
    _, spread, axes = torch.linalg.svd(both - centre, full_matrices=False)
    explained = (spread**2 / (spread**2).sum())[:2]
    return {
        "explained": explained.tolist(),
        "names": {
            LETTERS[i]: [round(v, 4) for v in ((rows[i] - centre) @ axes[:2].T).tolist()] for i in range(len(rows))
        },
        "predictions": [
            {
                "at": [round(v, 4) for v in ((point - centre) @ axes[:2].T).tolist()],
                "name": LETTERS[int(name) - FIRST_LETTER],
            }
            for point, name in zip(points, answers.reshape(-1), strict=True)
        ],
    }


def _inspect(system: System, given: Graded, task: TreeSearchTask, test: TreeProblems) -> dict[str, Any]:
    """Steps, mixture and, where the odds are known, calibration of one Reasoner."""
    targets = system.targets
    assert targets is not None
    depth = task.config.depth
    expected, right = siblings(task, test), task.answers(test)
    latents = {"rollout": _pad(given.chain.latents, depth + 1), "forced": forced_latents(system, task, test)}
    # A chain that stopped early has no latent to take apart: it counts as wrong, not as unmixed.
    complete = given.chain.lengths >= depth
    if not complete.any():  # there must be something to average: the missing latents are zeros, which mix nothing
        complete = torch.ones_like(complete)
    found: dict[str, Any] = {"steps": {}, "mixture": {}}
    for kind, values in latents.items():
        found["steps"][kind] = _step_accuracy(targets.nearest_row(values), right)
        found["mixture"][kind] = _mixture(values[complete], targets, expected.select(complete), depth)
    if task.config.targets != 1:
        below, table = slice(1, depth), targets.target_table
        found["calibration"] = {
            "forced": forced_calibration(latents["forced"][:, below], table, task, test),
            "rollout": rollout_calibration(latents["rollout"][:, below], table, task, test),
            "valid_routes": float(valid_routes(given.tokens, task, test).double().mean()),
        }
    return found


def _controls(
    system: System, chain: LatentChain, task: TreeSearchTask, test: TreeProblems, seed: int
) -> dict[str, dict[str, Any]]:
    """Outcomes and accuracy on the names below the root for every causal control."""
    right, found = task.answers(test), {}
    prompts = task.prompts(test)[0]
    for name, control in CONTROLS.items():
        tokens = system.respond(prompts, chain=control(chain, torch.Generator().manual_seed(seed))).tokens
        below = slice(1, min(tokens.shape[1], task.config.depth))
        found[name] = {
            "outcomes": task.grade(tokens, test).correct.numpy().astype(np.float64),
            "symbols": float((tokens[:, below] == right[:, below]).double().mean()),
        }
    return found


def _pictures(system: System, given: Graded, task: TreeSearchTask, test: TreeProblems) -> dict[str, Any]:
    """What is shown of the first seed alone: containment, examples, and the plane of its latents."""
    assert system.targets is not None
    inner = slice(1, task.config.depth - 1)
    return {
        "containment": containment(system, task, task.sample("test", np.arange(min(200, len(test))))),
        "examples": _examples(task, test, given, system.targets, siblings(task, test)),
        "pca": _pca(
            _pad(given.chain.latents, task.config.depth)[:150, inner],
            task.answers(test)[:150, inner],
            system.targets.target_table,
        ),
    }


def evaluate(
    task: TreeSearchTask,
    seeds: list[SeedModels],
    *,
    problems: int,
    batch_size: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure every final stage on the test problems, once.

    A Reasoner with its Talker is also read out without the Talker ("nearest row"). Where a share of the problems is
    made certain, to learn from, none is here.

    Args:
        task: of the recipe.
        seeds: finished folders.
        problems: number of test problems, the same for all seeds and systems.
        batch_size: problems answered at once.
        say: told what is being done.

    Returns:
        The content described at the top of this file, without recipe and command.
    """
    task = dataclasses.replace(task.config, certain=0.0).build()
    test = task.sample("test", np.arange(problems))
    timed = task.sample("test", np.arange(min(500, problems)))
    outcomes: dict[str, list[Outcomes]] = {}
    ended: dict[str, list[float]] = {}
    inside: dict[str, list[dict[str, Any]]] = {}
    controls: list[dict[str, dict[str, Any]]] = []
    result: dict[str, Any] = {"schema": 1, "seeds": [entry.seed for entry in seeds], "problems": problems}
    result |= {"systems": {}, "containment": None, "examples": [], "pca": None}
    for entry in seeds:
        for stage, folder in entry.final.items():
            say(f"seed {entry.seed}  {stage}: {problems} test problems")
            model = load_model(folder, device=entry.device)
            for system in named_systems(model, stage, 2 * task.answer_length):
                given = answer_trees(system, task, test, batch_size)
                outcomes.setdefault(system.name, []).append(given.correct.numpy().astype(np.float64))
                ended.setdefault(system.name, []).append(float((given.chain.stop == 0).double().mean()))
                if entry is seeds[0]:
                    spent = tree_cost(system, task, timed, batch_size=batch_size)
                    result["systems"][system.name] = {"cost": dataclasses.asdict(spent)}
                if system.has_talker:
                    controls.append(_controls(system, given.chain, task, test, entry.seed))
                    result |= _pictures(system, given, task, test) if entry is seeds[0] else {}
                elif system.targets is not None:
                    inside.setdefault(system.name, []).append(_inspect(system, given, task, test))
    stacked = {name: np.stack(values) for name, values in outcomes.items()}
    for name, values in stacked.items():
        result["systems"][name] |= {
            "exact_match": dataclasses.asdict(rate(values)),
            "ended": float(np.mean(ended[name])),
        }
    result["differences"] = {
        f"{name} - {COUPLED}": dataclasses.asdict(paired_difference(values, stacked[COUPLED]))
        for name, values in stacked.items()
        if COUPLED in stacked and name != COUPLED
    }
    # The tokens of prompt and right answer say all there is to know of a problem.
    asked = fingerprint_of(row.tobytes() for row in task.rows(test)["input_ids"].numpy())
    spent_by = {name: compared(system["cost"]) for name, system in result["systems"].items()}
    result["outcomes"] = {"test": outcomes_of(asked, outcomes, spent_by)}
    result["controls"] = {
        name: {
            "exact_match": dataclasses.asdict(rate(np.stack([entry[name]["outcomes"] for entry in controls]))),
            "symbol_accuracy": float(np.mean([entry[name]["symbols"] for entry in controls])),
        }
        for name in (CONTROLS if controls else ())
    }
    result["inside"] = {
        name: {
            topic: {kind: _average([entry[topic][kind] for entry in entries]) for kind in ("rollout", "forced")}
            for topic in ("steps", "mixture")
        }
        | ({"calibration": _calibration(entries)} if "calibration" in entries[0] else {})
        for name, entries in inside.items()
    }
    result["reference"] = reference_levels(len(LETTERS))
    result["training"] = [
        {"seed": entry.seed, "stages": {name: curve(folder) for name, folder in entry.stages.items()}}
        for entry in seeds
    ]
    return result
