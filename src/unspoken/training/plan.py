"""What a recipe will cost, found out on the meta device: nothing is allocated and nothing is trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.methods.latent_sft import Labels, Spelling
from unspoken.tasks import GrammarConfig, ProseConfig, TreeSearchConfig
from unspoken.training import strings, trees, words
from unspoken.training.optimizers import is_matrix
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.stages import OWN_KINDS


def _gigabytes(numbers: float) -> float:
    return round(4 * numbers / 1e9, 4)  # float32: weights, gradients and optimiser state


def _model_facts(stage: Stage, model: PreTrainedModel, config: PreTrainedConfig, sequence: int) -> dict[str, Any]:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    trained = sum(parameter.numel() for _, parameter in named)
    matrices = sum(parameter.numel() for name, parameter in named if is_matrix(name, parameter))
    total = sum(parameter.numel() for parameter in model.parameters())
    # Muon keeps one number a weight, AdamW two.
    state = 2 * trained - (matrices if stage.optimizer.name == "muon" else 0)
    # Kept for the backward pass: per block about 10 widths of the residual stream, the heads, the FFN and the scores.
    attention = getattr(config, "attention_size", config.hidden_size)
    ffn = getattr(config, "intermediate_size", 4 * config.hidden_size)
    widths = 6 * config.hidden_size + 5 * attention + 2 * ffn
    scores = 2 * config.num_attention_heads * sequence
    activations = stage.batch_size * sequence * config.num_hidden_layers * (widths + scores)
    return {
        "stage": stage.name,
        "parameters": total,
        "trained": trained,
        # Two floating-point operations a weight and token forward, four backward.
        "flops_per_token": 6 * trained + 2 * (total - trained),
        "weights_gb": _gigabytes(total),
        "training_gb": round(_gigabytes(total + trained + state) + 2 * activations / 1e9, 3),
    }


def _own_models(recipe: Recipe, sequence: int) -> list[dict[str, Any]]:
    """Of a task with a vocabulary of its own."""
    built: dict[str, PreTrainedModel] = {}
    facts = []
    for stage in recipe.stages:
        model = OWN_KINDS[recipe.task.kind].build_model(recipe, stage, built.get(stage.start) if stage.start else None)
        built[stage.name] = model
        facts.append(_model_facts(stage, model, recipe.backbone_config(), sequence))
    return facts


def _word_models(recipe: Recipe, sequence: int) -> list[dict[str, Any]]:
    config = words.base_config(recipe)
    return [
        _model_facts(stage, words.build_empty(recipe, stage, config), config, sequence)
        for stage in recipe.stages
        if not isinstance(stage.objective, Labels)
    ]


def _sequence(recipe: Recipe) -> int:
    """Tokens of a training sample; of word problems, the mean over some with their explicit chains."""
    if isinstance(recipe.task, TreeSearchConfig):
        task = trees.task_of(recipe)
        return task.prompt_length + task.answer_length
    if isinstance(recipe.task, GrammarConfig):
        return round(strings.task_of(recipe).grammar.mean_length) + 1
    if isinstance(recipe.task, ProseConfig):
        return recipe.task.length
    spelling = Spelling(tokenizer=recipe.tokenizer())
    spans = [spelling.spans(problem) for problem in words.task_of(recipe).sample("train", range(64))]
    return round(sum(len(row.prompt) + len(row.chain) + len(row.answer) for row in spans) / len(spans))


def plan(recipe: Recipe) -> dict[str, Any]:
    """Parameter counts, memory and token budget of every stage."""
    sequence = _sequence(recipe)
    with torch.device("meta"):
        models = (_own_models if recipe.task.kind in OWN_KINDS else _word_models)(recipe, sequence)
    return {
        "name": recipe.name,
        "size": recipe.size,
        "models": models,
        "steps": {stage.name: recipe.steps(stage) for stage in recipe.stages},
        "tokens": {stage.name: recipe.steps(stage) * stage.batch_size * sequence for stage in recipe.stages},
        "note": "memory: float32 weights, gradients, optimiser state; bfloat16 activations without checkpointing",
    }
