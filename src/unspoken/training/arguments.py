"""What transformers' Trainer gets from a stage: steps, batches, precision, schedule, loader and device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from unspoken import distributed
from unspoken.machine import resolve_device, usable_threads
from unspoken.training.recipe import Recipe, Stage


def loading(device: torch.device) -> dict[str, Any]:
    """Settings of the loader: worker processes and asynchronous copies with a GPU, none on a CPU.

    A batch is a pure function of its position, so it is the same in every process.
    """
    if device.type != "cuda":
        return {"dataloader_num_workers": 0, "dataloader_pin_memory": False}
    # A tokenizer in a forked worker must not use threads of its parent; the variable spares a warning.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return {
        "dataloader_num_workers": max(1, min(4, usable_threads() // 2)),
        "dataloader_multiprocessing_context": "fork",  # recipes make batches in closures, which cannot be pickled
        "dataloader_pin_memory": True,
        "accelerator_config": {"non_blocking": True},
    }


def train_on(device: torch.device, arguments: TrainingArguments) -> None:
    """Name the device of a single process, where transformers takes the first GPU and adds all others to it.

    It would copy the model to every GPU (`torch.nn.DataParallel`) and multiply the batch by their number.
    """
    if distributed.world_size() > 1:
        return  # each process has the one that the launcher gave it
    device = resolve_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    arguments._n_gpu = 0 if device.type == "cpu" else 1
    arguments._setup_devices = device
    arguments.distributed_state.device = device


def arguments_of(
    recipe: Recipe, stage: Stage, *, folder: Path, seed: int, device: torch.device, report_to: list[str]
) -> TrainingArguments:
    """Arguments of transformers' Trainer for a stage."""
    steps = recipe.steps(stage)
    every = min(stage.evaluate_every, steps)
    schedule = stage.optimizer.schedule
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        # The loader deals these parts out in turn, so that all ranks together read the batch of one process.
        per_device_train_batch_size=stage.batch_size // (distributed.world_size() * stage.accumulate),
        gradient_accumulation_steps=stage.accumulate,
        ddp_find_unused_parameters=False,
        bf16=recipe.precision == "bf16",
        activation_checkpointing=recipe.activation_checkpointing,
        max_grad_norm=stage.optimizer.clip,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        warmup_steps=stage.optimizer.warmup_steps,
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        eval_on_start=True,
        logging_steps=min(25, every),
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to=report_to,
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        **loading(device),
    )
