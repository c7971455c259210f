"""Whether problems out of files fit a run's tokenizer, models and caps, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from textwrap import shorten
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from unspoken.methods.method import Context
from unspoken.tasks.dataset import GeneratedDataset
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.spans import END, Spans
from unspoken.training.backbones import positions_in_a_table
from unspoken.training.context import context_of
from unspoken.training.recipe import Recipe
from unspoken.training.validation import system_of

_AT_ONCE = 1000  # problems that are tokenised in one call
_MOST_MARKED = 10_000  # training problems that are searched for the end marker's first token


def name_of(problem: ReasoningProblem) -> str:
    """A problem as a message names it."""
    return repr(shorten(problem.question, 60, placeholder=" ..."))


def answered_splits(recipe: Recipe) -> dict[str, int]:
    """Splits whose problems a run answers, and how many of each."""
    task, evaluation = recipe.task.build(), recipe.evaluation
    wanted = {"validation": evaluation.validation_problems, **dict.fromkeys(task.tests, evaluation.problems)}
    return {split: min(count, task.size(split) or count) for split, count in wanted.items()}


def _problems(context: Context, split: str, count: int) -> Iterator[tuple[ReasoningProblem, Spans]]:
    """The first problems of a split with their tokens."""
    for first in range(0, count, _AT_ONCE):
        problems = context.sample(np.arange(first, min(first + _AT_ONCE, count)), split)
        yield from zip(problems, context.task.spans(problems, context.prompt_format), strict=True)


def require_written_chains(recipe: Recipe) -> None:
    """Refuse a tokenizer whose end marker begins with a token that occurs in a chain: generation would stop there.

    Raises:
        ValueError: names the token and a problem.
    """
    context = context_of(recipe, recipe.stages[0])
    if not recipe.task.traits.from_files or not context.has_chain:
        return
    if not any(stage.objective.ends_at_marker for stage in recipe.stages):
        return
    end = context.markers.end[0]
    for problem, row in _problems(context, "train", min(_MOST_MARKED, context.task.size("train") or 0)):
        if end in row.chain:
            token = context.tokenizer.convert_ids_to_tokens(end)
            raise ValueError(
                f"the first token of the end marker {END!r}, {token!r}, also occurs in the chain of "
                f"{name_of(problem)}, so generation would stop there; add the markers to the tokenizer as single "
                "tokens, or use another model"
            )


def beyond_caps(recipe: Recipe) -> list[str]:
    """Lines about right answers and explicit chains that are longer than the caps of ``evaluation``."""
    context = context_of(recipe, recipe.stages[0])
    if not recipe.task.traits.from_files or not context.has_chain:
        return []
    lines, writes = [], any(stage.objective.writes_tokens for stage in recipe.stages)
    for split, count in answered_splits(recipe).items():
        rows = [*_problems(context, split, count)]
        for what, key, cap, lengths in (
            ("right answers", "max_answer", context.max_answer, [len(row.answer) for _, row in rows]),
            ("chains", "max_latents", context.max_latents, [len(row.chain) for _, row in rows if writes]),
        ):
            longer = [number for number, length in enumerate(lengths) if length > cap]
            if longer:
                longest = max(longer, key=lengths.__getitem__)
                lines.append(
                    f"{split}: {len(longer):,} of {count:,} {what} are longer than evaluation.{key} {cap}, so no model "
                    f"can write them; the longest has {lengths[longest]} tokens, of {name_of(rows[longest][0])}"
                )
    return lines


def require_room(model: PreTrainedModel, context: Context, data: GeneratedDataset, splits: Mapping[str, int]) -> None:
    """Refuse problems out of files that a stage's model has too few positions for, before it is trained.

    Args:
        model: with its starting weights.
        data: what the stage reads.
        splits: problems that the model is to answer, of each split.

    Raises:
        ValueError: names the problem.
    """
    if not context.traits.from_files or not context.has_chain:
        return
    table = positions_in_a_table(model)
    if table is not None:
        _read_long_rows(context, data, table)
    system = system_of(model, context)
    if system.positions is None:
        return
    further = system.steps_after_prompt(system.max_tokens)
    for split, count in splits.items():
        for problem, row in _problems(context, split, count):
            if len(row.prompt) + further > system.positions:
                raise ValueError(
                    f"the prompt of the {split} problem {name_of(problem)} has {len(row.prompt)} tokens, and up to "
                    f"{further} further steps do not fit the {system.positions} positions of {type(model).__name__}; "
                    "leave the problem out, or lower evaluation.max_latents or max_answer"
                )


def beyond_positions(recipe: Recipe) -> list[str]:
    """A line about training problems that are longer than any text that a pretrained backbone has read."""
    context = context_of(recipe, recipe.stages[0])
    limit = getattr(context.backbone_config(), "max_position_embeddings", None)
    if not (context.pretrained and recipe.task.traits.from_files and context.has_chain and limit):
        return []
    problems: Any = context.sample(np.arange(context.task.size("train") or 0))
    longest_of = _longest(context)
    problems = problems.select([number for number, one in enumerate(problems) if longest_of(one) > limit])
    rows = context.task.spans(problems, context.prompt_format)
    lengths = [len(row.prompt) + len(row.chain) + len(row.answer) for row in rows]
    longer = [number for number, length in enumerate(lengths) if length > limit]
    if not longer:
        return []
    longest = max(longer, key=lengths.__getitem__)
    return [
        f"train: {len(longer):,} problems are longer than the {limit:,} positions that {recipe.backbone} was trained "
        f"with; the longest has {lengths[longest]:,} tokens, {name_of(problems[longest])}"
    ]


def _longest(context: Context) -> Callable[[ReasoningProblem], int]:
    """The most positions that a problem can take: no token is shorter than a byte, and no latent than a token."""
    around = len(context.prompt_format.prompt("?")) + len(context.markers.open) + len(context.markers.end)

    def longest(problem: ReasoningProblem) -> int:
        text = problem.question + 2 * "".join(problem.chains[:1])
        text += problem.solution or f"\\boxed{{{problem.answer}}}"
        return around + len(text.encode()) + 1

    return longest


def _read_long_rows(context: Context, data: GeneratedDataset, table: int) -> None:
    """Make every row that may be longer than a table of positions, which the data then refuses."""
    objective, longest_of = context.lineage.objective, _longest(context)
    positions = np.arange(min(len(data), 2 * (context.task.size("train") or len(data))))
    for some in np.split(positions, range(_AT_ONCE, len(positions), _AT_ONCE)):
        problems: Any = context.sample(objective.rows_of(some + data.first, context))
        for position, problem in zip(some.tolist(), problems, strict=True):
            if longest_of(problem) > table:
                try:
                    data.make(np.array([position + data.first]))
                except ValueError as error:
                    raise ValueError(f"the training problem {name_of(problem)}: {error}") from None
