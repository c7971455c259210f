"""The generation engine: one loop that writes a chain for every method.

A method says how a prompt becomes vectors, what one output of the stack means, and when a row is done. The engine
does what is common: the cache, positions of left-padded rows, stopping row by row, and the record. A method that speaks
with the stack it thinks with goes on in the same loop and the same cache: each row is thinking, closing its chain with
the end marker, answering, or done, whatever its neighbours are.

Axes: B batch, T prompt tokens, N latent steps, M spoken tokens, D latent width, K entries of a distribution over the
vocabulary, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.chain import LatentChain, StopReason
from unspoken.placement import moved
from unspoken.reasoning.cache import reserved_cache


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When reasoning ends.

    Attributes:
        max_latents: the cap. A row that meets it before its method says "done" is reported as `StopReason.CAP`.
            Zero is the floor without a silent part, for methods that can speak without one.
        fixed: write exactly ``max_latents`` steps in every row, whatever the method says.
    """

    max_latents: int
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.max_latents < 0:
            raise ValueError(f"max_latents is {self.max_latents}; it cannot be negative")


@dataclass(frozen=True, kw_only=True)
class Thought:
    """One step of silent reasoning, for a whole batch.

    Attributes:
        latent: what the chain records.
        feed: what enters the first block next.
        done: rows for which this is the last step by the method's own rule.
        counts: rows in which the step belongs to the chain; None means all. A method whose end is a marker, not a
            thought, leaves the step at which it stops out.
        support_ids, support_weights: the distribution over the vocabulary, where there is one.
    """

    latent: Float[Tensor, "B D"]
    feed: Float[Tensor, "B D"]
    done: Bool[Tensor, " B"]
    counts: Bool[Tensor, " B"] | None = None
    support_ids: Int[Tensor, "B K"] | None = None
    support_weights: Float[Tensor, "B K"] | None = None


# Changes a step (counted from 0) before it is recorded and fed back; the thought holds every row of the batch.
Disturbance = Callable[[Thought, int], Thought]


