"""What the stages of a run on plain text train, on what, and what is measured meanwhile.

Language model and Reasoner read texts without padding, all positions counting. The Talker learns to say single
sentences: the latents of a sentence that the Reasoner reads, and its tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from unspoken import distributed
from unspoken.evaluation.corruption import forced_chain, spoken
from unspoken.evaluation.texts import next_tokens
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.stages import SST, TalkerLoss
from unspoken.placement import moved
from unspoken.tasks import ProseTask
from unspoken.tasks.dataset import Batch
from unspoken.tasks.prose import Kind
from unspoken.training import jepa
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.trainer import Validator
from unspoken.training.trees import language_model


def task_of(recipe: Recipe) -> ProseTask:
    """The recipe's task."""
    task = recipe.task.build()
    assert isinstance(task, ProseTask)
    return task


def _kind(stage: Stage) -> Kind:
    """What a stage reads."""
    return "sentences" if isinstance(stage.objective, TalkerLoss) else "texts"


def batches(recipe: Recipe, stage: Stage, seed: int) -> Callable[[NDArray[np.int64]], Batch]:
    """Indices of training samples to a batch."""
    task = task_of(recipe)
    return lambda indices: task.encode(task.sample("train", indices, seed, kind=_kind(stage)))


def build_model(recipe: Recipe, stage: Stage, start: PreTrainedModel | None) -> PreTrainedModel:
    """The stage's model with its starting weights.

    Args:
        start: the finished model of the stage it continues from; None for random weights.
    """
    if isinstance(stage.objective, NextToken):
        return language_model(recipe, start)
    return jepa.build_model(recipe, stage, start, max_latents=recipe.evaluation.max_latents)


def validator_of(recipe: Recipe, stage: Stage) -> Validator:
    """What is measured on validation rows while a stage trains.

    ``score`` selects the checkpoint: of a language model the loss; of a Reasoner the share of latents whose nearest
    table row is the next token; of a Talker the share of tokens that it says right, with nothing but the latents to go
    by. The loss, never more than a fraction of one row, tells equals apart.
    """
    task, objective, settings = task_of(recipe), stage.objective, recipe.evaluation
    assert isinstance(objective, NextToken | SST | TalkerLoss)
    batch = task.encode(task.first("validation", settings.validation_problems, kind=_kind(stage)))
    rows = len(batch["input_ids"])
    share = distributed.rank_slice(rows)
    own = {name: values[share.start : share.stop] for name, values in batch.items()}

    @torch.no_grad()
    def judge(model: PreTrainedModel) -> dict[str, float]:
        if isinstance(model, JepaReasonerModel):
            assert isinstance(objective, SST)
            with distributed.as_single_process():
                reading = jepa.reading(model, objective, batch)
            return reading | {"score": reading["nearest_row"] - min(reading["sst_loss"], 100.0) / (1000 * rows)}
        if isinstance(model, JepaReasonerForCausalLM):
            chain, tokens = forced_chain(model.reasoner, own, settings.batch_size)
            said = spoken(model, chain, None, settings.batch_size)
            words = distributed.gather_rows(chain.mask & (tokens != model.config.end_id))
            right = float(distributed.gather_rows(said == tokens)[words].double().mean())
            with distributed.as_single_process():
                # The class's forward: the Trainer has wrapped the instance's in autocast, and readings are in float32.
                placed = moved(batch, model.device)
                loss = float(objective(type(model).forward(model, **objective.inputs(placed)), placed)[0])
            return {
                "token_accuracy": right,
                "talker_loss": loss,
                "score": right - min(loss, 100.0) / (1000 * rows),
            }
        read = {
            name: distributed.gather_rows(torch.from_numpy(values)).numpy()
            for name, values in next_tokens(model, own, settings.batch_size).items()
        }
        loss = float(read["loss"].mean())
        # A model that has diverged must not stop the page: nothing behind e^20 is worth telling apart.
        return {
            "token_accuracy": float(read["accuracy"].mean()),
            "perplexity": float(np.exp(min(loss, 20.0))),
            "score": -loss,
        }

    return judge
