"""The generation engine: one loop that writes a chain for every method.

A method says how a prompt becomes vectors, what one output of the stack means, and when a row is done. The engine
does what is common: the cache, positions of left-padded rows, stopping row by row, and the record. A method that speaks
with the stack it thinks with goes on in the same loop and the same cache: each row is thinking, closing its chain with
the end marker, answering, or done, whatever its neighbours are.

Axes: B batch, T prompt tokens, N latent steps, M spoken tokens, D latent width, K entries of a distribution over the
vocabulary, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, StaticCache

from unspoken.chain import LatentChain, StopReason, real_last
from unspoken.placement import moved
from unspoken.reasoning.cache import ReservedCache, require_filled
from unspoken.reasoning.picking import upload
from unspoken.reasoning.static import StaticSteps, why_not_static

_log = logging.getLogger(__name__)


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
class LatentStep:
    """One step of silent reasoning, for a whole batch.

    Attributes:
        latent: what the chain records.
        next_input: what enters the first block next.
        done: rows for which this is the last step by the method's own rule.
        recorded: rows in which the step belongs to the chain; None means all. A method whose end is a marker, not a
            step, leaves the output at which it stops out.
        support_ids, support_weights: the distribution over the vocabulary, where there is one.
    """

    latent: Float[Tensor, "B D"]
    next_input: Float[Tensor, "B D"]
    done: Bool[Tensor, " B"]
    recorded: Bool[Tensor, " B"] | None = None
    support_ids: Int[Tensor, "B K"] | None = None
    support_weights: Float[Tensor, "B K"] | None = None


# Changes a step (counted from 0) before it is recorded and fed back; the step holds every row of the batch.
Intervention = Callable[[LatentStep, int], LatentStep]


@runtime_checkable
class Reasoner(Protocol):
    """What a method supplies to the engine."""

    @property
    def stack(self) -> PreTrainedModel:
        """A decoder-only transformers model without its head."""
        ...

    def embed_prompt(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The prompt as vectors that the stack's first block accepts."""
        ...

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """Read one output of the stack."""
        ...


