"""A problem, a context and models that have sizes and nothing else, for what a stage takes, counts and needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from unspoken.methods.cost import Lengths, RowCost, Scores, StackPass
from unspoken.methods.method import Objective
from unspoken.tasks.spans import Spans

LENGTHS = Lengths(prompt=10, chain=12, end=2, answer=5, steps=4)
# Five tokens of prompt, steps of two, one and three, and four tokens of answer.
PROBLEM = Spans(prompt=(3, 4, 5, 6, 7), steps=((11, 12), (13,), (14, 15, 16)), answer=(21, 22, 23, 1))
CAPS: Any = SimpleNamespace(max_answer=7, max_latents=20)
FACTS = (
    "steps_needed",
    "chain_needed",
    "first_rows",
    "reads_in_order",
    "writes_data",
    "trains_talker",
    "cuts_blocks",
    "answers_from_latents",
    "recomputes",
)


def sized_model(**others: Any) -> Any:
    """A causal language model, which is also the decoder of another one, whose stack and head are names."""
    causal = {"base_model": "stack", "get_output_embeddings": lambda: SimpleNamespace(weight="head")}
    return SimpleNamespace(decoder=SimpleNamespace(**causal), **causal, **others)


def one_pass(tokens: float, *, made: float, supervised: float) -> RowCost:
    """One pass with a gradient, and the scores of some of its positions."""
    return RowCost(
        tokens=tokens,
        passes=(StackPass(stack="stack", positions=tokens),),
        scores=(Scores(head="head", made=made, supervised=supervised),),  # type: ignore[arg-type]
    )


def facts_of(kind: type[Objective]) -> set[str]:
    """What is true of all stages of a kind, see `Objective`."""
    return {name for name in FACTS if getattr(kind, name)}
