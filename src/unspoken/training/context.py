"""The context that a recipe gives to its stages, and models to start from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.backbone import UnspokenForCausalLM
from unspoken.backbone.around import AroundDecoder
from unspoken.backbone.checks import Method, Needs, require
from unspoken.backbone.loading import load_config, load_pretrained
from unspoken.methods import catalogue
from unspoken.methods.method import Context
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training.adapters import add_adapters
from unspoken.training.backbones import require_rows
from unspoken.training.recipe import Recipe, Stage


def context_of(recipe: Recipe, stage: Stage, *, seed: int = 0, folder: Path | None = None) -> Context:
    """What a stage is given; ``folder`` is that of the run's seed, or None where nothing is read from it.

    Raises:
        ValueError: the stage has problems of its own whose tokens are others.
    """
    prompt_format = PromptFormat(tokenizer=recipe.tokenizer())
    if stage.task is not None:
        own = stage.task.build().tokenizer
        if own is not None and own.get_vocab() != prompt_format.tokenizer.get_vocab():
            raise ValueError(f"the task of stage {stage.name!r} has other tokens than that of the recipe; leave it out")
    return Context(
        lineage=recipe.lineage(stage),
        traits=recipe.task.traits,
        make_task=recipe.task.build,
        make_training_task=None if stage.task is None else stage.task.build,
        prompt_format=prompt_format,
        base=partial(base_model, recipe, stage.objective.properties),
        backbone_config=partial(base_config, recipe),
        talker=stage.talker or recipe.talker,
        talker_config=partial(recipe.talker_config, stage),
        pretrained=isinstance(recipe.backbone, str),
        attention=recipe.attention,
        max_latents=recipe.evaluation.max_latents,
        max_answer=recipe.evaluation.max_answer,
        batch_size=recipe.evaluation.batch_size,
        sampling=recipe.evaluation.sampling,
        seed=seed,
        folder=folder,
    )


def base_config(recipe: Recipe) -> PreTrainedConfig:
    """Configuration of the causal language model that every stage starts from; a ValueError if there is none."""
    if not isinstance(recipe.backbone, str):
        return recipe.backbone_config()
    with recipe.loading_backbone():
        return load_config(recipe.backbone)


def check_backbone(recipe: Recipe) -> None:
    """Refuse a pretrained backbone that does not exist or that a stage cannot start from, without its weights."""
    if isinstance(recipe.backbone, str):
        config = base_config(recipe)
        for stage in recipe.stages:
            stage.objective.check_backbone(config, stage)


def base_model(recipe: Recipe, properties: Sequence[Method | Needs] = ()) -> PreTrainedModel:
    """The causal language model of the recipe's backbone, in float32: random weights, or pretrained ones.

    Raises:
        ValueError: it cannot be loaded or lacks one of the properties (`unspoken.backbone.checks.require`), or its
            table lacks rows for tokens that every sample has.
    """
    if not isinstance(recipe.backbone, str):
        return UnspokenForCausalLM._from_config(recipe.backbone_config(), attn_implementation=recipe.attention)
    model = load_pretrained(recipe.backbone, dtype=torch.float32, attn_implementation=recipe.attention)
    for name in properties:
        require(model, name)
    require_rows(model, PromptFormat(tokenizer=recipe.tokenizer()))
    return model


def load_start(recipe: Recipe, folder: Path) -> PreTrainedModel:
    """The finished model of a stage that another one starts from, in float32; raises as `catalogue.load`."""
    return catalogue.load(folder, dtype=torch.float32, attn_implementation=recipe.attention)


def build(recipe: Recipe, context: Context, start: Path | None) -> PreTrainedModel:
    """A stage's model with its starting weights, of another stage's folder or the backbone, and with its adapters.

    Raises:
        ValueError: the stage's method would be wrong around the model, or adapters cannot be put on it.
    """
    objective = context.lineage.objective
    before = None if start is None else load_start(recipe, start)
    if before is not None:
        inner = before.decoder if isinstance(before, AroundDecoder) else before
        for name in objective.properties:
            require(inner, name)
    model = objective.build(before, context)
    if context.lineage.settings.lora is not None:
        add_adapters(model, objective, context.lineage.settings.lora)
    return model
