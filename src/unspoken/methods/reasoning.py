"""Other ways for a finished model to reason than the one that it was trained for, asked for by name.

A recipe names them in ``evaluation.reasonings``; they are read without torch, which is imported when one is applied.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from unspoken.tasks.spans import END, OPEN

if TYPE_CHECKING:
    from unspoken.methods.method import Objective
    from unspoken.reasoning.system import System
    from unspoken.tasks.task import Traits


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """A way to reason that needs no training. Its fields are its keys in a recipe.

    Attributes:
        kind: names it.
    """

    kind: ClassVar[str]

    @property
    def title(self) -> str:
        """The name and what differs from the defaults, for tables."""
        values = [(field.name.replace("_", " "), getattr(self, field.name), field.default) for field in fields(self)]
        changed = [
            f"{name} {'none' if value in (None, '') else value}" for name, value, default in values if value != default
        ]
        return ", ".join([self.kind.replace("_", " "), *changed])

    def suits(self, objective: Objective, traits: Traits) -> bool:
        """Whether the finished model of a stage can reason in this way.

        Args:
            objective: what the stage learned.
            traits: of the task.
        """
        return objective.writes_tokens and traits.has_chain

    def applied(self, system: System) -> System:
        """The same model as it answers in this way.

        Args:
            system: as it was trained, with its text format.

        Raises:
            ValueError: this way makes no sense of the model.
        """
        raise NotImplementedError


class ChainMarkers(NamedTuple):
    """Tokens that open a chain, which may be none, and tokens that close it."""

    open: tuple[int, ...]
    end: tuple[int, ...]


def markers_of(system: System, texts: tuple[str, str] | None) -> ChainMarkers | None:
    """What stands around a chain: the given texts, what the folder records, or ``<think>`` and ``</think>``.

    Returns:
        None where nothing is given or recorded and the tokenizer has no such tokens.
    """
    from unspoken.reasoning.causal_lm import LatentGenerationConfig

    layout = system.texts.prompt_format
    if texts is not None:
        return ChainMarkers(*map(layout.encode, texts))
    recorded = LatentGenerationConfig.recorded(system.model)
    if recorded is not None:
        return ChainMarkers(recorded.open_ids, recorded.end_ids)
    if all(_knows(layout.tokenizer, marker) for marker in (OPEN, END)):
        return ChainMarkers(layout.opening, layout.markers.end)
    return None


def _knows(tokenizer: Any, token: str) -> bool:
    return tokenizer.convert_tokens_to_ids(token) not in (None, tokenizer.unk_token_id)
