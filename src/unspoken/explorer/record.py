"""The page as a file without a model: every answer that it can show is computed before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from unspoken.explorer.exploring import Explorer
from unspoken.explorer.opening import first_contents, task_of
from unspoken.explorer.page import render
from unspoken.runs import compression_rate, open_system
from unspoken.storage import write_text

# What the sliders of such a page stop at; numbers as JavaScript writes them, since they are looked up as text.
_WEIGHTS = (0, 0.25, 0.5, 0.75, 1)
_AMOUNTS = (0, 0.5, 1, 1.5, 2)
_POINTS = 21
_TOKENS = 3  # of a latent whose weights can be changed
_MOST = 8  # problems


def write_record(
    source: str | Path,
    target: Path,
    *,
    problems: int = 3,
    seed: int = 0,
    stage: str | None = None,
    reasoning: str | None = None,
    device: str | torch.device = "auto",
) -> None:
    """Write the explorer's page of a model as one file.

    Args:
        target: where to; replaced in one move.
        problems: the first so many test problems are in it.
        source, seed, stage, reasoning, device: see `unspoken.runs.open_system`.

    Raises:
        ValueError: there is no such model, it records no task to take problems from, or the number is out of range.
        OSError: the file cannot be written.
    """
    if not 2 <= problems <= _MOST:
        raise ValueError(f"problems is {problems}; a page has 2 to {_MOST}")
    system = open_system(source, reasoning, stage=stage, seed=seed, device=device)
    task, rate = task_of(source, seed, stage), compression_rate(source, seed, stage)
    explorer = Explorer(system, task=task, rate=rate)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, render({**first_contents(explorer), "frozen": recorded(explorer, problems)}))


def recorded(explorer: Explorer, problems: int) -> dict[str, Any]:
    """Every answer of a page: each single change of each chain, by the request as text; equal latents once.

    Raises:
        ValueError: the model records no task to take problems from.
    """
    places: dict[str, int] = {}
    about, chains, between = [], {}, {}
    for problem in range(problems):
        own = explorer.changed({"problem": problem})
        about.append({key: own[key] for key in ("question", "expected", "own", "tree")})
        for edits in [[], *([edit] for edit in _changes(own["steps"], problem, problems))]:
            with suppress(ValueError):  # a change that this chain does not allow; the page names what is missing
                state = explorer.changed({"problem": problem, "edits": edits})
                steps = [places.setdefault(json.dumps(step), len(places)) for step in state["steps"]]
                kept = {key: state[key] for key in ("text", "value", "changed", "correct", "cost", "stopped")}
                chains[_key(problem, edits)] = {**kept, "steps": steps}
        for other in range(problems):
            if other != problem:
                between[_key(problem, other)] = explorer.between(
                    {"problem": problem, "other": other, "points": _POINTS}
                )
    return {
        "problems": about,
        "chain": chains,
        "between": between,
        "steps": [json.loads(step) for step in places],
        "tokens": _TOKENS,
    }


def _key(*asked: Any) -> str:
    return json.dumps(asked, separators=(",", ":"), ensure_ascii=False)


def _changes(steps: list[dict[str, Any]], problem: int, problems: int) -> Iterator[dict[str, Any]]:
    """Each change of a chain that the page offers, with its keys in the page's order."""
    others = [other for other in range(problems) if other != problem]
    for step, reading in enumerate(steps):
        yield {"kind": "delete", "step": step}
        yield {"kind": "truncate", "steps": step + 1}
        for rest in ("write", "keep"):
            yield {"kind": "zero", "step": step, "rest": rest}
            for other in others:
                yield {"kind": "swap", "step": step, "problem": other, "rest": rest}
            for to in {max(step - 1, 0), min(step + 1, len(steps) - 1)} - {step}:
                yield {"kind": "move", "step": step, "to": to, "rest": rest}
            for amount in _AMOUNTS:
                yield {"kind": "noise", "step": step, "amount": amount, "rest": rest}
            for token, _ in reading["tokens"][:_TOKENS]:
                for weight in _WEIGHTS:
                    yield {"kind": "weigh", "step": step, "token": token, "weight": weight, "rest": rest}
    for other in others:
        for point in range(_POINTS):
            fraction = point / (_POINTS - 1)
            yield {"kind": "mix", "problem": other, "fraction": int(fraction) if fraction.is_integer() else fraction}
