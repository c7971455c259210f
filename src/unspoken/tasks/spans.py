"""A problem as token ids: what a task gives to a method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Markers:
    """Token ids of ``<think>`` and ``</think>``, one or several each.

    Raises:
        ValueError: a marker without tokens.
    """

    open: tuple[int, ...]
    end: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("open", "end"):
            if not getattr(self, name):
                raise ValueError(f"the {name} marker has no tokens; give the ids that the tokenizer makes of it")


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Token ids of one problem.

    Attributes:
        prompt: everything before the open marker.
        chain: the explicit chain of thought, without markers.
        answer: ends with the end-of-sequence token; empty where a model is to write it.
    """

    prompt: tuple[int, ...]
    chain: tuple[int, ...]
    answer: tuple[int, ...]
