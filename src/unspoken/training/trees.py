"""What the stages of a tree-search recipe train, on what, and what is measured meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from unspoken import distributed
from unspoken.analysis.mixture import measure, siblings
from unspoken.backbone import UnspokenForCausalLM
from unspoken.evaluation.systems import answer, system_of
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.jepa_reasoner.objective import effective_rank
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.stages import SST, TalkerLoss
from unspoken.placement import CPU, moved
from unspoken.tasks import TreeSearchTask
from unspoken.tasks.dataset import Batch
from unspoken.training import jepa
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.trainer import Validator


def task_of(recipe: Recipe) -> TreeSearchTask:
    """The recipe's task."""
    task = recipe.task.build()
    assert isinstance(task, TreeSearchTask)
    return task


def batches(recipe: Recipe, _stage: Stage, seed: int) -> Callable[[NDArray[np.int64]], Batch]:
    """Indices of training samples to a batch; every stage reads the same."""
    task = task_of(recipe)
    return lambda indices: task.encode(task.sample("train", indices, seed))


def language_model(recipe: Recipe, start: PreTrainedModel | None) -> PreTrainedModel:
    """A causal language model of the recipe's shape, with the weights of ``start`` or random ones."""
    model: PreTrainedModel = UnspokenForCausalLM._from_config(
        recipe.backbone_config(), attn_implementation=recipe.attention
    )
    if start is not None:
        model.load_state_dict(start.state_dict(), strict=True)
    return model


def build_model(recipe: Recipe, stage: Stage, start: PreTrainedModel | None) -> PreTrainedModel:
    """The stage's model with its starting weights.

    Args:
        start: the finished model of the stage it continues from; None for random weights.
    """
    if isinstance(stage.objective, NextToken):
        return language_model(recipe, start)
    return jepa.build_model(recipe, stage, start, max_latents=2 * task_of(recipe).answer_length)


def validator_of(recipe: Recipe, stage: Stage) -> Validator:
    """What is measured on the validation problems while a stage trains.

    ``score`` selects the checkpoint: exact match of whole routes in free generation, with the validation loss (never
    more than a fraction of one problem) to tell equals apart.
    """
    task, objective = task_of(recipe), stage.objective
    assert isinstance(objective, NextToken | SST | TalkerLoss)
    count = recipe.evaluation.validation_problems
    problems = task.sample("validation", np.arange(count))
    batch = task.encode(problems)
    below_root = siblings(task, problems)
    own = task.sample("validation", np.array(distributed.rank_slice(count)))

    @torch.no_grad()
    def judge(model: PreTrainedModel) -> dict[str, float]:
        with distributed.as_single_process():
            answers = answer(system_of(model), task, own, recipe.evaluation.batch_size)
            # The class's forward: the Trainer has wrapped the instance's in autocast, and readings are in float32.
            placed = moved(batch, model.device)
            outputs = type(model).forward(model, **objective.inputs(placed))
            loss, terms = objective(outputs, placed)
        exact = float(distributed.gather_rows(answers.correct).double().mean())
        reading = {"exact_match": exact, **{name: float(value) for name, value in terms.items()}}
        # With several possible targets no answer is right every time: the loss alone tells models apart.
        reading["score"] = (exact if task.config.targets == 1 else 0.0) - min(float(loss), 100.0) / (1000 * count)
        if isinstance(model, JepaReasonerModel):
            forced = moved(outputs.latents, CPU)[:, task.prompt_length - 1 : -1]
            steps = slice(1, task.config.depth)
            reading["nearest_row"] = float((model.nearest_row(forced) == task.answers(problems)).double().mean())
            reading["effective_rank"] = effective_rank(model.target_table)
            for kind, latents in (("forced", forced), ("rollout", distributed.gather_rows(answers.chain.latents))):
                if latents.shape[1] >= task.config.depth:
                    mixture = measure(latents[:, steps], model.target_table, below_root)
                    flat = {key: value for key, value in mixture.summary().items() if isinstance(value, float)}
                    reading |= {f"{kind}_{key}": value for key, value in flat.items()}
        return reading

    return judge