class AnsweringReasoner(Reasoner, Protocol):
    """A method that also says its answer with the stack it thinks with."""

    def logits(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Scores of the next token."""
        ...


@runtime_checkable
class RowTargets(Protocol):
    """A reasoner whose latents are trained to point at rows of a table, one row a token."""

    @property
    def target_table(self) -> Float[Tensor, "V D"]:
        """The rows; their directions count."""
        ...

    def nearest_row(self, latents: Tensor) -> Tensor:
        """The token whose row is nearest to each latent, ``[..., D] -> [...]``."""
        ...

    def read(self, input_ids: Int[Tensor, "B T"], attention_mask: Tensor | None = None) -> Float[Tensor, "B T D"]:
        """Latents of a text that is known: the one at t stands for the token at t + 1."""
        ...


@dataclass(frozen=True, kw_only=True)
class AnswerDecoding:
    """How the spoken part follows the silent one.

    Attributes:
        marker: tokens that close the chain; they are forced, never sampled.
        max_tokens: cap of the answer behind the marker, for each row.
        end_ids: tokens that end an answer.
        pad_id: fills spoken rows behind their end.
        pick: chooses the next token of some rows that have answered with equally many: of their indices ``[R]``, their
            answers so far ``[R, M]`` and the scores ``[R, V]`` it makes ``[R]``. None takes the most likely token.

    Raises:
        ValueError: no marker, or a cap below 1.
    """

    marker: tuple[int, ...]
    max_tokens: int
    end_ids: tuple[int, ...]
    pad_id: int
    pick: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not self.marker or self.max_tokens < 1:
            raise ValueError(
                f"the marker has {len(self.marker)} tokens and max_tokens is {self.max_tokens}; both are at least 1"
            )

    def choose(
        self, lengths: dict[int, int], answers: Int[Tensor, "B M"], scores: Float[Tensor, "B V"]
    ) -> Int[Tensor, " B"]:
        """The next token of every row that answers, without waiting for the device.

        Args:
            lengths: how many tokens each of those rows has; what other rows get means nothing.
            answers: tokens so far.
            scores: of the next token.
        """
        if self.pick is None:
            return scores.argmax(dim=-1)
        chosen = scores.new_zeros(len(scores), dtype=torch.long)
        for length in sorted(set(lengths.values())):
            rows = upload([row for row in lengths if lengths[row] == length], scores.device)
            chosen[rows] = self.pick(rows, answers[rows, :length], scores[rows])
        return chosen


@torch.no_grad()
def rollout(
    method: Reasoner,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | None,
    stop: StopRule,
    intervene: Intervention | None = None,
    static: bool | None = None,
) -> LatentChain:
    """Reason about a batch of prompts with a key-value cache.

    Args:
        method: see `Reasoner`.
        input_ids: prompts, padded on the left; on any device, to which the chain comes back.
        attention_mask: 1 for real tokens; None means no padding.
        stop: the cap, or a fixed length.
        disturb: changes every step on its way into chain and loop, for measurements of robustness.
        static: whether steps have fixed shapes, so that a GPU can replay them, see `unspoken.reasoning.static`.
            By default they do on a GPU, for models that allow it. Numbers differ from the plain loop's by rounding.

    Returns:
        The chain. Rows that finish early go on being computed with the batch, but the record ignores them.

    Raises:
        ValueError: an empty prompt, padding on the right, a prompt that leaves no room for ``max_latents``, a model
            that ignores its cache, or ``static`` for a model that cannot have it.
    """
    home = input_ids.device
    input_ids, attention_mask = moved((input_ids, attention_mask), method.stack.device)
    run = _Run(method, input_ids, attention_mask, stop.max_latents, None, intervene, static)
    for _ in range(stop.max_latents):
        latent_step = run.step(run.advance(), stop)
        if not stop.fixed and not bool(run.thinking.any()):  # the one wait of a step
            break
        run.inputs = latent_step.next_input[:, None]
    return moved(run.chain(stop), home)


@torch.no_grad()
def respond(
    method: AnsweringReasoner,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | None,
    stop: StopRule,
    decoding: AnswerDecoding,
    given: LatentChain | None = None,
    intervene: Intervention | None = None,
    static: bool | None = None,
) -> tuple[LatentChain, Int[Tensor, "B M"]]:
    """Reason, close the chain and answer, all from one cache.

    The prompt is never read twice: a row whose chain is over is fed the marker and then its own words, while other
    rows of the batch may still be thinking.

    Args:
        method: see `AnsweringReasoner`.
        input_ids, attention_mask, stop, disturb, static: as in `rollout`.
        speech: marker, cap and choice of words.
        given: a chain that stands behind the prompt already: with ``max_latents=0`` the answer is spoken from it alone.

    Returns:
        What was thought here (without ``given``), and the words behind the marker with their end, padded.

    Raises:
        ValueError: as `rollout`; the prompt must also leave room for marker and answer.
    """
    home = input_ids.device
    input_ids, attention_mask, given = moved((input_ids, attention_mask, given), method.stack.device)
    answers = _Answers(decoding, input_ids)
    steps = stop.max_latents + answers.over
    run = _Run(method, input_ids, attention_mask, steps, given, intervene, static)
    for step in range(steps):
        hidden = run.advance()
        feed = None
        if step < stop.max_latents and answers.some_think:
            feed = run.step(hidden, stop).next_input
        elif step == stop.max_latents:
            run.thinking = torch.zeros_like(run.thinking)
        if feed is not None and stop.fixed:
            run.inputs = feed[:, None]
            continue
        scores = method.logits(hidden) if answers.lengths else None
        tokens = answers.next(scores, run.thinking if feed is not None else None)
        if answers.all_over:
            break
        run.inputs = method.embed_prompt(tokens[:, None])
        if feed is not None:
            run.inputs = torch.where(run.thinking[:, None, None], feed[:, None].to(run.inputs.dtype), run.inputs)
    return moved((run.chain(stop), answers.tokens[:, : answers.longest]), home)


class _Answers:
    """What the rows of a batch are fed when their chains are over: the marker, then their own tokens.

    A row's place counts what it was fed after its chain; it is -1 while the row thinks and ``over`` when it is done.
    The host keeps the places of the step before: since a marker comes first, they tell which rows answer now, and how
    many tokens they have, without a look at the device.
    """

    def __init__(self, decoding: AnswerDecoding, input_ids: Tensor) -> None:
        device, rows = input_ids.device, len(input_ids)
        self.decoding = decoding
        self.marker = torch.tensor(decoding.marker, device=device)
        self.ends = torch.tensor(decoding.end_ids, device=device)
        self.over = len(decoding.marker) + decoding.max_tokens
        self.tokens = torch.full((rows, decoding.max_tokens), decoding.pad_id, device=device)
        self.longest = 0
        self._place = torch.full((rows,), -1, device=device)
        self._places = [-1] * rows

    @property
    def some_think(self) -> bool:
        """Whether the chain of some row went on in the step before."""
        return -1 in self._places

    @property
    def all_over(self) -> bool:
        """Whether nothing is left to do."""
        return min(self._places) == self.over

    @property
    def lengths(self) -> dict[int, int]:
        """Rows that answer in this step, and how many tokens each of them has."""
        first = len(self.marker) - 1
        return {row: place - first for row, place in enumerate(self._places) if first <= place < self.over}

    def next(self, scores: Tensor | None, thinking: Tensor | None) -> Tensor:
        """What each row that does not think is fed next ``[B]``. Waits for the device once at most.

        Args:
            scores: of the next token ``[B, V]``, where some row answers.
            thinking: rows ``[B]`` whose chain goes on; None where all chains are over.
        """
        place = self._place + 1 if thinking is None else torch.where(thinking, self._place, self._place + 1)
        place = place.clamp(max=self.over)
        tokens = self.marker[place.clamp(0, len(self.marker) - 1)]
        if scores is not None:
            lengths = self.lengths
            self.longest = max(self.longest, 1 + max(lengths.values()))
            answering = (place >= len(self.marker)) & (place < self.over)
            tokens = torch.where(answering, self.decoding.choose(lengths, self.tokens, scores), tokens)
            column = (place - len(self.marker)).clamp(0, self.decoding.max_tokens - 1)[:, None]
            kept = torch.where(answering[:, None], tokens[:, None], self.tokens.gather(1, column))
            self.tokens = self.tokens.scatter(1, column, kept)
            ended = (tokens[:, None] == self.ends).any(dim=1) | (place == self.over - 1)
            place = torch.where(answering & ended, self.over, place)
        self._place = place
        if scores is None and thinking is None:
            self._places = [min(place + 1, self.over) for place in self._places]
        else:
            self._places = place.tolist()  # the one wait of a step
        return tokens


class _Run:
    """The state of one batch: cache, positions, and what has been reasoned."""

    def __init__(
        self,
        method: Reasoner,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        steps: int,
        given: LatentChain | None,
        intervene: Intervention | None,
        static: bool | None,
    ) -> None:
        length = input_ids.shape[1] + (0 if given is None else given.mask.shape[1])
        limit = getattr(method.stack.config, "max_position_embeddings", None)
        if input_ids.shape[1] == 0 or (limit is not None and length + steps > limit):
            raise ValueError(
                f"a prompt of {input_ids.shape[1]} tokens with up to {length - input_ids.shape[1] + steps} further "
                f"steps does not fit the model, which has {limit} positions and needs at least one prompt token"
            )
        mask = _checked_mask(input_ids, attention_mask, given)
        self.inputs = method.embed_prompt(input_ids)
        self.dtype = self.inputs.dtype
        if given is not None:
            # Some models look their inputs up in the table, what a mask hides too.
            latents = torch.where(given.mask[..., None], given.latents.to(self.dtype), self.inputs[:, :1])
            self.inputs = torch.cat([self.inputs, latents], dim=1)
            if mask is not None:
                # What follows must stand right behind the last latent: windows, biases of distance and recurrent
                # states count columns, whatever a mask hides.
                order = real_last(mask)
                mask = mask.gather(1, order)
                self.inputs = self.inputs.gather(1, order[:, :, None].expand_as(self.inputs))
        self.method = method
        self.intervene = intervene
        # Every column of the run: those of later steps are real in all rows.
        self.mask = None if mask is None else F.pad(mask.to(torch.long), (0, steps), value=1)
        if self.mask is None:
            self.positions = torch.arange(length + steps, device=input_ids.device).expand(len(input_ids), -1)
        else:
            self.positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        self.static: StaticSteps | None = None
        self.cache: Cache
        if _static(method.stack, input_ids.device, static):
            self.cache = StaticCache(config=method.stack.config, max_cache_len=length + steps)
            self.static = StaticSteps(method.stack, self.cache, self.mask)
        else:
            self.cache = ReservedCache(method.stack.config, length + steps, padded=mask is not None)
        self.seen = 0
        self.latent_steps: list[LatentStep] = []
        self.counted: list[Tensor] = []
        self.thinking = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        self.reason = torch.full((len(input_ids),), int(StopReason.CAP), device=input_ids.device)

    def advance(self) -> Tensor:
        """One pass of the stack over what is new; the output ``[B, D]`` of the last column."""
        begin, self.seen = self.seen, self.seen + self.inputs.shape[1]
        # A copy, because some models scale what they are given in place, and the chain records it.
        inputs, positions = self.inputs.to(self.dtype, copy=True), self.positions[:, begin : self.seen]
        if begin and self.static is not None:
            return self.static(inputs, positions)[:, -1]
        outputs = self.method.stack(
            inputs_embeds=inputs,
            attention_mask=None if self.mask is None else self.mask[:, : self.seen],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        if not begin:
            require_filled(self.cache, type(self.method.stack).__name__)
        hidden: Tensor = outputs.last_hidden_state
        return hidden[:, -1]

    def step(self, hidden: Tensor, stop: StopRule) -> LatentStep:
        """Record one step of the rows that still think, and stop those that are done."""
        latent_step = self.method.step(hidden)
        if self.intervene is not None:
            latent_step = self.intervene(latent_step, len(self.latent_steps))
        done = torch.zeros_like(self.thinking) if stop.fixed else self.thinking & latent_step.done
        counts = self.thinking if stop.fixed or latent_step.recorded is None else self.thinking & latent_step.recorded
        self.latent_steps.append(latent_step)
        self.counted.append(counts)
        self.reason = torch.where(done, int(StopReason.END), self.reason)
        self.thinking = self.thinking & ~done
        return latent_step

    def chain(self, stop: StopRule) -> LatentChain:
        """What has been latent_step, as a record."""
        reason = torch.full_like(self.reason, int(StopReason.FIXED)) if stop.fixed else self.reason
        if not self.latent_steps:
            nothing = self.inputs.new_zeros((len(reason), 0, self.inputs.shape[-1]))
            return LatentChain(latents=nothing, mask=nothing[:, :, 0].bool(), stop=reason)
        mask = torch.stack(self.counted, dim=1)
        ids = [latent_step.support_ids for latent_step in self.latent_steps if latent_step.support_ids is not None]
        weights = [
            latent_step.support_weights for latent_step in self.latent_steps if latent_step.support_weights is not None
        ]
        return LatentChain(
            latents=torch.stack([latent_step.latent for latent_step in self.latent_steps], dim=1) * mask[:, :, None],
            mask=mask,
            stop=reason,
            support_ids=torch.stack(ids, dim=1) if ids else None,
            support_weights=torch.stack(weights, dim=1) if weights else None,
        )


def _static(stack: PreTrainedModel, device: torch.device, asked: bool | None) -> bool:
    """Whether steps have fixed shapes.

    Raises:
        ValueError: they are asked for, and the model cannot have them.
    """
    if asked is False or (asked is None and device.type != "cuda"):
        return False
    reason = why_not_static(stack)
    if reason is not None and asked:
        raise ValueError(f"{type(stack).__name__} cannot decode with fixed shapes: {reason}; leave static out")
    if reason is not None:
        _log.info("%s decodes without a captured step: %s", type(stack).__name__, reason)
    return reason is None


def _checked_mask(input_ids: Tensor, attention_mask: Tensor | None, given: LatentChain | None) -> Tensor | None:
    """Real columns ``[B, T + N]`` of prompts and given chains; None where all are. Waits for the device once.

    Raises:
        ValueError: padding on the right of a prompt.
    """
    if attention_mask is None and given is None:
        return None
    mask = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
    # A method may have put a marker behind the padding.
    gap = (mask[:, :-1] & ~mask[:, 1:]).any() | ~mask[:, -1].all()
    if given is not None:
        mask = torch.cat([mask, given.mask], dim=1)
    misplaced, full = torch.stack([gap, mask.all()]).tolist()
    if misplaced:
        raise ValueError("prompts must be padded on the left: a row of attention_mask has a zero behind a one")
    return None if full else mask
