"""Opening what answers: a run folder, the folder of one trained model, or any model of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from unspoken.backbone.folder import MANIFEST, read_manifest
from unspoken.machine import resolve_device
from unspoken.methods import catalogue
from unspoken.methods.loading import load_system
from unspoken.methods.reasoning import Reasoning
from unspoken.reasoning.system import System
from unspoken.storage import MODEL, read_text
from unspoken.training.recipe import Recipe, parse
from unspoken.training.resolve import RECIPE
from unspoken.training.settings import one_of, read
from unspoken.training.stages import SeedRun
from unspoken.weights import shipped_model


def locate(source: str | Path, seed: int, stage: str | None) -> tuple[Recipe | None, str | Path]:
    """The recipe, if there is one, and the model that a folder, a seed and a stage mean.

    Args:
        source: a run folder, the folder of one model, the name of a model on the hub, or of one that comes with the
            package (``tree-search``, ``cups``).
        seed, stage: which model of a run folder; None stands for the last stage that answers from latents.

    Raises:
        ValueError: there is no such model.
    """
    source = shipped_model(source) or source
    folder = Path(source)
    if (folder / RECIPE).is_file():
        recipe = parse(read_text(folder / RECIPE), str(folder / RECIPE))
        latent = [entry.name for entry in recipe.stages if entry.objective.answers_from_latents]
        chosen = recipe.stage(stage or [recipe.stages[-1].name, *latent][-1])
        run = SeedRun(recipe=recipe, folder=folder / f"seed-{seed}", seed=seed)
        if not run.finished(chosen):
            raise ValueError(f"{run.folder} has no finished stage {chosen.name!r}; run the recipe again to continue it")
        return recipe, run.model_folder(chosen.name)
    if stage is not None:
        raise ValueError(f"{source} is no run folder (it has no {RECIPE}), so it has no stage {stage!r}; leave it out")
    recorded = read_manifest(folder).get("recipe") if (folder / MANIFEST).is_file() else None
    if recorded is not None:
        return read(Recipe, recorded), folder
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is neither a run folder (no {RECIPE}) nor a model folder (no config.json)")
    return None, source


def compression_rate(source: str | Path, seed: int, stage: str | None) -> int | None:
    """Tokens of an explicit chain that one latent of a model stands for; None where nothing cut the chains it learned.

    Args:
        source, seed, stage: see `locate`.

    Raises:
        ValueError: there is no such model.
    """
    recipe, place = locate(source, seed, stage)
    trained = read_manifest(Path(place)).get("stage") if recipe is not None else None
    if recipe is None or trained is None:
        return None
    chosen = recipe.stage(trained)
    return chosen.objective.rate(recipe.lineage(chosen))


def reasoning_of(given: Reasoning | Mapping[str, Any] | str) -> Reasoning:
    """A way to reason, by its name.

    Args:
        given: a name, such as ``soft_thinking``; a mapping with ``kind`` and other keys, also written as YAML; or the
            way itself.

    Raises:
        ValueError: there is no such way, or a key of it is wrong.
    """
    if isinstance(given, Reasoning):
        return given
    try:
        values = yaml.safe_load(given) if isinstance(given, str) else given
    except yaml.YAMLError:
        raise ValueError(f"reasoning is {given!r}; give a name, or '{{kind: NAME, KEY: VALUE}}'") from None
    named = {"kind": values.replace("-", "_")} if isinstance(values, str) else values
    reasoning: Reasoning = one_of(catalogue.reasonings(), named, "reasoning")
    return reasoning


def open_system(
    source: str | Path,
    reasoning: Reasoning | Mapping[str, Any] | str | None = None,
    *,
    stage: str | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> System:
    """A model as it answers text.

    Args:
        source: a run folder, the folder of one model, the name of a model on the hub, or of one that comes with the
            package (``tree-search``, ``cups``).
        reasoning: another way to reason than the one that the model was trained for, see `reasoning_of`; for instance
            ``"no_think"`` or `unspoken.SoftThinking`.
        stage: which model of a run folder; by default the last stage that answers from latents.
        seed: which of the trained seeds of a run folder.
        device: where it computes, see `unspoken.machine.resolve_device`.

    Raises:
        ValueError: there is no such model or device; its folder is damaged or cannot answer; its task has
            no problems that can be typed; or the reasoning does not suit it.
    """
    recipe, place = locate(source, seed, stage)
    chosen = resolve_device(device)
    if recipe is None:
        system = load_system(place, name=Path(place).name, device=chosen)
    else:
        traits = recipe.task.traits
        if not traits.answerable:
            raise ValueError(
                f"models of {recipe.name} cannot answer typed problems, because the task {recipe.task.kind} has none; "
                "read the report page of the run, or open a run of tree search or of word problems"
            )
        system = load_system(
            place,
            name=_stage_name(Path(place)),
            max_answer=traits.answer_cap or recipe.evaluation.max_answer,
            trained_on=recipe.task,
            device=chosen,
        )
    return system if reasoning is None else reasoning_of(reasoning).applied(system)


def _stage_name(folder: Path) -> str:
    """Of the stage that published a model; elsewhere, of its folder."""
    return folder.parent.name if folder.name == MODEL else folder.name
