"""No training step makes the host wait for a device, whatever the stage, and batches made beside it are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import HostWaits
from tiny_drills import drilled
from tiny_recipe import quiet_train, tiny_recipe, weights
from transformers import TrainerCallback

from unspoken.training import arguments, trainer
from unspoken.training.stages import SeedRun, train_stage


class Steps(TrainerCallback):
    """Counts the waits of everything between the beginning of a step and its end: forward, backward and optimiser."""

    def __init__(self) -> None:
        self.waits = HostWaits()
        self.steps = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.waits.__enter__()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.waits.__exit__(None, None, None)
        self.steps += 1


@pytest.mark.parametrize(
    ("look", "waits"),
    [
        (lambda values: values[values > 0], 1),
        (lambda values: values[torch.tensor([0, 2])], 0),
        (lambda values: float(values.sum()), 1),
        (lambda values: values.sum(), 0),
        (lambda values: values if (values > 0).all() else -values, 1),
        (lambda values: torch.where(values > 0, values, -values), 0),
        (lambda values: torch.repeat_interleave(values.long().clamp(min=0)), 1),
        (lambda values: values.tolist(), 1),
    ],
)
def test_the_counter_knows_what_waits(look: Any, waits: int) -> None:
    values = torch.tensor([1.0, -1.0, 2.0])
    with HostWaits() as actual:
        look(values)
    assert sum(actual.sites.values()) == waits


# The fused kernel's masks are those that the library reads before it makes them.
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["strings", "prose", "words"])
def test_no_step_of_any_stage_waits(name: str, attention: str, tmp_path: Path) -> None:
    if name == "words" and attention == "eager":
        pytest.skip("many stages, and what the other kernel reads is a part of what this one does")
    (tmp_path / "texts").mkdir()
    small = ("evaluation.validation_problems=2", f"attention={attention}")
    recipe = drilled(name, tmp_path / "texts", *small)
    stages = (
        stage if stage.objective.writes_data else replace(stage, evaluate_every=recipe.steps(stage))
        for stage in recipe.stages
    )
    recipe = replace(recipe, stages=tuple(stages))
    run, waits = SeedRun(recipe=recipe, folder=tmp_path / "seed-0", seed=0), {}
    for stage in recipe.stages:
        steps = Steps()
        train_stage(run, stage, report_to=[], callbacks=[steps])
        assert steps.steps == recipe.steps(stage)
        waits[stage.name] = dict(steps.waits.sites)
    assert waits == {stage.name: {} for stage in recipe.stages}


def test_batches_made_by_workers_train_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe("stages.pretrain.evaluate_every=4")
    quiet_train(recipe, tmp_path / "alone", only="pretrain")
    made: list[int] = []

    def beside(_: torch.device) -> dict[str, Any]:
        made.append(2)
        return {"dataloader_num_workers": 2, "dataloader_multiprocessing_context": "fork"}

    monkeypatch.setattr(arguments, "loading", beside)
    quiet_train(recipe, tmp_path / "beside", only="pretrain")
    assert made
    assert weights(tmp_path / "beside") == weights(tmp_path / "alone")


def test_on_a_cpu_batches_are_made_in_the_step_and_not_pinned() -> None:
    assert arguments.loading(torch.device("cpu")) == {"dataloader_num_workers": 0, "dataloader_pin_memory": False}


def test_with_a_gpu_workers_make_pinned_batches_that_are_copied_without_a_wait() -> None:
    actual = arguments.loading(torch.device("cuda"))
    assert 1 <= actual["dataloader_num_workers"] <= 4
    assert actual["dataloader_pin_memory"]
    assert actual["accelerator_config"] == {"non_blocking": True}


def test_the_terms_of_a_log_line_come_in_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, waits, log = tiny_recipe(), [], trainer.StageTrainer.log
    quiet_train(recipe, tmp_path, only="pretrain")

    def counted(self: trainer.StageTrainer, logs: dict[str, float], start_time: float | None = None) -> None:
        with HostWaits() as actual:
            log(self, logs, start_time)
        if "loss" in logs:
            assert {"sst_loss", "best_constant_loss"} <= logs.keys()
            waits.append(sum(actual.sites.values()))

    monkeypatch.setattr(trainer.StageTrainer, "log", counted)
    quiet_train(recipe, tmp_path, only="sst")
    assert waits == [1, 1, 1]
