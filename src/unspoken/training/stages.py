"""Runs the stages of a recipe, one folder a stage, and skips what is finished."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback

from unspoken.analysis.mixture import measure, siblings
from unspoken.backbone import UnspokenForCausalLM
from unspoken.backbone.folder import verify, write_json
from unspoken.evaluation.systems import answer, load_model, system_of
from unspoken.methods.jepa_reasoner import (
    JepaReasonerConfig,
    JepaReasonerForCausalLM,
    JepaReasonerModel,
    effective_rank,
)
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.settings import as_mapping
from unspoken.training.trainer import MODEL, Judge, StageTrainer, clear


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """Where one seed of a recipe lives."""

    recipe: Recipe
    folder: Path
    seed: int

    def stage_folder(self, stage: Stage) -> Path:
        """Working folder of a stage."""
        return self.folder / stage.name

    def model_folder(self, name: str) -> Path:
        """Published folder of a finished stage."""
        return self.folder / name / MODEL

    def finished(self, stage: Stage) -> bool:
        """Whether the stage's folder is published."""
        return self.model_folder(stage.name).is_dir()


def build_model(recipe: Recipe, stage: Stage, start: PreTrainedModel | None) -> PreTrainedModel:
    """The stage's model with its starting weights.

    Args:
        start: the finished model of the stage it continues from; None for random weights.
    """
    settings: dict[str, Any] = {"attn_implementation": recipe.attention}
    backbone = recipe.backbone_config()
    tokens = {"eos_token_id": backbone.eos_token_id, "pad_token_id": backbone.pad_token_id}
    if stage.objective.kind == "next_token":
        model: PreTrainedModel = UnspokenForCausalLM._from_config(backbone, **settings)
        if start is not None:
            model.load_state_dict(start.state_dict(), strict=True)
        return model
    # The paper switches the L2 half of HybridNorm on when SST starts.
    backbone.l2_output = True
    shape: dict[str, Any] = {
        "backbone_config": backbone,
        "unit_tokens": recipe.backbone.unit_embeddings,
        "max_latents": 2 * recipe.task.build().answer_length,
        **tokens,
    }
    if stage.objective.kind == "sst":
        reasoner = JepaReasonerModel._from_config(JepaReasonerConfig(**shape), **settings)
        if start is not None:
            reasoner.backbone.load_state_dict(start.base_model.state_dict(), strict=True)
        reasoner.start_target()
        return reasoner
    assert recipe.talker is not None and start is not None
    config = JepaReasonerConfig(
        **shape,
        talker_config=recipe.talker_config(),
        talker_kind=recipe.talker.variant,
        talker_encoder_layers=recipe.talker.encoder_layers or 1,
    )
    both = JepaReasonerForCausalLM._from_config(config, **settings)
    both.reasoner.load_state_dict(start.state_dict(), strict=True)
    both.freeze_reasoner()
    return both


def judge_of(recipe: Recipe, stage: Stage) -> Judge:
    """What is measured on the validation problems while a stage trains.

    ``score`` selects the checkpoint: exact match of whole routes in free generation, with the validation loss (never
    more than a fraction of one problem) to tell equals apart.
    """
    task = recipe.task.build()
    count = recipe.evaluation.validation_problems
    problems = task.sample("validation", np.arange(count))
    batch = task.encode(problems)
    below_root = siblings(task, problems)

    @torch.no_grad()
    def judge(model: PreTrainedModel) -> dict[str, float]:
        answers = answer(system_of(model), task, problems, recipe.evaluation.batch_size)
        # The class's forward: the Trainer has wrapped the instance's in autocast, and readings are in float32.
        outputs = type(model).forward(model, **stage.objective.inputs(batch))
        loss, terms = stage.objective(outputs, batch)
        exact = float(answers.correct.double().mean())
        reading = {"exact_match": exact, **{name: float(value) for name, value in terms.items()}}
        # With several possible targets no answer is right every time: the loss alone tells models apart.
        reading["score"] = (exact if task.config.targets == 1 else 0.0) - min(float(loss), 100.0) / (1000 * count)
        if isinstance(model, JepaReasonerModel):
            forced = outputs.latents[:, task.prompt_length - 1 : -1]
            steps = slice(1, task.config.depth)
            reading["nearest_row"] = float((model.nearest_row(forced) == task.answers(problems)).double().mean())
            reading["effective_rank"] = effective_rank(model.target_table)
            for kind, latents in (("forced", forced), ("rollout", answers.chain.latents)):
                if latents.shape[1] >= task.config.depth:
                    mixture = measure(latents[:, steps], model.target_table, below_root)
                    flat = {key: value for key, value in mixture.summary().items() if isinstance(value, float)}
                    reading |= {f"{kind}_{key}": value for key, value in flat.items()}
        return reading

    return judge


def fingerprint(recipe: Recipe, seed: int) -> dict[str, Any]:
    """What every published folder records about where it came from."""
    return {
        "recipe": as_mapping(recipe),
        "seed": seed,
        "data": recipe.task.build().fingerprint,
        "versions": {name: version(name) for name in ("unspoken", "torch", "transformers", "numpy")},
        "machine": {"system": platform.system(), "processor": platform.machine(), "threads": torch.get_num_threads()},
    }


def train_stage(run: SeedRun, stage: Stage, *, report_to: list[str], callbacks: list[TrainerCallback]) -> Path:
    """Train one stage, or return its folder if it is finished.

    Raises:
        ValueError: the stage it starts from is missing or damaged, or its own checkpoint is damaged.
    """
    final = run.model_folder(stage.name)
    if run.finished(stage):
        verify(final)
        clear(run.stage_folder(stage))  # a kill just after publishing leaves checkpoints behind
        return final
    start, history = None, []
    if stage.start is not None:
        origin = run.model_folder(stage.start)
        if not origin.is_dir():
            raise ValueError(
                f"stage {stage.name!r} starts from {stage.start!r}, which has no finished folder at {origin}; "
                f"train {stage.start!r} first"
            )
        manifest = verify(origin)
        history = [*manifest["stages"], {"name": stage.start, "step": manifest["step"]}]
        start = load_model(origin)
    # One stream of random starting weights a stage, whatever ran before it in this process.
    torch.manual_seed(run.seed * 1000 + run.recipe.stages.index(stage))
    model = build_model(run.recipe, stage, start)
    folder = run.stage_folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = StageTrainer(
        recipe=run.recipe,
        stage=stage,
        model=model,
        tokenizer=run.recipe.task.build().tokenizer,
        folder=folder,
        seed=run.seed,
        judge=judge_of(run.recipe, stage),
        manifest={**fingerprint(run.recipe, run.seed), "stage": stage.name, "stages": history},
        report_to=report_to,
        callbacks=callbacks,
    )
    return trainer.run()


def _trains(content: dict[str, Any]) -> dict[str, Any]:
    """The part of a recipe that decides the weights; checkpoints are selected on validation problems, not on test."""
    evaluation = {"validation_problems": content["evaluation"]["validation_problems"]}
    return {**content, "evaluation": evaluation, "summary": ""}


def claim(folder: Path, recipe: Recipe) -> None:
    """Bind a run folder to a recipe, so that a resumed run cannot mix two.

    Raises:
        ValueError: the folder belongs to a recipe that trains something else.
    """
    path = folder / "recipe.json"
    content = as_mapping(recipe)
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; remove {folder} and train again") from None
        changed = [key for key in content if _trains(before).get(key) != _trains(content).get(key)]
        if changed:
            raise ValueError(
                f"{folder} was started with another recipe (they differ in {', '.join(changed)}); "
                "choose another --output or remove that folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
