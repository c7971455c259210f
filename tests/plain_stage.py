"""Problems, contexts and models for what a stage takes, counts and needs, and how it answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tiny_models import END, PAD, VOCABULARY, WIDTH, tiny_language_model

from unspoken.methods.cost import Lengths, RowCost, Scores, StackPass
from unspoken.methods.method import Objective
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.reasoning.engine import StopRule
from unspoken.reasoning.system import System
from unspoken.tasks.spans import Spans

LENGTHS = Lengths(prompt=10, chain=12, end=2, answer=5, steps=4)
# Five tokens of prompt, steps of two, one and three, and four tokens of answer.
PROBLEM = Spans(prompt=(3, 4, 5, 6, 7), steps=((11, 12), (13,), (14, 15, 16)), answer=(21, 22, 23, 1))
CAPS: Any = SimpleNamespace(max_answer=7, max_latents=20)
# How `recording_model` answers as a system of the name "trained", but for what its settings change.
TRAINED: dict[str, Any] = {
    "name": "trained",
    "opening": (2,),
    "marker": (7, 6),
    "ends": (END,),
    "stop": StopRule(max_latents=5),
    "max_tokens": 8,
    "kind": "superposition",
    "table": VOCABULARY * WIDTH,
}
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


def facts_of_system(system: System) -> dict[str, Any]:
    """How a model answers, in plain values; what a system has by default is left out."""
    defaults = {"prefilled": 0, "replaced": 0, "scorings": 1, "step_flops": 0}
    named = {name: getattr(system, name) for name in defaults}
    return {
        "name": system.name,
        "opening": system.opening,
        "marker": system.speaker.marker,
        "ends": system.speaker.end_ids,
        "stop": system.stop,
        "max_tokens": system.max_tokens,
        "kind": system.chain_kind,
        "table": system.table_size,
        **{name: value for name, value in named.items() if value != defaults[name]},
    }


def recording_model(**settings: Any) -> Any:
    """A causal language model whose folder records how it reasons: by default in superpositions."""
    model = tiny_language_model("llama")
    given = {"open_ids": (2,), "end_ids": (7, 6), "top_k": 10, "max_latents": 5, **settings}
    LatentGenerationConfig(**given).attach(model)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    return model
