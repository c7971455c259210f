"""A chain of latents as columns of tokens, above the pieces of the explicit chain at the same steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar

from unspoken.draw.formats import count

SHOWN_STEPS = 35  # of a chain that ran on to its cap nothing more is learned
_SPACES = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The chain of one problem."""

    key: str = ""  # of the chain in its section; a latent is marked wherever the latent of its name is drawn
    # title, remark: above it
    title: str
    remark: str
    label: str  # what it is, for a reader who does not see it
    question: str
    response: str
    answer: str
    # Of each latent its ``tokens``, pairs of text and weight, and its ``entropy`` in nats, None without a distribution.
    steps: Sequence[Mapping[str, Any]]
    pieces: Sequence[str]  # of the explicit chain; none where it was not cut
    decoded: Sequence[str] = ()  # the token that is written from each latent; none where latents are not decoded
    most: float  # entropy of the highest bar
    template: ClassVar[str] = "chain"

    @property
    def columns(self) -> list[tuple[Mapping[str, Any] | None, set[str], list[tuple[str, bool]]]]:
        """Each latent, None after the end of the chain, its tokens that the piece has too, and that piece."""
        every = list(zip_longest(self.steps, self.pieces))[:SHOWN_STEPS]
        return [
            (step, *_shared([text for text, _ in step["tokens"]] if step else [], piece or "")) for step, piece in every
        ]

    def latent(self, step: int) -> str:
        """The name of a latent; empty where it is drawn nowhere else."""
        return latent_name(self.key, step) if self.key else ""

    @property
    def words(self) -> list[tuple[str, str]]:
        """What is written from each latent, with the name of the latent."""
        return [(visible(text), self.latent(at)) for at, text in enumerate(self.decoded[:SHOWN_STEPS])]

    @property
    def left_out(self) -> str:
        """How much is not drawn."""
        more = max(len(self.steps), len(self.pieces)) - SHOWN_STEPS
        return f"and {count(more, 'more step')}" if more > 0 else ""


def latent_name(chain: str, step: int) -> str:
    """By which a latent is known in every drawing of its section."""
    return f"{chain}.{step}"


def visible(token: str) -> str:
    """A token with its white space made visible."""
    return token.translate(_SPACES) or "∅"


def _shared(tokens: Sequence[str], piece: str) -> tuple[set[str], list[tuple[str, bool]]]:
    """The tokens that occur in a piece of the explicit chain, and the piece in parts, those tokens marked.

    A token occurs where it neither begins nor ends inside a word or number: there is no 1 in 18.
    """
    patterns = {token: _bounded(token.strip()) for token in tokens if token.strip()}
    shared = {token for token, pattern in patterns.items() if re.search(pattern, piece)}
    # Of tokens that begin at one character the longest is marked.
    longest_first = sorted((patterns[token] for token in shared), key=len, reverse=True)
    pieces, end = [], 0
    for match in re.finditer("|".join(longest_first), piece) if shared else ():
        pieces += [(piece[end : match.start()], False), (match[0], True)]
        end = match.end()
    return shared, [(text, marked) for text, marked in (*pieces, (piece[end:], False)) if text]


def _bounded(token: str) -> str:
    before = r"(?<![^\W_])" if token[0].isalnum() else ""
    after = r"(?![^\W_])" if token[-1].isalnum() else ""
    return before + re.escape(token) + after
