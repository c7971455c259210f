"""Recipes for a method, a pretrained model and problems of one's own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unspoken.methods.catalogue import objectives, trainable
from unspoken.methods.defaults import TrainingFacts
from unspoken.storage import write_text
from unspoken.tasks.task import rows_in_words
from unspoken.training.recipe import Recipe, Stage, apply_overrides, dump, parse
from unspoken.training.settings import SettingsError, nearest

_LOOKED_AT = 1000  # training problems by which lengths are chosen
_MARGIN = 1.25  # of caps, over the longest of these
_BATCH, _LARGE_BATCH, _MANY = 8, 32, 5000
_MOST_TOKENS = 2**14  # of a batch, whose longest rows decide what fits into memory
_RANK = 64
# Latent width of a model from which adapters have much fewer weights than the matrices that they are put on.
_WIDE = 8 * _RANK
_ADAPTERS_RATE, _WIDE_RATE, _NARROW_RATE = 0.0003, 0.00005, 0.001


def own_recipe(
    method: str, model: str | Path, data: str | Path | Mapping[str, Any], overrides: list[str] | None = None
) -> Recipe:
    """The recipe by which a model learns a method from one's own problems.

    Steps follow from the number of training problems, batches and caps of chain and answer from their lengths, learning
    rates from the model: a wide one is trained through adapters, or with a low rate where ``lora=null`` trains all of
    it, and a narrow one in full.

    Args:
        method: one of `unspoken.methods.catalogue.trainable`.
        model: a folder, or a name on the hub.
        data: a file of problems, see `unspoken.tasks.jsonl`, of which some are held out; or the ``task`` of a recipe.
        overrides: dotted, as of `unspoken.training.recipe.load`. A key of a stage alone, such as ``steps=100``, means
            every stage that has it.

    Raises:
        ValueError: there is no such method, or it cannot learn from these problems; a file or the model cannot be read;
            or as `parse`.
    """
    method = method.replace("_", "-")
    if method not in trainable():
        raise ValueError(f"there is no method {method!r} to train; {nearest(method, list(trainable()))}")
    values: dict[str, Any] = {
        "name": method,
        "size": "small",
        "summary": f"{method} on {data if isinstance(data, str | Path) else data.get('kind')}",
        "task": _task(data),
        "backbone": str(Path(model).resolve()) if Path(model).is_dir() else str(model),
    }
    # A recipe of any stage reads the data, with whatever the overrides say of it.
    overrides = overrides or []
    first = {"name": "first", "objective": {"kind": "next_token"}, "steps": 1}
    about_data = [override for override in overrides if override.startswith("task.")]
    looked = parse(yaml.safe_dump({**values, "stages": [first]}), method, about_data)
    facts, evaluation = _facts(looked)
    usual = trainable(facts).get(method)
    if usual is None:
        raise ValueError(
            f"{method} learns from explicit chains, and the rows of {values['task'].get('train')} have none; add a "
            "column 'steps' or 'cot'"
        )
    keys = [_filled(stage, facts, {}) for stage in usual]
    spread = [one for override in overrides for one in _spread(override, keys, method)]
    stages = []
    for index, given in enumerate(_given(spread, keys, method)):
        # Epochs stay what they are, so steps and what a method derives from them follow the batches.
        sized = replace(facts, batch_size=_count(given.get("batch_size")) or facts.batch_size)
        stages.append(_filled(trainable(sized)[method][index], sized, given))
    values |= {"stages": stages, "evaluation": evaluation, "group_by_length": not _in_order(stages)}
    return parse(yaml.safe_dump(values), method, spread)


def _given(overrides: Sequence[str], stages: Sequence[Mapping[str, Any]], method: str) -> list[Mapping[str, Any]]:
    """What overrides say of each stage."""
    named: dict[str, Any] = {"stages": [{"name": stage["name"]} for stage in stages]}
    apply_overrides(named, method, [override for override in overrides if override.startswith("stages.")])
    # An override may replace a stage by something that is no mapping, which `parse` refuses later.
    return [stage if isinstance(stage, Mapping) else {} for stage in named["stages"]]


def _count(value: Any) -> int | None:
    """A whole number from 1; None for anything else, which `parse` refuses."""
    return value if type(value) is int and value > 0 else None


def write_recipe(recipe: Recipe, file: Path) -> Path:
    """A recipe as a file to be changed by hand, with the sizes of its splits on top; a ValueError if there is one."""
    if file.exists():
        raise ValueError(f"{file} exists; name another file with --output, or remove it")
    write_text(file, f"# {rows_in_words(recipe.task.build())}\n{dump(recipe)}")
    return file


def as_overrides(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings by their keys, which may be nested, as dotted overrides."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += as_overrides(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}={json.dumps(value)}")
    return lines


def _task(data: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A file as the task of a recipe; its name is made absolute, so that the run goes on from any folder."""
    if isinstance(data, Mapping):
        return dict(data)
    return {"kind": "jsonl", "train": str(Path(data).resolve()) if Path(data).is_file() else str(data)}


