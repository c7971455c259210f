"""Measurements on validation problems while a stage trains; their ``score`` selects the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from unspoken import distributed
from unspoken.analysis.mixture import Siblings, measure, siblings
from unspoken.chain import LatentChain, StopReason
from unspoken.evaluation.examples import first_examples
from unspoken.evaluation.seeds import capped
from unspoken.evaluation.teacher_forcing import answer_tokens, decoded, forced_chain, next_tokens
from unspoken.methods.catalogue import systems
from unspoken.methods.method import Batch, Context
from unspoken.placement import CPU, moved
from unspoken.reasoning.engine import RowTargets
from unspoken.reasoning.system import System
from unspoken.tasks.tree_search import searches_trees

Validator = Callable[[PreTrainedModel], dict[str, Any]]
_WORST = 100.0  # larger losses count as this one
_EXAMPLES = 2  # problems whose chains are written out


def validator_of(context: Context, count: int) -> Validator:
    """Measures a model of a stage on the first ``count`` validation problems.

    Where problems have answers, the model answers them freely. ``score`` is then the rate of right answers or symbols;
    where the task has no explicit chain, the validation loss breaks ties, with less weight than one answer or symbol.
    Running text has no answers; its ``score`` measures the prediction of tokens, see `_predictions`.

    Where the model writes chains of latents that are made of tokens, ``chains`` has those of the first two problems
    (`unspoken.evaluation.examples`).
    """
    if context.traits.continues:
        return _predictions(context, count)
    task, objective = context.task, context.lineage.objective
    held_out = task.size("validation")
    if held_out is not None and count > held_out:
        raise ValueError(
            f"evaluation.validation_problems is {count}, but the data holds {held_out} out; lower it, or raise "
            "task.validation_rows"
        )
    problems = context.sample(np.arange(count), "validation")
    own = problems.select(np.array(distributed.rank_slice(count)))
    asked = _prompted(context, own)
    batches = [] if context.has_chain else _batches(context, count)

    @torch.no_grad()
    def validate(model: PreTrainedModel) -> dict[str, Any]:
        system = system_of(model, context)
        with distributed.as_single_process():
            given = _answers(system, model, context, asked)
        correct = distributed.gather_rows(given.correct).double()
        reading: dict[str, Any] = {"exact_match": float(correct.mean())}
        size, right = count, reading["exact_match"]
        if given.per_symbol is not None and context.traits.selected_by == "symbols":
            per_symbol = distributed.gather_rows(given.per_symbol)
            right = reading["symbols"] = float(per_symbol.double().mean())
            size = per_symbol.numel()
        if given.free and context.has_chain:
            chain = given.chain
            reading["ended"] = float(distributed.gather_rows(chain.stop == StopReason.END).double().mean())
            reading["latents"] = float(distributed.gather_rows(chain.lengths).double().mean())
        rows = partial(task.rows, problems, context.prompt_format)
        with distributed.as_single_process():
            reading |= objective.readings(model, context, rows)
        if context.has_chain:
            reading["score"] = right
        else:
            loss, terms = _loss(model, context, batches)
            reading |= terms
            # With several possible targets no answer is right every time, so the loss alone ranks models.
            certain = context.traits.selected_by != "loss"
            reading["score"] = (right if certain else 0.0) - min(loss, _WORST) / (1000 * size)
        if system.targets is not None and system.silent and searches_trees(task):
            free = distributed.gather_rows(given.chain.latents)
            if (forced := objective.forced_latents(model, rows())) is not None:
                reading |= _mixtures(system.targets, siblings(task, problems), forced, free)
        if given.free and (chains := _first_chains(system, context, own, given)):
            reading["chains"] = chains
        return reading

    return validate


def _first_chains(system: System, context: Context, problems: Any, given: _Answers) -> list[dict[str, Any]]:
    """The chains of the first problems, written out."""
    some = np.arange(min(_EXAMPLES, len(problems)))
    return first_examples(
        system,
        context.task,
        problems.select(some),
        context.prompt_format,
        chain=given.chain.select(torch.from_numpy(some)),
        tokens=given.first_tokens[: len(some)],
        correct=given.correct[: len(some)],
    )


def system_of(model: PreTrainedModel, context: Context) -> System:
    """A stage's model as it answers the task's problems."""
    objective, traits = context.lineage.objective, context.traits
    end, pad = context.tokenizer.eos_token_id, context.tokenizer.pad_token_id
    cap = traits.answer_cap or objective.answer_tokens(context)
    named = {"stage": context.lineage.name, "max_answer": cap, "end_id": end, "pad_id": pad}
    system = capped(systems(objective.answering(model), **named)[0], traits)
    return replace(system, sampling=context.sampling)


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """Answers to some problems."""

    chain: LatentChain  # of all of them
    # correct, per_symbol: see `unspoken.tasks.task.Grades`
    correct: Tensor
    per_symbol: Tensor | None
    free: bool  # the model wrote its chains itself
    first_tokens: Tensor  # ``[b, M]``, of the first batch


def _prompted(context: Context, problems: Any) -> list[tuple[Any, tuple[Tensor, Tensor]]]:
    """Problems a batch at a time, each batch with its prompts ``[B, T]`` and their mask."""
    starts = range(0, len(problems), context.batch_size)
    batches = [problems.select(np.arange(len(problems))[start : start + context.batch_size]) for start in starts]
    return [(some, context.task.prompts(some, context.prompt_format)) for some in batches]


def _answers(
    system: System, model: PreTrainedModel, context: Context, asked: list[tuple[Any, tuple[Tensor, Tensor]]]
) -> _Answers:
    """Free answers, a batch at a time."""
    objective, task, pad = context.lineage.objective, context.task, context.tokenizer.pad_token_id
    chains, correct, symbols, free, first_tokens = [], [], [], True, None
    for some, prompts in asked:
        given = objective.teacher_chain(model, context, some)
        free = free and given is None
        answer = system.respond(*prompts, chain=given)
        tokens = answer.filled(pad)
        first_tokens = tokens if first_tokens is None else first_tokens
        if context.has_chain:
            grades = task.grade(context.prompt_format.decode(tokens), some)
        else:
            # The symbols that the latents stand for are not written, and not graded.
            grades = task.grade(torch.nn.functional.pad(tokens, (system.replaced, 0), value=pad), some)
        chains.append(answer.chain)
        if grades.per_symbol is not None:
            symbols.append(grades.per_symbol[:, system.replaced :])
        correct.append(symbols[-1].all(dim=1) if symbols and system.replaced else grades.correct)
    assert first_tokens is not None
    return _Answers(
        chain=LatentChain.concatenate(chains),
        correct=torch.cat(correct),
        per_symbol=torch.cat(symbols) if symbols else None,
        free=free,
        first_tokens=first_tokens,
    )


def _batches(context: Context, count: int) -> list[tuple[int, Batch]]:
    """The validation problems as the stage's loss reads them, a batch at a time, with their number."""
    make = context.lineage.objective.collate(context, "validation")
    pieces = np.split(np.arange(count), range(context.batch_size, count, context.batch_size))
    return [(len(indices), make(indices)) for indices in pieces]


