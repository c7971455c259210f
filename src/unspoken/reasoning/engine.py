"""The generation engine: one state machine that decodes the rows of every method.

A method defines how a prompt becomes vectors, what one output of the stack means, and when a row is done. The engine
does what is common: the cache, positions of left-padded rows, the phase of every row, and the record. A method that
answers with the stack it reasons with goes on in the same cache: each row writes its chain, reads the end marker,
answers or is over, whatever its neighbours do. `rollout` and `respond` decode a batch from start to end; a server
regroups the rows of a `Decoder` between two steps.

Axes: B batch, R some of its rows, T prompt tokens, L columns of the cache, N latent steps, M tokens of an answer,
D latent width, K entries of a distribution over the vocabulary, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, StaticCache

from unspoken.chain import LatentChain
from unspoken.placement import moved
from unspoken.reasoning.block import BlockReasoner, allow_rollback, refined
from unspoken.reasoning.cache import ReservedCache, require_filled
from unspoken.reasoning.picking import Sample, upload
from unspoken.reasoning.prompts import prompt_inputs, prompt_keys
from unspoken.reasoning.row import AnswerDecoding, Phase, Row, chain_of
from unspoken.reasoning.static import StaticSteps, has_static_steps


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When reasoning ends."""

    # The cap. A row that meets it before its method ends the chain is reported as `StopReason.CAP`. Zero is no chain at
    # all, for methods that can answer without one.
    max_latents: int
    fixed: bool = False  # write exactly ``max_latents`` steps in every row, whatever the method's own rule
    min_latents: int = 0  # a row goes on until it has so many steps, whatever the method's own rule
    continuation: tuple[int, ...] = ()  # tokens that replace an end before that; without any, the method's step stays
    patience: int = 0  # certain steps in a row after which a chain ends, see `LatentStep`; 0 for no such end

    def __post_init__(self) -> None:
        for name in ("max_latents", "min_latents", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it cannot be negative")


@dataclass(frozen=True, kw_only=True)
class LatentStep:
    """One step of silent reasoning, for a whole batch."""

    latent: Float[Tensor, "B D"]  # what the chain records
    next_input: Float[Tensor, "B D"]  # what enters the first block next
    done: Bool[Tensor, " B"]  # rows for which this is the last step by the method's own rule
    # Rows in which the step belongs to the chain; None means all. A method whose end is a marker, not a step, leaves
    # the output at which it stops out.
    recorded: Bool[Tensor, " B"] | None = None
    # support_ids, support_weights: the distribution over the vocabulary, where there is one
    support_ids: Int[Tensor, "B K"] | None = None
    support_weights: Float[Tensor, "B K"] | None = None
    # Rows in which the method is sure of the step, for a `StopRule` with patience; None means none.
    certain: Bool[Tensor, " B"] | None = None

    def select(self, rows: Tensor | slice) -> LatentStep:
        """The step of some rows, in the given order."""
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        return LatentStep(**{name: value[rows] for name, value in tensors.items()})

    def with_tokens(self, rows: Int[Tensor, " R"], ids: Int[Tensor, " R"], latents: Float[Tensor, "R D"]) -> LatentStep:
        """The step with tokens, and the latents that stand for them, in the place of what the method made."""
        support: dict[str, Any] = {}
        if self.support_ids is not None and self.support_weights is not None:
            first = F.one_hot(torch.zeros_like(rows), self.support_weights.shape[1]).to(self.support_weights)
            support["support_ids"] = self.support_ids.index_copy(0, rows, ids[:, None].expand(-1, first.shape[1]))
            support["support_weights"] = self.support_weights.index_copy(0, rows, first)
        latents = latents.to(self.latent.dtype)
        replaced = {name: getattr(self, name).index_copy(0, rows, latents) for name in ("latent", "next_input")}
        return replace(self, **replaced, **support)


# Changes a step (counted from 0) before it is recorded and fed back; the step holds every row of the batch.
Intervention = Callable[[LatentStep, int], LatentStep]


@runtime_checkable
class Reasoner(Protocol):
    """What a method supplies to the engine."""

    @property
    def stack(self) -> PreTrainedModel:
        """A decoder-only transformers model without its head."""

    def embed_prompt(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The prompt as vectors that the stack's first block accepts."""

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """Read one output of the stack."""


@runtime_checkable
class RandomReasoner(Reasoner, Protocol):
    """A method whose steps are drawn, as a function of the prompt and the number of the step, whatever the batch."""

    def random_step(self, hidden: Float[Tensor, "B D"], keys: Sequence[tuple[int, int]]) -> LatentStep:
        """As `step`, given each row's key of its prompt and its steps so far."""


class AnsweringReasoner(Reasoner, Protocol):
    """A method that also answers with the stack it reasons with."""

    def logits(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Scores of the next token."""


@runtime_checkable
class RowTargets(Protocol):
    """A reasoner whose latents are trained to point at rows of a table, one row per token."""

    @property
    def target_table(self) -> Float[Tensor, "V D"]:
        """The rows; their directions count."""

    def nearest_row(self, latents: Tensor) -> Tensor:
        """The token whose row is nearest to each latent, ``[..., D] -> [...]``."""

    def read(self, input_ids: Int[Tensor, "B T"], attention_mask: Tensor | None = None) -> Float[Tensor, "B T D"]:
        """Latents of a text that is known: the one at t stands for the token at t + 1."""


class Decoder:
    """Rows that are decoded together, with their cache.

    Args:
        method: whose stack they share; rows that answer with it need an `AnsweringReasoner`.
        rows: see `Row`.
        inputs: prompts as vectors, padded on the left.
        lengths: columns of each prompt that are not padding.
        intervene: changes every latent step.
        static: whether steps have fixed shapes, see `unspoken.reasoning.static`; such rows cannot be regrouped.
        selective: latent steps and scores are computed for the rows that need them alone. That is cheaper where phases
            differ, but the rounding of a row then depends on the phases of the others.
    """

    def __init__(
        self,
        method: Reasoner,
        rows: Sequence[Row],
        inputs: Float[Tensor, "B T D"],
        lengths: Sequence[int],
        *,
        intervene: Intervention | None = None,
        static: bool = False,
        selective: bool = False,
    ) -> None:
        self.method = method
        self.rows = list(rows)
        self.intervene = intervene
        self.selective = selective
        self.inputs: Tensor = inputs
        self.dtype = inputs.dtype
        self.columns = 0  # of the cache that are filled
        self._latent_steps = 0
        self._lay_out(inputs.shape[1], lengths)
        self.cache: Cache = self._new_cache()
        self._static: StaticSteps | None = None
        if static:
            self.cache = StaticCache(config=method.stack.config, max_cache_len=self.positions.shape[1])
            self._static = StaticSteps(method.stack, self.cache, self.mask)

    @torch.no_grad()
    def step(self) -> list[LatentStep]:
        """One pass of the stack over what is new, and what each row makes of the last output.

        Waits for the device once at most, and not at all while chains of fixed length are written or markers are read.
        The first step of a `BlockReasoner` takes the passes of all its chains.

        Returns:
            The latent steps of all rows, if one of them is in its chain; they mean nothing for the others.
        """
        steps = self._refine()
        if steps and all(row.phase is Phase.OVER for row in self.rows):
            return steps
        hidden = self._outputs()[:, -1]
        rows, count = self.rows, len(self.rows)
        in_chain, in_marker, answering, _ = self._phases()
        latent_step = self._latent_step(in_chain, hidden) if in_chain else None
        steps += [] if latent_step is None else [latent_step]
        done, recorded, certain, chosen = self._read(in_chain, latent_step, self._choose(answering, hidden))
        tokens, feeds_latent = [0] * count, [0] * count
        for index in in_chain:
            feeds_latent[index] = rows[index].read_latent(done[index], recorded[index], certain[index])
            if not feeds_latent[index]:
                in_marker.append(index)
        if latent_step is not None:
            latent_step = steps[-1] = self._worded(latent_step, in_chain)
        for index in in_marker:
            tokens[index] = rows[index].read_marker()
        for index in answering:
            tokens[index] = rows[index].read_token(chosen[index])
        if latent_step is not None and not in_marker and not answering:
            self.inputs = latent_step.next_input[:, None]
            return steps
        self.inputs = self.method.embed_prompt(upload(tokens, hidden.device)[:, None])
        if latent_step is not None and any(feeds_latent):
            latents = latent_step.next_input[:, None].to(self.inputs.dtype)
            self.inputs = torch.where(upload(feeds_latent, hidden.device).bool()[:, None, None], latents, self.inputs)
        return steps

    def read(self, columns: int) -> int:
        """Read some columns of the prompts before the first step, which reads the last one; how many are left."""
        rest, self.inputs = self.inputs[:, columns:], self.inputs[:, :columns]
        self._outputs()
        self.inputs = rest
        return rest.shape[1]

    def _refine(self) -> list[LatentStep]:
        """All passes of a `BlockReasoner` over its chains but the last one, whose inputs are what is read next."""
        method = self.method
        if self._latent_steps or not isinstance(method, BlockReasoner):
            return []
        size = len(self.rows)
        (count,) = {row.max_latents for row in self.rows}  # chains that are refined together have one length
        if count == 0:
            return []
        if method.iterations:
            allow_rollback(self.cache, type(method.stack).__name__)
        steps: list[LatentStep] = []

        def read(new_BTD: Tensor) -> Tensor:
            self.inputs = new_BTD
            hidden_BTD = self._outputs()
            self.cache.crop(-count)
            self.columns -= count
            return hidden_BTD

        def inputs_of(together: LatentStep) -> Tensor:  # slot after slot, B rows each
            self._latent_steps = 0
            slots = (slice(first, first + size) for first in range(0, count * size, size))
            steps[:] = [self._intervened(together.select(rows)) for rows in slots]
            return torch.stack([step.next_input for step in steps], dim=1).to(self.dtype)

        guess_RD = method.guess(count).to(self.dtype).repeat_interleave(size, dim=0)
        never = torch.zeros(len(guess_RD), dtype=torch.bool, device=guess_RD.device)
        guess_BND = inputs_of(LatentStep(latent=guess_RD, next_input=guess_RD, done=never))

        def latents_of(hidden_BND: Tensor) -> Tensor:
            return inputs_of(method.step(hidden_BND.transpose(0, 1).flatten(0, 1)))

        self.inputs, _ = refined(read, self.inputs, guess_BND, method.iterations, latents_of, method.shift)
        for row in self.rows:
            for _ in range(count):
                row.read_latent(done=False, recorded=True)
        return steps

    def regroup(self, joining: Decoder | None = None) -> None:
        """Drop rows that are over or cancelled and take in those of another decoder that has read its prompts.

        Afterwards all rows end in the same column, and the columns that no row uses any more are given up.
        """
        assert self._static is None
        decoders = [self] if joining is None else [self, joining]
        staying = [
            (decoder, index, row)
            for decoder in decoders
            for index, row in enumerate(decoder.rows)
            # A row may be cancelled at any moment, from another thread: it is asked once.
            if row.phase is not Phase.OVER and not row.cancelled
        ]
        if joining is None and len(staying) == len(self.rows):
            return
        self.rows = [row for _, _, row in staying]
        if not staying:
            return
        indices = [[index for other, index, _ in staying if other is decoder] for decoder in decoders]
        selections = [
            (decoder, upload(rows, self.inputs.device)) for decoder, rows in zip(decoders, indices, strict=True)
        ]
        self.inputs = torch.cat([decoder.inputs[rows] for decoder, rows in selections])
        sources = [(cast(ReservedCache, decoder.cache), rows) for decoder, rows in selections]
        lengths = [decoder.columns - decoder.starts[index] for decoder, index, _ in staying]
        self.columns = max(lengths)
        self._lay_out(self.columns, lengths)
        self.cache = cache = self._new_cache()
        cache.fill(sources, self.columns)

    def _lay_out(self, columns: int, lengths: Sequence[int]) -> None:
        """Mask and positions of every column: those of later steps are real in all rows."""
        self.starts = [columns - length for length in lengths]
        further = max((row.steps_left for row in self.rows), default=0)
        column = torch.arange(columns + further, device=self.inputs.device)
        self.mask: Tensor | None = None
        self.positions = column.expand(len(self.rows), -1)
        if any(self.starts):
            start = upload(self.starts, column.device)[:, None]
            self.mask = (column >= start).long()
            self.positions = (column - start).clamp(min=0)

    def _new_cache(self) -> ReservedCache:
        return ReservedCache(self.method.stack.config, self.positions.shape[1], padded=self.mask is not None)

    def _outputs(self) -> Tensor:
        """The outputs ``[B, T, D]`` of all columns that are new."""
        begin, self.columns = self.columns, self.columns + self.inputs.shape[1]
        # A copy, because some models scale what they are given in place, and the chain records it.
        inputs, positions = self.inputs.to(self.dtype, copy=True), self.positions[:, begin : self.columns]
        if begin and self._static is not None:
            return self._static(inputs, positions)
        outputs = self.method.stack(
            inputs_embeds=inputs,
            attention_mask=None if self.mask is None else self.mask[:, : self.columns],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        if not begin:
            require_filled(self.cache, type(self.method.stack).__name__)
        return outputs.last_hidden_state

    def _latent_step(self, in_chain: Sequence[int], hidden: Tensor) -> LatentStep:
        if self.selective and len(in_chain) < len(self.rows):
            lines = {index: line for line, index in enumerate(in_chain)}
            line_of_row = upload([lines.get(index, 0) for index in range(len(self.rows))], hidden.device)
            some = hidden[upload(in_chain, hidden.device)]
            return self._intervened(self._made(some, in_chain).select(line_of_row))
        return self._intervened(self._made(hidden, range(len(self.rows))))

    def _made(self, hidden: Tensor, indices: Sequence[int]) -> LatentStep:
        """What the method makes of the outputs of some rows."""
        if not isinstance(self.method, RandomReasoner):
            return self.method.step(hidden)
        keys = [(self.rows[index].key, len(self.rows[index].recorded)) for index in indices]
        return self.method.random_step(hidden, keys)

    def _worded(self, latent_step: LatentStep, in_chain: Sequence[int]) -> LatentStep:
        """The step with the words that take its place in some rows."""
        forced = {index: token for index in in_chain if (token := self.rows[index].forced) is not None}
        if not forced:
            return latent_step
        lines, ids = upload([[*forced], [*forced.values()]], latent_step.latent.device)
        return latent_step.with_tokens(lines, ids, self.method.embed_prompt(ids[:, None])[:, 0])

    def _intervened(self, latent_step: LatentStep) -> LatentStep:
        if self.intervene is not None:
            latent_step = self.intervene(latent_step, self._latent_steps)
        self._latent_steps += 1
        return latent_step

    def _read(
        self, in_chain: Sequence[int], latent_step: LatentStep | None, next_tokens: Tensor | None
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        """Of every row, whether its chain is done, the step is recorded, and certain, and the next token."""
        values = [] if next_tokens is None else [next_tokens]
        if latent_step is not None and not all(self.rows[index].fixed for index in in_chain):
            done, recorded, certain = latent_step.done, latent_step.recorded, latent_step.certain
            values += [
                done.long(),
                (torch.ones_like(done) if recorded is None else recorded).long(),
                (torch.zeros_like(done) if certain is None else certain).long(),
            ]
        numbers = torch.stack(values).tolist() if values else []  # the one wait of a step
        zeros = [0] * len(self.rows)
        tokens = zeros if next_tokens is None else numbers.pop(0)
        # Chains of fixed length are over when they are full, whatever is read of a step.
        return (*(numbers or [zeros] * 3), tokens)

    def _phases(self) -> list[list[int]]:
        """The indices of the rows in each phase."""
        indices: list[list[int]] = [[] for _ in Phase]
        for index, row in enumerate(self.rows):
            indices[row.phase].append(index)
        return indices

    def _choose(self, answering: Sequence[int], hidden: Tensor) -> Tensor | None:
        """The next token ``[B]`` of every row that answers, if one does; what other rows get means nothing."""
        if not answering:
            return None
        selected = upload(answering, hidden.device) if self.selective else None
        scores = cast(AnsweringReasoner, self.method).logits(hidden if selected is None else hidden[selected])
        chosen = scores.argmax(dim=-1)
        # One call for all rows that share a sampler and have equally many tokens.
        calls: dict[tuple[int, int], tuple[Sample, list[tuple[int, int]]]] = {}
        for line, index in enumerate(answering):
            row = self.rows[index]
            if row.decoding is not None and (sample := row.decoding.sample) is not None:
                call = calls.setdefault((len(row.tokens), id(sample)), (sample, []))
                call[1].append((index if selected is None else line, row.index))
        for (length, _), (sample, pairs) in sorted(calls.items(), key=lambda call: call[0][0]):
            lines, indices = upload(list(zip(*pairs, strict=True)), hidden.device)
            chosen[lines] = sample(scores[lines, None], indices, length)[:, 0]
        return chosen if selected is None else chosen.new_zeros(len(hidden)).scatter(0, selected, chosen)


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
        intervene: changes every step on its way into chain and loop, for measurements of robustness.
        static: whether steps have fixed shapes, so that a GPU can replay them, see `unspoken.reasoning.static`.
            By default they do on a GPU, for models that allow it; a cache of constant size cannot go back, as it must
            where latents are refined together. Numbers differ from the plain loop's by rounding.

    Returns:
        The chain. Rows that finish early go on being computed with the batch, but the record ignores them.

    Raises:
        ValueError: an empty prompt, padding on the right, a prompt that leaves no space for ``max_latents``, a model
            that ignores its cache, or ``static`` for a model that cannot have it.
    """
    return respond(method, input_ids, attention_mask, stop, None, None, intervene, static)[0]


@torch.no_grad()
def respond(
    method: Reasoner,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | None,
    stop: StopRule,
    decoding: AnswerDecoding | None,
    given: LatentChain | None = None,
    intervene: Intervention | None = None,
    static: bool | None = None,
) -> tuple[LatentChain, Int[Tensor, "B M"]]:
    """Reason, close the chain and answer, all from one cache.

    The prompt is never read twice: a row whose chain is over is fed the marker and then its own tokens, while other
    rows of the batch may still be in their chains.

    Args:
        method: an `AnsweringReasoner` if there is to be an answer.
        input_ids, attention_mask, stop, intervene, static: as in `rollout`.
        decoding: marker, cap and choice of tokens; None writes the chain alone.
        given: a chain that follows the prompt already: with ``max_latents=0`` the answer is made of it alone.

    Returns:
        The chain that was written here (without ``given``), and the tokens after the marker with their end, padded.

    Raises:
        ValueError: as `rollout`; the prompt must also leave space for marker and answer.
    """
    size, length = input_ids.shape
    rows = [Row(**vars(stop), decoding=decoding, index=index) for index in range(size)]
    further = max((row.steps_left for row in rows), default=0) + (0 if given is None else given.mask.shape[1])
    _require_positions(method, length, further)
    if isinstance(method, RandomReasoner):
        for row, key in zip(rows, prompt_keys(input_ids, attention_mask), strict=True):
            row.key = key
    ids, mask, given = moved((input_ids, attention_mask, given), method.stack.device)
    inputs, lengths = prompt_inputs(method.embed_prompt(ids), mask, given)
    goes_back = isinstance(method, BlockReasoner) and method.iterations > 0  # which no cache of constant size can
    static = not goes_back and has_static_steps(method.stack, inputs.device, static)
    decoder = Decoder(method, rows, inputs, lengths, intervene=intervene, static=static)
    steps: list[LatentStep] = []
    while any(row.phase is not Phase.OVER for row in rows):
        steps += decoder.step()
    recorded = [row.recorded + [0] * (len(steps) - len(row.recorded)) for row in rows]
    kept = upload(recorded, inputs.device).bool().view(size, len(steps))
    reasons = upload([row.reason for row in rows], inputs.device)
    if steps:
        chain = chain_of(steps, kept, reasons)
    else:
        chain = LatentChain(latents=inputs.new_zeros((size, 0, inputs.shape[2])), mask=kept, stop=reasons)
    longest = max((len(row.tokens) for row in rows), default=0)
    pad = [] if decoding is None else [decoding.pad_id]
    answers = upload([row.tokens + pad * (longest - len(row.tokens)) for row in rows], input_ids.device)
    return moved(chain, input_ids.device), answers.view(size, longest)


def _require_positions(method: Reasoner, length: int, further: int) -> None:
    """Refuse prompts without a token, and more steps than the model has positions for."""
    if length == 0:
        raise ValueError("the prompt is empty; give at least one token")
    limit = getattr(method.stack.config, "max_position_embeddings", None)
    if limit is not None and length + further > limit:
        raise ValueError(
            f"the prompt has {length} tokens and up to {further} more steps may follow (latents and answer), but the "
            f"model has {limit} positions; shorten the prompt or lower max_latents or max_tokens"
        )
