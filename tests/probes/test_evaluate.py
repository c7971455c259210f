"""The loop: two seeds of two stages answer every test set once, every probe looks at them, and results are complete."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_words import PROMPT_FORMAT, TASK, saved, table_rows, tiny_word_system

from unspoken.chain import StopReason
from unspoken.evaluation.answering import Graded, answer
from unspoken.evaluation.outcomes import unpacked
from unspoken.evaluation.seeds import SeedModels
from unspoken.probes import evaluate as loop
from unspoken.probes.catalogue import default_probes
from unspoken.probes.evaluate import EvaluationSettings, evaluate
from unspoken.probes.probe import Probe, View
from unspoken.reasoning.system import System
from unspoken.tasks.task import Problems, Task

SYSTEMS = ["latent", "cot", "soft thinking"]
SECONDS = {"seconds_batched": 0.1, "seconds_alone": 0.2}


@dataclass(frozen=True, kw_only=True)
class TwoSets(EvaluationSettings):
    """Two test sets of different size."""

    def tests(self) -> dict[str, loop.TestSet]:
        return {
            "near": loop.TestSet(TASK.sample("test", np.arange(self.problems))),
            "far": loop.TestSet(TASK.sample("test", np.arange(20, 23))),
        }


class Watch(Probe):
    """Sees what probes are shown of the systems that have one name."""

    key = "watch"

    def __init__(self) -> None:
        self.views: list[View] = []

    def applies(self, system: System, task: Task) -> bool:
        assert task is TASK
        return system.name != "latent"

    def measure(self, view: View) -> int | None:
        self.views.append(view)
        return None if view.system.name == "cot" and view.first_seed else view.seed

    def summarise(self, readings: Mapping[str, Sequence[int]], *, baseline: str | None) -> dict[str, Any]:
        return {"baseline": baseline, "readings": {name: list(seeds) for name, seeds in readings.items()}}


class Silent(Probe):
    """Measures and keeps nothing of it."""

    key = "silent"

    def measure(self, view: View) -> bool:
        return True


ASKED = TwoSets(task=TASK, prompt_format=PROMPT_FORMAT, problems=5, batch_size=4, max_answer=3, baseline="cot")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[SeedModels]:
    folder, every = tmp_path_factory.mktemp("seeds"), []
    for seed in (3, 4):
        stages = {"latent": tiny_word_system("llama", feed="hidden"), "cot": tiny_word_system(top_k=1, max_latents=4)}
        with torch.no_grad():
            for system in stages.values():
                table_rows(system).mul_(seed / 3)
        folders = {name: saved(system, folder / f"{name}-{seed}") for name, system in stages.items()}
        every.append(SeedModels(seed=seed, measured=folders, stages={}))
    return every


@dataclass
class Run:
    results: dict[str, Any]
    watch: Watch
    answered: Counter[tuple[str, int]]
    timed: Counter[tuple[int, bool]]


@pytest.fixture(scope="module")
def run(seeds: list[SeedModels]) -> Run:
    """What the loop makes of these seeds, and what it asked on the way."""
    answered: Counter[tuple[str, int]] = Counter()
    timed: Counter[tuple[int, bool]] = Counter()
    watch = Watch()

    def counted(system: System, task: Task, problems: Problems, *rest: Any, **settings: Any) -> Graded:
        answered[system.name, len(problems)] += 1
        return answer(system, task, problems, *rest, **settings)

    def seconds(_respond: Any, problems: Problems, batch_size: int, *, alone: bool) -> dict[str, float]:
        assert batch_size == ASKED.batch_size
        timed[len(problems), alone] += 1
        return SECONDS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "answer", counted)
        patch.setattr(loop, "seconds", seconds)
        results = evaluate(seeds, ASKED, [*default_probes(), watch, Silent()], log=lambda _: None)
    return Run(results, watch, answered, timed)


def test_every_key_is_there_and_every_number_is_one(run: Run) -> None:
    results = json.loads(json.dumps(run.results, allow_nan=False))
    assert list(results) == [
        "schema",
        "seeds",
        "problems",
        "baseline",
        "systems",
        "tests",
        "differences",
        "outcomes",
        "probes",
        "training",
    ]
    assert (results["schema"], results["seeds"], results["problems"], results["baseline"]) == (3, [3, 4], 5, "cot")
    assert list(results["systems"]) == SYSTEMS
    costs = (
        "latent_steps",
        "markers",
        "spoken_tokens",
        "sequential_passes",
        "latent_positions",
        "flops",
        *SECONDS,
        "parameters",
    )
    for entry in results["systems"].values():
        assert list(entry) == ["exact_match", "ended", "cost", "chain"]
        assert set(entry["cost"]) == set(costs)
        assert len(entry["exact_match"]["seeds"]) == 2
        assert entry["cost"]["parameters"] > 0
    chains = {name: entry["chain"] for name, entry in results["systems"].items()}
    assert chains == {"latent": "hidden", "cot": "tokens", "soft thinking": "superposition"}
    assert {test: list(rates) for test, rates in results["tests"].items()} == {"near": SYSTEMS, "far": SYSTEMS}
    assert list(results["differences"]) == ["latent - cot", "soft thinking - cot"]
    assert results["training"] == [{"seed": 3, "stages": {}}, {"seed": 4, "stages": {}}]


def test_every_problem_is_answered_once_and_only_the_first_seed_is_timed(run: Run) -> None:
    assert run.answered == {(name, count): 2 for name in SYSTEMS for count in (5, 3)}
    assert run.timed == {(5, True): 3, (3, False): 3}


def test_outcomes_are_kept_problem_by_problem(run: Run) -> None:
    outcomes = run.results["outcomes"]
    assert {test: kept["problems"] for test, kept in outcomes.items()} == {"near": 5, "far": 3}
    assert outcomes["near"]["fingerprint"] != outcomes["far"]["fingerprint"]
    for test, kept in outcomes.items():
        for name, rates in run.results["tests"][test].items():
            means = [unpacked(text, kept["problems"]).mean() for text in kept["right"][name]]
            assert means == pytest.approx(rates["exact_match"]["seeds"])
            assert kept["cost"][name]["seconds"] == SECONDS["seconds_batched"]


def test_probes_see_each_system_of_each_seed_with_its_answers(run: Run) -> None:
    shown = [(view.seed, view.system.name, view.first_seed, view.as_trained) for view in run.watch.views]
    assert shown == [
        (3, "cot", True, True),
        (3, "soft thinking", True, False),
        (4, "cot", False, True),
        (4, "soft thinking", False, False),
    ]
    assert all(len(view.problems) == len(view.graded.tokens) == 5 for view in run.watch.views)
    # What measures nothing of a system has no reading of it, and what keeps nothing has no summary.
    assert run.results["probes"]["watch"] == {"baseline": "cot", "readings": {"cot": [4], "soft thinking": [3, 4]}}
    assert "silent" not in run.results["probes"]
    assert {"controls", "forced_tokens", "superposition", "chains"} <= run.results["probes"].keys()
    assert not {"geometry", "pass_at_k", "steps", "symbols", "corruption"} & run.results["probes"].keys()


def test_a_baseline_that_was_not_measured_compares_nothing(seeds: list[SeedModels]) -> None:
    latent = SeedModels(seed=3, measured={"latent": Path(seeds[0].measured["latent"])}, stages={})
    few = EvaluationSettings(
        task=TASK, prompt_format=PROMPT_FORMAT, problems=2, batch_size=2, max_answer=3, baseline="cot"
    )
    lines: list[str] = []
    results = evaluate([latent], few, [], log=lines.append)
    assert (results["baseline"], results["differences"], results["probes"]) == (None, {}, {})
    assert list(results["tests"]) == ["test"]
    assert lines == ["seed 3  latent: 2 problems of test"]


def test_curves_are_kept_of_all_seeds_and_chains_along_them_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def curve(at: Path, *, chains: bool) -> dict[str, Any]:
        return {"name": at.name, "chains": chains}

    monkeypatch.setattr(loop, "curve", curve)
    monkeypatch.setattr(loop, "has_curve", lambda at: at.name != "labels")
    stages = {"long": Path("long"), "labels": Path("labels")}
    models = [SeedModels(seed=seed, measured={}, stages=stages) for seed in (3, 4)]
    few = EvaluationSettings(task=TASK, prompt_format=PROMPT_FORMAT, problems=2, batch_size=2, max_answer=3)
    assert evaluate(models, few, [], log=lambda _: None)["training"] == [
        {"seed": 3, "stages": {"long": {"name": "long", "chains": True}}},
        {"seed": 4, "stages": {"long": {"name": "long", "chains": False}}},
    ]


@dataclass(frozen=True, kw_only=True)
class Planted(EvaluationSettings):
    """Every chain stopped for a reason of the test's."""

    reasons: tuple[StopReason, ...]

    def answer(self, system: System, problems: Problems, batch_size: int) -> Graded | None:
        given = super().answer(system, problems, batch_size)
        assert given is not None
        return replace(given, chain=replace(given.chain, stop=torch.tensor(self.reasons)))


@pytest.mark.parametrize(
    ("reasons", "ended"),
    [
        ((StopReason.END, StopReason.CAP, StopReason.CERTAIN, StopReason.CAP), [0.25]),
        ((StopReason.END, StopReason.END, StopReason.FIXED, StopReason.END), [0.75]),
        ((StopReason.FIXED,) * 4, []),
    ],
)
def test_chains_of_fixed_length_have_no_rate_of_ends(reasons: tuple[StopReason, ...], ended: list[float]) -> None:
    settings: dict[str, Any] = {"task": TASK, "prompt_format": PROMPT_FORMAT, "max_answer": 3}
    asked = Planted(**settings, problems=4, batch_size=4, reasons=reasons)
    test, system = loop.TestSet(TASK.sample("test", np.arange(4))), tiny_word_system(top_k=1, max_latents=4)
    assert test.answer(system, asked, timed=False, alone=False) is not None
    assert test.ended[system.name] == ended
