"""The phases of one row while it is decoded: its chain, the marker that closes it, its answer; then it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.reasoning.picking import Sample

if TYPE_CHECKING:
    from unspoken.reasoning.engine import LatentStep


@dataclass(frozen=True, kw_only=True)
class AnswerDecoding:
    """How an answer follows a chain.

    Raises:
        ValueError: no marker, or a cap below 1.
    """

    marker: tuple[int, ...]  # tokens that close the chain; they are appended by force, never sampled
    max_tokens: int  # cap of the answer after the marker, for each row
    end_ids: tuple[int, ...]  # tokens that end an answer
    pad_id: int  # fills answers after their end
    sample: Sample | None = None  # how tokens are chosen; None takes the most likely ones

    def __post_init__(self) -> None:
        if not self.marker or self.max_tokens < 1:
            raise ValueError(
                f"the marker has {len(self.marker)} tokens and max_tokens is {self.max_tokens}; both are at least 1"
            )


class Phase(IntEnum):
    """What a row makes of the next output of the stack."""

    CHAIN = 0  # a latent step
    MARKER = 1  # nothing: it reads the marker that closes its chain
    ANSWER = 2  # a token
    OVER = 3  # nothing, ever


@dataclass(kw_only=True, eq=False, slots=True)
class Row:
    """The state of one row, as far as the host must know it."""

    # max_latents to patience: when the chain ends, see `unspoken.reasoning.engine.StopRule`
    max_latents: int
    fixed: bool = False
    min_latents: int = 0
    continuation: tuple[int, ...] = ()
    patience: int = 0
    decoding: AnswerDecoding | None = None  # how the stack answers; where it is None the row is over with its chain
    key: int = 0  # of its prompt, for a method whose steps are random
    index: int = 0  # which of the rows that share ``decoding`` it is
    cancelled: bool = False  # nobody waits for the answer; the row leaves its decoder when rows are regrouped
    phase: Phase = field(init=False, default=Phase.CHAIN)
    # Of each latent step so far, whether it belongs to the chain.
    recorded: list[int] = field(init=False, default_factory=list)
    reason: StopReason = field(init=False)  # why the chain ended; before that, the reason if it reached its cap
    # The token that takes the place of the last latent step; None if nothing does.
    forced: int | None = field(init=False, default=None)
    tokens: list[int] = field(init=False, default_factory=list)  # the answer so far
    _certain_steps: int = field(init=False, default=0)
    _continuing: tuple[int, ...] = field(init=False, default=())
    _marker_tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.reason = StopReason.FIXED if self.fixed else StopReason.CAP
        if self.max_latents == 0:
            self._close_chain()

    @property
    def steps_left(self) -> int:
        """The most outputs of the stack that may still be read."""
        latents = self.max_latents - len(self.recorded) if self.phase is Phase.CHAIN else 0
        if self.decoding is None:
            return latents
        return latents + len(self.decoding.marker) - self._marker_tokens + self.decoding.max_tokens - len(self.tokens)

    def read_latent(self, done: int, recorded: int, certain: int = 0) -> bool:
        """Make a latent step, see `unspoken.reasoning.engine.LatentStep`.

        A chain ends for certainty in the place of the step that exhausts the patience.

        Returns:
            Whether it is fed next, as the last one under the cap is too; otherwise the marker comes next.
        """
        early = bool(done) and not self.fixed and len(self.recorded) < self.min_latents
        if early and not self._continuing:
            self._continuing = self.continuation
        self.forced, self._continuing = next(iter(self._continuing), None), self._continuing[1:]
        continues = self.fixed or early or self.forced is not None
        self._certain_steps = self._certain_steps + 1 if certain else 0
        exhausted = not done and 0 < self.patience <= self._certain_steps
        ended = not continues and bool(done or exhausted)
        self.recorded.append(int(continues or (recorded and not exhausted)))
        if ended:
            self.reason = StopReason.END if done else StopReason.CERTAIN
        if ended or len(self.recorded) == self.max_latents:
            self._close_chain()
        return not ended or self.decoding is None

    def read_marker(self) -> int:
        """The next token of the marker."""
        assert self.decoding is not None
        marker = self.decoding.marker
        self._marker_tokens += 1
        if self._marker_tokens == len(marker):
            self.phase = Phase.ANSWER
        return marker[self._marker_tokens - 1]

    def read_token(self, token: int) -> int:
        """Add a token to the answer."""
        decoding, tokens = self.decoding, self.tokens
        assert decoding is not None
        tokens.append(token)
        if token in decoding.end_ids or len(tokens) == decoding.max_tokens:
            self.phase = Phase.OVER
        return token

    def _close_chain(self) -> None:
        self.phase = Phase.OVER if self.decoding is None else Phase.MARKER


def chain_of(steps: Sequence[LatentStep], mask: Tensor, stop: Tensor) -> LatentChain:
    """The record of some steps, with mask ``[B, N]`` and reasons ``[B]``."""
    ids = [step.support_ids for step in steps if step.support_ids is not None]
    weights = [step.support_weights for step in steps if step.support_weights is not None]
    return LatentChain(
        latents=torch.stack([step.latent for step in steps], dim=1) * mask[:, :, None],
        mask=mask,
        stop=stop,
        support_ids=torch.stack(ids, dim=1) if ids else None,
        support_weights=torch.stack(weights, dim=1) if weights else None,
    )
