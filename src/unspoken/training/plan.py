"""What a recipe will cost, computed on the meta device: nothing is allocated and nothing is trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from unspoken.backbone.around import from_config
from unspoken.methods.cost import FULL, Lengths
from unspoken.methods.method import Context
from unspoken.training.adapters import add_adapters
from unspoken.training.context import base_config, check_backbone, context_of
from unspoken.training.optimizers import matrices_and_rest
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.shapes import measured_lengths, published_shape

RANKS = (1, 8, 64)  # GPUs that a plan is made for
PEAK_FLOPS = 400e12  # of a GPU: dense products in bfloat16, a second
USE = 0.4  # share of the peak that training reaches
_LABELLED = 64  # problems of a labels stage at a time


# --- what cannot be loaded --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokens:
    """A tokenizer that is known by its size alone."""

    size: int
    eos_token_id: int = 1
    pad_token_id: int = 0

    def __len__(self) -> int:
        return self.size

    def __call__(self, _text: str, **_: Any) -> dict[str, list[int]]:
        """One token for every text: markers must have one, and a plan does not depend on its id."""
        return {"input_ids": [self.eos_token_id]}


@dataclass(frozen=True, kw_only=True)
class _Sketch(Recipe):
    """A recipe whose tokenizer cannot be loaded, or takes long to train."""

    vocabulary: int

    def tokenizer(self) -> Any:
        return _Tokens(self.vocabulary)


def _sketch(recipe: Recipe, vocabulary: int) -> Recipe:
    return _Sketch(**{field.name: getattr(recipe, field.name) for field in fields(Recipe)}, vocabulary=vocabulary)


def _base(recipe: Recipe) -> tuple[Recipe, PreTrainedConfig, list[str]]:
    """The recipe as it can be planned here, the configuration of its backbone, and notes for the user."""
    if (vocabulary := recipe.task.traits.vocabulary_size) is not None:
        recipe = _sketch(recipe, vocabulary)
    if not isinstance(recipe.backbone, str):
        return recipe, recipe.backbone_config(), []
    # The shapes of published backbones are recorded, so a plan of a shipped recipe downloads nothing.
    config = None if Path(recipe.backbone).is_dir() else published_shape(recipe.backbone)
    if config is None:
        check_backbone(recipe)
        return recipe, base_config(recipe), []
    if recipe.backbone.startswith("runs/"):
        note = f"{recipe.backbone} is not there yet: planned with the shape that it will have (see the recipe)"
    else:
        note = f"{recipe.backbone}: planned with its published shape, nothing was loaded"
    return _sketch(recipe, config.vocab_size), config, [note]


def _lengths(context: Context, recipe: Recipe) -> tuple[Lengths, str | None]:
    """Mean lengths of the rows that a stage reads, and their source if they were not measured here."""
    source = getattr(recipe.task, "train", None)
    known = measured_lengths(source if isinstance(source, str) else None)
    try:
        if isinstance(recipe, _Sketch) and recipe.task.traits.vocabulary_size is None:
            raise ValueError(
                f"{recipe.task.kind}: without the tokenizer of {recipe.backbone} lengths of problems are unknown; make "
                "it reachable, or give a recipe whose data is known (whynlp/gsm8k-aug)"
            )
        return context.lineage.objective.mean_lengths(context), None
    except (ValueError, OSError):
        if known is None:
            raise
        return known, "lengths of problems: means measured on GSM8K-Aug with the tokenizer of SmolLM2"


def _training_size(recipe: Recipe, context: Context) -> int | None:
    """Number of training problems; None where the data cannot be loaded or need not be."""
    return None if isinstance(recipe, _Sketch) else context.task.size("train")


# --- what a stage takes -----------------------------------------------------------------------------------------------


def _whole_at_once(model: nn.Module) -> tuple[int, int]:
    """Numbers of weights, and of trained ones, that every rank gathers: those outside of blocks, and one block."""
    blocks = [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    outside = [weight for weight in model.parameters() if id(weight) not in inside]
    largest = max(([*block.parameters()] for block in blocks), key=_count, default=[])
    gathered = [*outside, *largest]
    return _count(gathered), _count([weight for weight in gathered if weight.requires_grad])


def _count(weights: Sequence[torch.Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def _sharded(stage: Stage, model: PreTrainedModel) -> dict[str, int]:
    """Numbers that are sharded over ranks: weights, gradients, and one or two of the optimiser's for each."""
    matrices, rest = matrices_and_rest(model)
    learned = _count([*matrices, *rest])
    # Muon keeps one number a weight, AdamW two.
    by_muon = matrices if stage.optimizer.name == "muon" else []
    return {
        "weights": _count([*model.parameters(), *model.buffers()]),
        "gradients": learned,
        "optimizer": 2 * learned - _count(by_muon),
    }