@runtime_checkable
class SilentReasoner(Protocol):
    """What a method supplies to the engine."""

    @property
    def stack(self) -> PreTrainedModel:
        """A decoder-only transformers model without its head."""
        ...

    def embed_prompt(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The prompt as vectors that the stack's first block accepts."""
        ...

    def think(self, hidden: Float[Tensor, "B D"]) -> Thought:
        """Read one output of the stack."""
        ...


class SpeakingReasoner(SilentReasoner, Protocol):
    """A method that also says its answer with the stack it thinks with."""

    def logits(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Scores of the next token."""
        ...


@dataclass(frozen=True, kw_only=True)
class Speech:
    """How the spoken part follows the silent one.

    Attributes:
        marker: tokens that close the chain; they are forced, never sampled.
        max_tokens: cap of the answer behind the marker, for each row.
        end_ids: tokens that end an answer.
        pad_id: fills spoken rows behind their end.
        pick: chooses the next token of some rows that have said equally many: of their indices ``[R]``, what they have
            said ``[R, M]`` and the scores ``[R, V]`` it makes ``[R]``.

    Raises:
        ValueError: no marker, or a cap below 1.
    """

    marker: tuple[int, ...]
    max_tokens: int
    end_ids: tuple[int, ...]
    pad_id: int
    pick: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda _rows, _said, scores: scores.argmax(dim=-1)

    def __post_init__(self) -> None:
        if not self.marker or self.max_tokens < 1:
            raise ValueError(
                f"the marker has {len(self.marker)} tokens and max_tokens is {self.max_tokens}; both are at least 1"
            )


@torch.no_grad()
def rollout(
    method: SilentReasoner,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | None,
    stop: StopRule,
    disturb: Disturbance | None = None,
) -> LatentChain:
    """Reason about a batch of prompts with a key-value cache.

    Args:
        method: see `SilentReasoner`.
        input_ids: prompts, padded on the left; on any device, to which the chain comes back.
        attention_mask: 1 for real tokens; None means no padding.
        stop: the cap, or a fixed length.
        disturb: changes every step on its way into chain and loop, for measurements of robustness.

    Returns:
        The chain. Rows that finish early go on being computed with the batch, but the record ignores them.

    Raises:
        ValueError: an empty prompt, padding on the right, or a prompt that leaves no room for ``max_latents``.
    """
    home = input_ids.device
    input_ids, attention_mask = moved((input_ids, attention_mask), method.stack.device)
    run = _Run(method, input_ids, attention_mask, stop.max_latents, disturb=disturb)
    for _ in range(stop.max_latents):
        thought = run.think(run.advance(), stop)
        if not bool(run.thinking.any()):
            break
        run.inputs = thought.feed[:, None]
    return moved(run.chain(stop), home)


@torch.no_grad()
def respond(
    method: SpeakingReasoner,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | None,
    stop: StopRule,
    speech: Speech,
    given: LatentChain | None = None,
    disturb: Disturbance | None = None,
) -> tuple[LatentChain, Int[Tensor, "B M"]]:
    """Reason, close the chain and answer, all from one cache.

    The prompt is never read twice: a row whose chain is over is fed the marker and then its own words, while other
    rows of the batch may still be thinking.

    Args:
        method: see `SpeakingReasoner`.
        input_ids, attention_mask, stop, disturb: as in `rollout`.
        speech: marker, cap and choice of words.
        given: a chain that stands behind the prompt already: with ``max_latents=0`` the answer is spoken from it alone.

    Returns:
        What was thought here (without ``given``), and the words behind the marker with their end, padded.

    Raises:
        ValueError: as `rollout`; the prompt must also leave room for marker and answer.
    """
    home = input_ids.device
    input_ids, attention_mask, given = moved((input_ids, attention_mask, given), method.stack.device)
    marker = torch.tensor(speech.marker, device=input_ids.device)
    run = _Run(method, input_ids, attention_mask, stop.max_latents + len(marker) + speech.max_tokens, given, disturb)
    batch = len(input_ids)
    # What a row says next: position in the marker, then in the answer; -1 while it thinks.
    at = torch.full((batch,), -1, device=input_ids.device)
    ends = torch.tensor(speech.end_ids, device=input_ids.device)
    said = torch.full((batch, speech.max_tokens), speech.pad_id, device=input_ids.device)
    silent = torch.zeros(batch, dtype=torch.bool, device=input_ids.device)
    used = torch.zeros_like(at)
    for step in range(stop.max_latents + len(marker) + speech.max_tokens):
        hidden = run.advance()
        feed = None
        if bool(run.thinking.any()):
            if step < stop.max_latents:
                feed = run.think(hidden, stop).feed
            else:
                run.thinking = torch.zeros_like(run.thinking)
        at = torch.where(run.thinking, at, at + 1)
        told = (at - len(marker)).clamp(0, speech.max_tokens - 1)
        answering = (at >= len(marker)) & ~silent
        words = marker[at.clamp(0, len(marker) - 1)]
        if bool(answering.any()):
            scores = method.logits(hidden)
            for length in told[answering].unique().tolist():
                rows = torch.where(answering & (told == length))[0]
                words[rows] = speech.pick(rows, said[rows, :length], scores[rows])
                said[rows, length] = words[rows]
            used = torch.where(answering, told + 1, used)
            silent = silent | (answering & (torch.isin(words, ends) | (told == speech.max_tokens - 1)))
            if bool(silent.all()):
                break
        run.inputs = method.embed_prompt(words[:, None])
        if feed is not None:
            run.inputs = torch.where(run.thinking[:, None, None], feed[:, None].to(run.inputs.dtype), run.inputs)
    return moved((run.chain(stop), said[:, : int(used.max())]), home)


class _Run:
    """The state of one batch: cache, positions, and what has been thought."""

    def __init__(
        self,
        method: SilentReasoner,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        room: int,
        given: LatentChain | None = None,
        disturb: Disturbance | None = None,
    ) -> None:
        rows, prompt_length = input_ids.shape
        room += 0 if given is None else given.mask.shape[1]
        if attention_mask is not None:
            real = attention_mask.bool()
            # A method may have put a marker behind the padding.
            if not bool(real[:, -1].all()) or bool((real[:, :-1] & ~real[:, 1:]).any()):
                raise ValueError("prompts must be padded on the left: a row of attention_mask has a zero behind a one")
            if bool(attention_mask.all()):
                attention_mask = None
        limit = getattr(method.stack.config, "max_position_embeddings", None)
        if prompt_length == 0 or (limit is not None and prompt_length + room > limit):
            raise ValueError(
                f"a prompt of {prompt_length} tokens with up to {room} further steps does not fit the model, "
                f"which has {limit} positions and needs at least one prompt token"
            )
        self.inputs = method.embed_prompt(input_ids)
        self.dtype = self.inputs.dtype
        self.ends: Tensor | None = None
        if given is not None:
            # Short chains leave holes behind them; positions do not count holes.
            attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            attention_mask = torch.cat([attention_mask, given.mask.to(attention_mask.dtype)], dim=1)
            self.inputs = torch.cat([self.inputs, given.latents.to(self.dtype)], dim=1)
            self.ends = prompt_length - 1 + given.lengths
        self.method = method
        self.disturb = disturb
        self.mask = attention_mask
        self.positions = None if attention_mask is None else (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        self.cache = reserved_cache(method.stack.config, prompt_length + room)
        self.thoughts: list[Thought] = []
        self.counted: list[Tensor] = []
        self.thinking = torch.ones(rows, dtype=torch.bool, device=input_ids.device)
        self.reason = torch.full((rows,), int(StopReason.CAP), device=input_ids.device)

    def advance(self) -> Tensor:
        """One pass of the stack over what is new; the output ``[B, D]`` of each row's last real position."""
        if self.cache.get_seq_length() and self.mask is not None and self.positions is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.mask), 1))], dim=1)
            self.positions = self.positions[:, -1:] + 1
        outputs = self.method.stack(
            inputs_embeds=self.inputs.to(self.dtype),
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: Tensor = outputs.last_hidden_state
        if self.ends is None:
            return hidden[:, -1]
        ends, self.ends = self.ends, None
        return hidden[torch.arange(len(hidden), device=hidden.device), ends]

    def think(self, hidden: Tensor, stop: StopRule) -> Thought:
        """Record one step of the rows that still think, and stop those that are done."""
        thought = self.method.think(hidden)
        if self.disturb is not None:
            thought = self.disturb(thought, len(self.thoughts))
        done = torch.zeros_like(self.thinking) if stop.fixed else self.thinking & thought.done
        counts = self.thinking if stop.fixed or thought.counts is None else self.thinking & thought.counts
        self.thoughts.append(thought)
        self.counted.append(counts)
        self.reason = torch.where(done, int(StopReason.END), self.reason)
        self.thinking = self.thinking & ~done
        return thought

    def chain(self, stop: StopRule) -> LatentChain:
        """What has been thought, as a record."""
        reason = torch.full_like(self.reason, int(StopReason.FIXED)) if stop.fixed else self.reason
        if not self.thoughts:
            nothing = self.inputs.new_zeros((len(reason), 0, self.inputs.shape[-1]))
            return LatentChain(latents=nothing, mask=nothing[:, :, 0].bool(), stop=reason)
        mask = torch.stack(self.counted, dim=1)
        ids = [thought.support_ids for thought in self.thoughts if thought.support_ids is not None]
        weights = [thought.support_weights for thought in self.thoughts if thought.support_weights is not None]
        return LatentChain(
            latents=torch.stack([thought.latent for thought in self.thoughts], dim=1) * mask[:, :, None],
            mask=mask,
            stop=reason,
            support_ids=torch.stack(ids, dim=1) if ids else None,
            support_weights=torch.stack(weights, dim=1) if weights else None,
        )
