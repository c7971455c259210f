"""What the stages of a grammar recipe train, on what, and what is measured meanwhile.

Axes: B strings, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from unspoken import distributed
from unspoken.evaluation.robustness import hits
from unspoken.evaluation.strings import continued, continuer_of
from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.coconut.objective import batch_of
from unspoken.methods.coconut.stages import Coconut, StepSpans
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.stages import SST, TalkerLoss
from unspoken.placement import moved
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.tasks import GrammarProblems, GrammarTask
from unspoken.tasks.dataset import Batch
from unspoken.tasks.grammar import EOS, PAD
from unspoken.training import jepa
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.trainer import Validator
from unspoken.training.trees import language_model

# Coconut's latents stand between two of these: no string has it inside, so it needs no token of its own.
_MARKER = (EOS,)


def task_of(recipe: Recipe) -> GrammarTask:
    """The recipe's task."""
    task = recipe.task.build()
    assert isinstance(task, GrammarTask)
    return task


# --- data --------------------------------------------------------------------------------------------------------


def batches(recipe: Recipe, stage: Stage, seed: int, split: str = "train") -> Callable[[NDArray[np.int64]], Batch]:
    """Indices of samples to a batch."""
    task, objective = task_of(recipe), stage.objective

    def make(indices: NDArray[np.int64]) -> Batch:
        problems = task.sample(split, indices, seed)
        if isinstance(objective, Coconut):
            return coconut_batch(task, problems, objective)
        batch: Batch = task.encode(problems)
        if isinstance(objective, TalkerLoss):
            batch["answer_mask"] = stretches(problems, indices, seed, task.config.steps)
        return batch

    return make


def lengths(recipe: Recipe, seed: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """Indices of training samples to the lengths of their strings, in symbols."""
    task = task_of(recipe)
    return lambda indices: task.sample("train", indices, seed).length_B


def stretches(problems: GrammarProblems, indices: NDArray[np.int64], seed: int, most: int) -> Bool[Tensor, "B T"]:
    """What a Talker learns to say: from each string 1 to ``most`` tokens in a row, anywhere behind the first.

    Chains of every length that is asked for later are among them, and the end of the string is a token like others.
    The stretch of a string is a function of seed and index, as the string is.
    """
    real_B = problems.length_B + 1
    mask = np.zeros((len(problems), problems.ids_BT.shape[1] + 1), dtype=np.bool_)
    for row, (index, real) in enumerate(zip(indices.tolist(), real_B.tolist(), strict=True)):
        generator = np.random.default_rng([seed, index])
        count = int(generator.integers(1, most + 1))
        first = mask.shape[1] - real + int(generator.integers(1, real - count + 1))
        mask[row, first : first + count] = True
    return torch.from_numpy(mask)


def coconut_batch(task: GrammarTask, problems: GrammarProblems, objective: Coconut) -> Batch:
    """Prompts whose next symbols are left out, a latent for each, and the symbols behind those (section 6.3)."""
    rows = []
    for ids, length, prompt in zip(problems.ids_BT, problems.length_B, problems.prompt_B, strict=True):
        string = tuple(ids[len(ids) - length :].tolist())
        symbols = string[prompt : prompt + task.config.steps]
        left_out, answer = symbols[: objective.replaced], symbols[objective.replaced :]
        spans = StepSpans(prompt=string[:prompt], steps=tuple((symbol,) for symbol in left_out), answer=answer)
        rows.append(objective.row(spans, _MARKER, _MARKER))
    return {**batch_of(rows, PAD)}


# --- models ------------------------------------------------------------------------------------------------------


def build_model(recipe: Recipe, stage: Stage, start: PreTrainedModel | None) -> PreTrainedModel:
    """The stage's model with its starting weights.

    Args:
        start: the finished model of the stage it continues from; None for random weights.
    """
    objective = stage.objective
    if isinstance(objective, SST | TalkerLoss):
        return jepa.build_model(recipe, stage, start, max_latents=task_of(recipe).config.steps)
    model = language_model(recipe, start)
    if not isinstance(objective, Coconut):
        return model
    thinker = CoconutModel._from_config(model.config, attn_implementation=recipe.attention)
    thinker.start_from(model)
    settings = LatentGenerationConfig(
        open_ids=_MARKER, end_ids=_MARKER, feed="hidden", max_latents=objective.latents, fixed=True
    )
    settings.attach(thinker.decoder)
    thinker.decoder.generation_config.eos_token_id = EOS
    thinker.decoder.generation_config.pad_token_id = PAD
    return thinker


# --- measuring while training ------------------------------------------------------------------------------------


def validator_of(recipe: Recipe, stage: Stage) -> Validator:
    """What is measured on the validation strings while a stage trains.

    ``score`` selects the checkpoint: accuracy of the symbols in free generation, with the validation loss (never more
    than a fraction of one symbol) to tell equals apart. ``valid`` is the share of continuations that begin some string
    of the language; Coconut leaves symbols out, so its continuations cannot be parsed.
    """
    task, objective, settings = task_of(recipe), stage.objective, recipe.evaluation
    assert isinstance(objective, NextToken | SST | TalkerLoss | Coconut)
    indices = np.arange(settings.validation_problems)
    problems = task.sample("validation", indices)
    prompts, right = task.prompts(problems), task.answers(problems)
    make = batches(recipe, stage, 0, "validation")
    parts = [make(indices[at : at + settings.batch_size]) for at in range(0, len(indices), settings.batch_size)]
    sizes = [len(part["input_ids"]) for part in parts]
    rows = distributed.rank_slice(len(indices))
    own = {name: values[rows.start : rows.stop] for name, values in prompts.items()}

    @torch.no_grad()
    def judge(model: PreTrainedModel) -> dict[str, float]:
        one = continuer_of(model, name=stage.name)
        with distributed.as_single_process():
            mine = continued(one, own, right.shape[1] - one.unsaid, settings.batch_size)[1]
        said = distributed.gather_rows(mine)
        found = hits(said, right[:, one.unsaid :])
        losses, terms = [], []
        for part in parts:
            with distributed.as_single_process():
                # The class's forward: the Trainer has wrapped the instance's in autocast, and readings are in float32.
                placed = moved(part, model.device)
                loss, named = objective(type(model).forward(model, **objective.inputs(placed)), placed)
            losses.append(float(loss))
            terms.append({name: float(value) for name, value in named.items()})
        reading = {"exact_match": float(found.all(axis=1).mean()), "symbols": float(found.mean())}
        if not one.unsaid:
            reading["valid"] = float(task.valid(said, problems).double().mean())
        if isinstance(model, JepaReasonerModel):
            assert isinstance(objective, SST)
            with distributed.as_single_process():
                reading |= jepa.reading(model, objective, parts[0])
        reading |= {name: float(np.average([term[name] for term in terms], weights=sizes)) for name in terms[0]}
        lost = min(float(np.average(losses, weights=sizes)), 100.0)
        reading["score"] = reading["symbols"] - lost / (1000 * found.size)
        return reading

    return judge