def _stage_facts(recipe: Recipe, context: Context, model: PreTrainedModel, lengths: Lengths) -> dict[str, Any]:
    stage, objective = recipe.stage(context.lineage.name), context.lineage.objective
    row = objective.row_cost(model, lengths, context)
    sharded = _sharded(stage, model)
    width = 2 if recipe.precision == "bf16" else FULL
    kernel = {"eager": recipe.attention == "eager", "checkpointing": recipe.activation_checkpointing}
    gathered = width * sum(_whole_at_once(model))
    batch = _LABELLED if objective.writes_data else stage.batch_size
    rows = objective.training_rows(recipe.steps(stage), stage.batch_size, _training_size(recipe, context))
    flops = rows * (
        sum(one.flops(again=recipe.activation_checkpointing) for one in row.passes)
        + sum(one.flops(batch) for one in row.scores)
    )

    def memory(ranks: int) -> dict[str, float] | None:
        """Gigabytes on each GPU; None where the batch cannot be divided among them."""
        pieces = 1 if objective.writes_data else ranks * stage.accumulate
        if batch % pieces:
            return None
        rows_here = batch // pieces
        bytes_of = {name: FULL * number / ranks for name, number in sharded.items()} | {
            "gathered": gathered,
            "activations": rows_here * sum(one.saved_bytes(width, **kernel) for one in row.passes),
            "scores": sum(one.saved_bytes(rows_here, width) for one in row.scores),
        }
        return {name: number / 1e9 for name, number in {**bytes_of, "total": sum(bytes_of.values())}.items()}

    by_ranks = {str(ranks): memory(ranks) for ranks in RANKS}
    return {
        "stage": stage.name,
        "parameters": _count([*model.parameters()]),
        "trained": sharded["gradients"],
        "steps": recipe.steps(stage),
        "batch_size": batch,
        "tokens": round(rows * row.tokens),
        "flops": flops,
        "hours": {
            ranks: None if needed is None else flops / (int(ranks) * PEAK_FLOPS * USE) / 3600
            for ranks, needed in by_ranks.items()
        },
        "memory_gb": by_ranks,
    }


def _facts(recipe: Recipe, config: PreTrainedConfig) -> tuple[list[dict[str, Any]], list[str]]:
    """What every stage takes, in order, and notes. Models are built on the meta device, one at a time."""
    finished: dict[str, PreTrainedModel] = {}
    facts, notes = [], []
    auto: Any = AutoModelForCausalLM
    for stage in recipe.stages:
        context = replace(
            context_of(recipe, stage), base=lambda: from_config(auto, config), backbone_config=lambda: config
        )
        model = _built(stage, context, finished)
        if stage.lora is not None:
            with torch.device("meta"):
                add_adapters(model, stage.objective, stage.lora)
        lengths, note = _lengths(context, recipe)
        facts.append(_stage_facts(recipe, context, model, lengths))
        if note is not None and note not in notes:
            notes.append(note)
        plain = model if stage.lora is None else _built(stage, context, finished)
        finished[stage.name] = stage.objective.exported(plain)
    return facts, notes


def _built(stage: Stage, context: Context, finished: dict[str, PreTrainedModel]) -> PreTrainedModel:
    """A stage's model on the meta device, without adapters."""
    # A stage may change what it starts from.
    start = copy.deepcopy(finished[stage.start]) if stage.start else None
    with torch.device("meta"):
        return stage.objective.build(start, context)


def plan(recipe: Recipe) -> dict[str, Any]:
    """Parameters, tokens, floating-point operations, hours and memory of every stage, on 1, 8 and 64 GPUs.

    Returns:
        ``models``, a mapping a stage: ``parameters``, ``trained``, ``steps``, ``batch_size``, ``tokens``, ``flops``
        and, by number of GPUs, ``hours`` and ``memory_gb``, which are None where the batch cannot be divided. Memory is
        of one GPU: ``weights``, ``gradients`` and ``optimizer``, its share of them; ``gathered``, ``activations`` and
        ``scores``, its own; and the ``total``. Also ``steps`` and ``tokens`` by stage, ``assumptions`` and ``notes``.

    Raises:
        ValueError: model or data can be neither read nor taken from what is known of them.
    """
    # GPUs have bfloat16 and fused kernels.
    precision = "bf16" if recipe.precision == "auto" else recipe.precision
    attention = "sdpa" if recipe.attention == "auto" else recipe.attention
    recipe, config, notes = _base(replace(recipe, precision=precision, attention=attention))
    models, about = _facts(recipe, config)
    for ranks in RANKS:
        uneven = sorted({one["batch_size"] for one in models if one["hours"][str(ranks)] is None})
        if uneven:
            notes.append(
                f"a batch of {' or '.join(map(str, uneven))} rows does not divide over {ranks} GPUs: set batch_size"
            )
    checkpointing = "with" if recipe.activation_checkpointing else "without"
    compute = "bfloat16" if recipe.precision == "bf16" else "float32"
    return {
        "name": recipe.name,
        "size": recipe.size,
        "models": models,
        "steps": {one["stage"]: one["steps"] for one in models},
        "tokens": {one["stage"]: one["tokens"] for one in models},
        "assumptions": {"peak_flops": PEAK_FLOPS, "use": USE, "gpus": list(RANKS)},
        "notes": [
            f"hours: {100 * USE:.0f} % of {PEAK_FLOPS / 1e12:.0f} TFLOP/s (dense bfloat16 peak) per GPU; evaluation "
            "not included",
            "GB under FSDP2: weights, gradients and optimiser state (float32) are sharded; gathered weights with their "
            f"gradients (tables and the largest block, in {compute}) and activations (act.: {checkpointing} "
            "checkpointing, vocabulary scores included) are not",
            *notes,
            *about,
        ],
    }