def _facts(recipe: Recipe) -> tuple[TrainingFacts, dict[str, int]]:
    """What is known of model and problems, and caps by which all of these can be answered."""
    from unspoken.tasks.prompt_format import PromptFormat
    from unspoken.training.context import base_config

    task: Any = recipe.task.build()
    rows = task.size("train") or _LOOKED_AT
    problems = task.sample("train", np.arange(min(rows, _LOOKED_AT)))
    spans = task.spans(problems, PromptFormat(tokenizer=recipe.tokenizer()))
    longest = max(len(row.prompt) + len(row.chain) + len(row.answer) for row in spans)
    fitting = 2 ** int(math.log2(max(1, _MOST_TOKENS // longest)))
    config = base_config(recipe).get_text_config()
    # A state-space model has no heads; a Talker beside it gets some of the usual width.
    heads = getattr(config, "num_attention_heads", None) or config.hidden_size // 64 or 1
    facts = TrainingFacts(
        rows=rows,
        steps=math.ceil(np.quantile([len(row.steps) for row in spans], 0.95)),
        chain=math.ceil(np.quantile([len(row.chain) for row in spans], 0.95)),
        width=config.hidden_size,
        heads=heads,
        batch_size=min(fitting, _LARGE_BATCH if rows >= _MANY else _BATCH),
    )
    caps = {
        "max_latents": 4 + math.ceil(_MARGIN * max(len(row.chain) for row in spans)),
        "max_answer": 4 + math.ceil(_MARGIN * max(len(row.answer) for row in spans)),
    }
    validation = min(100, task.size("validation") or 100)
    return facts, {"problems": 500, "validation_problems": validation, "batch_size": min(fitting, 32), **caps}


def _filled(stage: Mapping[str, Any], facts: TrainingFacts, given: Mapping[str, Any]) -> dict[str, Any]:
    """A stage with the settings that it leaves out, which follow from those that overrides give it."""
    if "epochs" not in stage:
        return dict(stage)
    steps = _count(given.get("steps")) or facts.optimizer_steps(stage["epochs"])
    adapted = given["lora"] is not None if "lora" in given else facts.width >= _WIDE
    rate = _ADAPTERS_RATE if adapted else _WIDE_RATE if facts.width >= _WIDE else _NARROW_RATE
    usual = {
        "steps": steps,
        "batch_size": facts.batch_size,
        "accumulate": 1,
        "evaluate_every": max(1, min(250, steps // 4)),
        "lora": {"rank": _RANK} if adapted else None,
    }
    optimizer = {
        **{"name": "adamw", "lr": rate, "lr_rest": None, "weight_decay": 0.01, "warmup_steps": min(30, steps // 10)},
        **stage.get("optimizer", {}),
    }
    chosen = {**usual, **stage, "optimizer": optimizer}
    # What a method sets to null its stage does not have, and overrides of all stages do not change.
    return {key: value for key, value in chosen.items() if key != "epochs" and not (key in stage and value is None)}


def _in_order(stages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a stage reads its rows in the order of the data."""
    ordered = {objective.kind for objective in objectives() if objective.reads_in_order}
    return any(stage["objective"]["kind"] in ordered for stage in stages)


def _spread(override: str, stages: list[dict[str, Any]], method: str) -> list[str]:
    """An override of a stage's key as one for every stage that has the key; any other as it is.

    Raises:
        SettingsError: no stage has the key.
    """
    key = override.partition("=")[0].split(".")[0]
    of_recipe = {field.name for field in fields(Recipe)}
    if key in of_recipe or key not in {field.name for field in fields(Stage)}:
        return [override]
    changed = [f"stages.{stage['name']}.{override}" for stage in stages if key in stage]
    if not changed:
        example = f"stages.{stages[0]['name']}.{override}"
        raise SettingsError(f"override {override}: no stage of {method} has {key!r}; name the stage, as in {example}")
    return changed
