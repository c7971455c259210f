"""What a recipe will cost, found out on the meta device: nothing is allocated and nothing is trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from unspoken.training.optimizers import is_matrix
from unspoken.training.recipe import Recipe, StackShape, Stage
from unspoken.training.trees import build_model, task_of


def _gigabytes(numbers: float) -> float:
    return round(4 * numbers / 1e9, 4)  # float32: weights, gradients and optimiser state


def _model_facts(recipe: Recipe, stage: Stage, model: PreTrainedModel, sequence: int) -> dict[str, Any]:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    trained = sum(parameter.numel() for _, parameter in named)
    matrices = sum(parameter.numel() for name, parameter in named if is_matrix(name, parameter))
    total = sum(parameter.numel() for parameter in model.parameters())
    # Muon keeps one number a weight, AdamW two.
    state = 2 * trained - (matrices if stage.optimizer.name == "muon" else 0)
    shape = recipe.backbone
    assert isinstance(shape, StackShape)
    # Kept for the backward pass: per block about 10 widths of the residual stream, the heads, the FFN and the scores.
    widths = 6 * shape.hidden_size + 5 * shape.attention_size + 2 * shape.intermediate_size
    scores = 2 * shape.heads * sequence
    activations = stage.batch_size * sequence * shape.layers * (widths + scores)
    return {
        "stage": stage.name,
        "parameters": total,
        "trained": trained,
        # Two floating-point operations a weight and token forward, four backward.
        "flops_per_token": 6 * trained + 2 * (total - trained),
        "weights_gb": _gigabytes(total),
        "training_gb": round(_gigabytes(total + trained + state) + 2 * activations / 1e9, 3),
    }


def plan(recipe: Recipe) -> dict[str, Any]:
    """Parameter counts, memory and token budget of every stage."""
    task = task_of(recipe)
    sequence = task.prompt_length + task.answer_length
    models: list[dict[str, Any]] = []
    built: dict[str, PreTrainedModel] = {}
    with torch.device("meta"):
        for stage in recipe.stages:
            model = build_model(recipe, stage, built.get(stage.start) if stage.start else None)
            built[stage.name] = model
            models.append(_model_facts(recipe, stage, model, sequence))
    return {
        "name": recipe.name,
        "size": recipe.size,
        "models": models,
        "steps": {stage.name: recipe.steps(stage) for stage in recipe.stages},
        "tokens": {stage.name: recipe.steps(stage) * stage.batch_size * sequence for stage in recipe.stages},
        "note": "memory: float32 weights, gradients, optimiser state; bfloat16 activations without checkpointing",
    }
