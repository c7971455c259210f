"""A problem as token ids, the form in which tasks give problems to methods."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

# Texts around the chain of a problem that asks in words.
OPEN, END = "<think>", "</think>"


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

    A chain has two tokenisations: as one text, which explicit training and Latent-SFT read, and step by step, which
    Coconut replaces one after the other. Most tokenizers give the same tokens either way; one that merges letters
    across the border of two steps does not, and then both are stored.
    """

    prompt: tuple[int, ...]  # everything before the open marker
    steps: tuple[tuple[int, ...], ...]  # the explicit chain, step by step, without markers
    answer: tuple[int, ...]  # ends with the end-of-sequence token; empty where a model is to write it
    merged: tuple[int, ...] | None = None  # the chain tokenised as one text, where that differs from the steps joined

    @cached_property
    def chain(self) -> tuple[int, ...]:
        """The explicit chain as one text."""
        return tuple(token for step in self.steps for token in step) if self.merged is None else self.merged