def _loss(model: PreTrainedModel, context: Context, batches: list[tuple[int, Batch]]) -> tuple[float, dict[str, float]]:
    """Mean loss over the validation problems, and its terms, in float32."""
    # The class's forward: the Trainer has wrapped the instance's in autocast.
    forward = partial(type(model).forward, model)
    losses, terms = [], []
    for _, batch in batches:
        with distributed.as_single_process():
            loss, named = context.lineage.objective.loss(forward, moved(batch, model.device))
        losses.append(float(loss))
        terms.append({name: float(value) for name, value in named.items()})
    sizes = [size for size, _ in batches]
    means = {name: float(np.average([term[name] for term in terms], weights=sizes)) for name in terms[0]}
    return float(np.average(losses, weights=sizes)), means


def _mixtures(targets: RowTargets, right: Siblings, forced: Tensor, free: Tensor) -> dict[str, float]:
    """Whether latents are mixtures of the right row and its sibling, teacher-forced and in free rollout."""
    steps = slice(1, right.right.shape[1] + 1)
    reading: dict[str, float] = {}
    for kind, latents in (("forced", forced), ("rollout", free)):
        if latents.shape[1] >= steps.stop:
            summary = measure(moved(latents, CPU)[:, steps], targets.target_table, right).summary()
            reading |= {f"{kind}_{key}": value for key, value in summary.items() if isinstance(value, float)}
    return reading


def _predictions(context: Context, count: int) -> Validator:
    """Of running text: prediction of each token from the right tokens before it.

    ``score`` is the negative loss of a language model; of a Reasoner, the rate of latents whose nearest row is the next
    token; of a Talker, the rate of tokens that it decodes right from the latents alone. The loss breaks ties, with less
    weight than one row.
    """
    objective, size = context.lineage.objective, context.task.size("validation")
    batch: Batch = objective.collate(context, "validation")(np.arange(count if size is None else min(count, size)))
    rows = len(batch["input_ids"])
    rank_rows = distributed.rank_slice(rows)
    own = {name: values[rank_rows.start : rank_rows.stop] for name, values in batch.items()}

    @torch.no_grad()
    def validate(model: PreTrainedModel) -> dict[str, float]:
        system = system_of(model, context)
        if system.targets is None:
            means = {
                name: float(distributed.gather_rows(torch.from_numpy(values)).mean())
                for name, values in next_tokens(system, own, context.batch_size).items()
            }
            # A model that has diverged must not overflow: perplexities beyond e^20 are all alike.
            perplexity = math.exp(min(means["loss"], 20.0))
            return {"token_accuracy": means["accuracy"], "perplexity": perplexity, "score": -means["loss"]}
        if system.has_talker:
            chain, tokens = forced_chain(system, own, context.batch_size), answer_tokens(own)
            given = decoded(system, own, chain, None, context.batch_size).tokens
            counted = distributed.gather_rows(chain.mask & (tokens != context.tokenizer.eos_token_id))
            right = float(distributed.gather_rows(given == tokens)[counted].double().mean())
            reading = {"token_accuracy": right}
        else:
            with distributed.as_single_process():
                reading = objective.readings(model, context, lambda: batch)
            right = reading["nearest_row"]
        with distributed.as_single_process():
            # The class's forward: the Trainer has wrapped the instance's in autocast.
            loss, terms = objective.loss(partial(type(model).forward, model), moved(batch, model.device))
        reading |= {name: float(value) for name, value in terms.items()}
        return reading | {"score": right - min(float(loss), _WORST) / (1000 * rows)}

    return validate
