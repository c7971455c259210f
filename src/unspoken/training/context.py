"""The context that a recipe gives to its stages, and models to start from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.backbone import UnspokenConfig, UnspokenForCausalLM
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
    """What a stage is given.

    Args:
        folder: of the run's seed; None where nothing is read from it.
    """
    talker = stage.talker or recipe.talker
    return Context(
        line=recipe.line(stage),
        traits=recipe.task.traits,
        make_task=recipe.task.build,
        prompt_format=PromptFormat(tokenizer=recipe.tokenizer()),
        base=partial(base_model, recipe, stage.objective.properties),
        backbone_config=partial(base_config, recipe),
        talker=talker,
        talker_config=partial(_talker_config, recipe, stage),
        pretrained=isinstance(recipe.backbone, str),
        attention=recipe.attention,
        max_latents=recipe.evaluation.max_latents,
        max_answer=recipe.evaluation.max_answer,
        batch_size=recipe.evaluation.batch_size,
        seed=seed,
        folder=folder,
    )


def _talker_config(recipe: Recipe, stage: Stage, hidden_size: int) -> UnspokenConfig:
    return recipe.talker_config(recipe.talker_of(stage), hidden_size=hidden_size)


def base_config(recipe: Recipe) -> PreTrainedConfig:
    """Configuration of the causal language model that every stage starts from.

    Raises:
        ValueError: there is no pretrained model of that name.
    """
    if not isinstance(recipe.backbone, str):
        return recipe.backbone_config()
    try:
        return load_config(recipe.backbone)
    except (OSError, ValueError) as error:
        raise ValueError(f"backbone {recipe.backbone!r} cannot be loaded: {str(error).splitlines()[0]}") from None


def check_backbone(recipe: Recipe) -> None:
    """Refuse a pretrained backbone that a stage cannot start from, without its weights.

    Raises:
        ValueError: there is no such model, or it has fewer blocks than a stage asks for.
    """
    if isinstance(recipe.backbone, str):
        config = base_config(recipe)
        for stage in recipe.stages:
            stage.objective.check_backbone(config, stage)


def base_model(recipe: Recipe, properties: Sequence[Method | Needs] = ()) -> PreTrainedModel:
    """The causal language model of the recipe's backbone, in float32: random weights, or pretrained ones.

    Args:
        properties: what it must be, see `unspoken.backbone.checks.require`.

    Raises:
        ValueError: it cannot be loaded or is not that, or its table lacks rows for tokens that every sample has.
    """
    if not isinstance(recipe.backbone, str):
        model: PreTrainedModel = UnspokenForCausalLM._from_config(
            recipe.backbone_config(), attn_implementation=recipe.attention
        )
        return model
    model = load_pretrained(recipe.backbone, dtype=torch.float32, attn_implementation=recipe.attention)
    for name in properties:
        require(model, name)
    require_rows(model, PromptFormat(tokenizer=recipe.tokenizer()))
    return model


def load_start(recipe: Recipe, folder: Path) -> PreTrainedModel:
    """The finished model of a stage that another one starts from, in float32.

    Raises:
        ValueError: as `unspoken.methods.catalogue.load`.
    """
    return catalogue.load(folder, dtype=torch.float32, attn_implementation=recipe.attention)


def build(recipe: Recipe, context: Context, start: Path | None) -> PreTrainedModel:
    """A stage's model with its starting weights, adapters included.

    Args:
        start: folder of the stage that it continues from; None for the recipe's backbone.

    Raises:
        ValueError: the stage's method would be wrong around the model, or adapters cannot be put on it.
    """
    objective = context.line.objective
    before = None if start is None else load_start(recipe, start)
    if before is not None:
        inner = before.decoder if isinstance(before, AroundDecoder) else before
        for name in objective.properties:
            require(inner, name)
    model = objective.build(before, context)
    if context.line.settings.lora is not None:
        add_adapters(model, objective, context.line.settings.lora)
    return model
