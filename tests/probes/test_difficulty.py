"""Accuracy by the number of steps, on planted answers that are right up to two steps."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system

from unspoken.chain import LatentChain
from unspoken.draw.section import print_section
from unspoken.evaluation.answering import Graded
from unspoken.probes.difficulty import DifficultyProbe
from unspoken.probes.probe import View
from unspoken.tasks.arithmetic import ArithmeticConfig

PROBLEMS = TASK.sample("test", range(60))
STEPS = [len(problem.steps) for problem in PROBLEMS]


def view(most: int, **changes: Any) -> View:
    """A system that answers problems of at most ``most`` steps rightly."""
    correct = torch.tensor([steps <= most for steps in STEPS])
    nothing = torch.zeros(len(STEPS), 0, 16)
    chain = LatentChain(latents=nothing, mask=nothing[..., 0].bool(), stop=torch.zeros(len(STEPS)).long())
    answers = Graded(chain=chain, tokens=torch.zeros(len(STEPS), 1).long(), lengths=correct.long(), correct=correct)
    settings = {"problems": PROBLEMS, "answers": answers, "prompt_format": PROMPT_FORMAT, "batch_size": 7, "seed": 0}
    return View(system=tiny_word_system(), task=TASK, **(settings | changes))


def test_a_system_that_manages_two_steps_is_seen_to_do_so() -> None:
    assert set(STEPS) == {1, 2, 3}
    probe = DifficultyProbe()
    readings = {"short": [probe.measure(view(2)), probe.measure(view(1))], "all": [probe.measure(view(3))] * 2}
    summary = probe.summarise(readings, baseline=None)
    assert summary["problems"] == {str(number): STEPS.count(number) for number in (1, 2, 3)}
    means = {name: [entry["mean"] for entry in rates.values()] for name, rates in summary["systems"].items()}
    assert means == {"short": [1.0, 0.5, 0.0], "all": [1.0, 1.0, 1.0]}
    results = {"probes": {"difficulty": json.loads(json.dumps(summary))}, "systems": {}, "baseline": None}
    results["systems"] = {name: {"chain": "tokens"} for name in readings}
    section = probe.section(results)
    assert section is not None
    with (console := Console(width=100)).capture() as captured:
        print_section(section, console)
    assert "50.00 %" in captured.get()


@pytest.mark.parametrize(
    ("steps", "measured"), [([1, 2], True), ([0, 1, 2], True), ([2, 2], False), ([0, 2], False), ([0, 0], False)]
)
def test_two_known_lengths_are_needed(steps: list[int], measured: bool) -> None:
    questions = [SimpleNamespace(steps=[None] * number) for number in steps]
    looked_at: Any = SimpleNamespace(questions=questions, graded=SimpleNamespace(outcomes=np.ones(len(steps))))
    reading = DifficultyProbe().measure(looked_at)
    assert (reading is not None) == measured
    if reading is not None:
        summary = DifficultyProbe().summarise({"it": [reading]}, baseline=None)
        assert summary["problems"] == {"1": 1, "2": 1}, "those whose chain is not known are left out"


def test_problems_of_one_length_say_nothing() -> None:
    task = ArithmeticConfig(steps=(2,), largest=20).build()
    problems = task.sample("test", range(60))
    assert DifficultyProbe().measure(replace(view(2), task=task, problems=problems)) is None
    assert DifficultyProbe().section({"probes": {}}) is None
