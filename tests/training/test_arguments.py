"""What the library's Trainer is given for a stage, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe

from unspoken import distributed
from unspoken.training import arguments
from unspoken.training.arguments import arguments_of, loading, train_on

CPU = torch.device("cpu")


def given(*changes: str, **of_recipe: Any) -> Any:
    recipe = tiny_recipe(*(f"stages.pretrain.{change}" for change in changes), *of_recipe.pop("overrides", ()))
    return arguments_of(
        recipe, recipe.stages[0], folder=Path("there"), seed=3, device=CPU, report_to=of_recipe.pop("report_to", [])
    )


def test_a_stage_is_trained_as_its_recipe_has_it() -> None:
    made = given("steps=70", "batch_size=12", "accumulate=3", "evaluate_every=40", "optimizer.clip=0.5")
    assert (made.max_steps, made.per_device_train_batch_size, made.gradient_accumulation_steps) == (70, 4, 3)
    assert (made.eval_steps, made.save_steps, made.logging_steps) == (40, 40, 25)
    assert (made.max_grad_norm, made.seed, made.data_seed, made.output_dir) == (0.5, 3, 3, "there")
    assert (made.eval_on_start, made.use_cpu, made.disable_tqdm) == (True, True, True)
    # The loss is looked at where it is not finite, batches have columns that no model knows, and nothing is shuffled.
    assert (made.logging_nan_inf_filter, made.remove_unused_columns) == (False, False)
    assert (made.ddp_find_unused_parameters, made.train_sampling_strategy) == (False, "sequential")
    assert (made.dataloader_num_workers, made.dataloader_pin_memory) == (0, False)


def test_a_short_stage_is_measured_at_its_end() -> None:
    made = given("steps=7", "evaluate_every=40")
    assert (made.eval_steps, made.save_steps, made.logging_steps) == (7, 7, 7)


@pytest.mark.parametrize(
    ("schedule", "name"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
def test_schedules_are_the_library_s(schedule: str, name: str) -> None:
    made = given(f"optimizer={{schedule: {schedule}, warmup_steps: 2}}")
    assert (made.lr_scheduler_type, made.warmup_steps) == (name, 2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_precision_and_checkpointing_are_the_recipe_s(checkpointing: bool) -> None:
    text = f"activation_checkpointing={str(checkpointing).lower()}"
    for precision in ("bf16", "fp32"):
        made = given(overrides=(f"precision={precision}", text))
        assert (made.bf16, made.activation_checkpointing) == (precision == "bf16", checkpointing)


@pytest.mark.parametrize(("threads", "workers"), [(1, 1), (2, 1), (4, 2), (7, 3), (8, 4), (64, 4)])
def test_half_of_the_threads_load_batches_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, threads: int, workers: int
) -> None:
    monkeypatch.setattr(arguments, "usable_threads", lambda: threads)
    assert loading(torch.device("cuda")) == {
        "dataloader_num_workers": workers,
        "dataloader_multiprocessing_context": "fork",
        "dataloader_pin_memory": True,
        "accelerator_config": {"non_blocking": True},
    }


@pytest.mark.parametrize(("device", "gpus", "chosen"), [("cpu", 0, []), ("cuda:1", 1, ["cuda:1"])])
def test_a_process_alone_trains_on_the_device_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, chosen: list[str]
) -> None:
    """The library would take the first GPU, and spread the batch over all eight."""
    current: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda one: current.append(str(one)))
    given: Any = SimpleNamespace(_n_gpu=8, _setup_devices="first", distributed_state=SimpleNamespace(device="first"))
    train_on(torch.device(device), given)
    assert (given._n_gpu, current) == (gpus, chosen)
    assert given._setup_devices == given.distributed_state.device == torch.device(device)


def test_one_of_several_processes_has_the_device_of_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    given: Any = SimpleNamespace(_n_gpu=1, _setup_devices="own")
    train_on(CPU, given)
    assert vars(given) == {"_n_gpu": 1, "_setup_devices": "own"}
