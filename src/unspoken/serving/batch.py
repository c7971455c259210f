"""A batch that rows join and leave at any step.

`unspoken.reasoning` decodes a batch that starts together and ends with its slowest row. A server's rows arrive one by
one, so here the cache is regrouped whenever somebody comes or goes: rows end in the same column, a newcomer's prompt is
read on its own and slid in beside the others, and columns that nobody uses any more are given up on the left. What a
row goes through is the engine's: think, close the chain with the marker, answer. The host keeps what it must know of
every row (its phase, its length, its tokens), so that a step waits for the device once, for all rows.

The library has continuous batching too (``transformers.generation.continuous_batching``, which ``transformers serve``
can use), but it cannot carry a latent. Its scheduler, its static input buffers and the carry-over between two steps
hold token ids, and the model is called with ``input_ids`` alone; a step whose input is a vector has no place in it.
Without it ``transformers serve`` calls ``generate`` for one request at a time.

A row's numbers are those it would have alone up to the order in which float32 sums are taken, so its tokens are the
same unless two scores are as close as rounding.

Axes: B rows, T columns of the cache, D latent width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.reasoning.cache import ReservedCache, ReservedLayer, require_filled
from unspoken.reasoning.engine import AnswerDecoding, AnsweringReasoner, LatentStep, Reasoner, StopRule
from unspoken.reasoning.picking import upload


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one row is to do.

    Attributes:
        prompt: tokens, with those that open the chain.
        stop: cap of the chain.
        speak: how the stack that thinks also answers; or, where something else says the finished chain, what turns a
            chain of one row into its words.
    """

    prompt: tuple[int, ...]
    stop: StopRule
    speak: AnswerDecoding | Callable[[LatentChain], list[int]]

    @property
    def room(self) -> int:
        """Steps that may follow the prompt."""
        spoken = len(self.speak.marker) + self.speak.max_tokens if isinstance(self.speak, AnswerDecoding) else 0
        return self.stop.max_latents + spoken


@dataclass(frozen=True, kw_only=True)
class Said:
    """News of a row.

    Attributes:
        words: tokens said since the last news.
        over: whether these were the last.
        latents: steps of the chain so far.
        capped: the answer, or the chain that is the answer, was cut off by its cap.
        failure: why there will be no answer; empty if nothing went wrong.
    """

    words: tuple[int, ...] = ()
    over: bool = False
    latents: int = 0
    capped: bool = False
    failure: str = ""


class Row:
    """One answer in the making.

    Args:
        job: what to do.
        tell: hears every word, from the thread that computes; it must return at once.
    """

    def __init__(self, job: Job, tell: Callable[[Said], None]) -> None:
        self.job = job
        self.tell = tell
        self.cancelled = False
        self.over = False
        self.thinking = True
        self.steps = 0
        self.latents = 0
        self.length = len(job.prompt)  # columns of the cache that it uses
        self.said: list[int] = []
        self._owed = list(job.speak.marker) if isinstance(job.speak, AnswerDecoding) else []
        self._thoughts: list[tuple[Tensor, Tensor | None, Tensor | None]] = []

    @property
    def thinks_next(self) -> bool:
        """Whether the next output is a latent step."""
        return self.thinking and self.steps < self.job.stop.max_latents

    @property
    def answers_next(self) -> bool:
        """Whether the next output is scored for a word of the answer."""
        return not self.thinks_next and not self._owed

    def note(self, latent_step: LatentStep, place: int, *, done: bool, counts: bool) -> None:
        """Record a thought; a row that is done thinks no more."""
        fixed = self.job.stop.fixed
        self.steps += 1
        self.thinking = fixed or not done
        if counts or fixed:
            self.latents += 1
            if not isinstance(self.job.speak, AnswerDecoding):
                ids, weights = latent_step.support_ids, latent_step.support_weights
                at = slice(place, place + 1)
                self._thoughts.append(
                    (latent_step.latent[at], None if ids is None else ids[at], None if weights is None else weights[at])
                )
        if not isinstance(self.job.speak, AnswerDecoding) and not self.thinks_next:
            reason = StopReason.FIXED if fixed else StopReason.CAP if self.thinking else StopReason.END
            self._tell(self.job.speak(self._chain(reason)), over=True, capped=reason == StopReason.CAP)

    def next_word(self, picked: int | None) -> int:
        """The token that is fed next: what is left of the marker, then the words that are picked."""
        decoding = self.job.speak
        assert isinstance(decoding, AnswerDecoding)
        self.thinking = False
        if self._owed:
            return self._owed.pop(0)
        assert picked is not None
        ended = picked in decoding.end_ids
        full = len(self.said) + 1 == decoding.max_tokens
        self._tell([picked], over=ended or full, capped=full and not ended)
        return picked

    def _tell(self, words: list[int], *, over: bool, capped: bool) -> None:
        self.said += words
        self.over = over
        self.tell(Said(words=tuple(words), over=over, latents=self.latents, capped=capped))

    def _chain(self, reason: StopReason) -> LatentChain:
        latents, ids, weights = zip(*self._thoughts, strict=True)
        known = ids[0] is not None
        return LatentChain(
            latents=torch.stack(latents, dim=1),
            mask=torch.ones((1, len(latents)), dtype=torch.bool, device=latents[0].device),
            stop=torch.full((1,), int(reason), device=latents[0].device),
            support_ids=torch.stack(ids, dim=1) if known else None,
            support_weights=torch.stack(weights, dim=1) if known else None,
        )


class _Part(NamedTuple):
    """Rows of a cache, and which of them are kept."""

    rows: Sequence[Row]
    cache: ReservedCache
    mask_BT: Tensor
    kept: list[int]

    @property
    def kept_rows(self) -> Tensor:
        """The kept rows as an index."""
        return upload(self.kept, self.mask_BT.device)


class Batch:
    """Rows that are computed together.

    Args:
        method: whose stack they share; rows that answer with it need an `unspoken.reasoning.AnsweringReasoner`.

    Raises:
        ValueError: a layer of the stack forgets what is far back, so that rows cannot be regrouped.
    """

    def __init__(self, method: Reasoner) -> None:
        self.method = method
        if any(type(layer) is not ReservedLayer for layer in ReservedCache(method.stack.config, 1).layers):
            raise ValueError(
                "this model has layers that keep only part of what they saw (a sliding window, or a recurrent state), "
                "and their rows cannot join a running batch; serve a model with full attention"
            )
        self.clear()

    def clear(self) -> None:
        """Forget every row."""
        self.rows: list[Row] = []
        self.cache = ReservedCache(self.method.stack.config, 1)
        self.mask_BT: Tensor = torch.zeros((0, 0), dtype=torch.long, device=self.method.stack.device)
        self.inputs_BD: Tensor = torch.zeros((0, 0), device=self.method.stack.device)

    @torch.no_grad()
    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows and take them in."""
        if not rows:
            return
        device, width = self.method.stack.device, max(row.length for row in rows)
        ids = [[0] * (width - row.length) + list(row.job.prompt) for row in rows]
        real = [[0] * (width - row.length) + [1] * row.length for row in rows]
        ids_BT, mask_BT = upload([ids, real], device)
        cache = ReservedCache(self.method.stack.config, width)
        positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        hidden_BD = self._run(rows, self.method.embed_prompt(ids_BT), mask_BT, positions_BT, cache)
        require_filled(cache, type(self.method.stack).__name__)
        inputs_BD = self._react(rows, hidden_BD)
        present = _Part(self.rows, self.cache, self.mask_BT, _staying(self.rows))
        coming = _Part(rows, cache, mask_BT, _staying(rows))
        old_BD = self.inputs_BD[present.kept_rows] if present.kept else inputs_BD[:0]
        self.inputs_BD = torch.cat([old_BD, inputs_BD[coming.kept_rows]])
        self._regroup(present, coming)

    @torch.no_grad()
    def step(self) -> None:
        """One pass of the stack for all rows; those that are over or cancelled leave."""
        self._leave()
        if not self.rows:
            return
        self.mask_BT = F.pad(self.mask_BT, (0, 1), value=1)
        positions_B1 = self.mask_BT.sum(dim=1, keepdim=True) - 1
        for row in self.rows:
            row.length += 1
        hidden_BD = self._run(self.rows, self.inputs_BD[:, None], self.mask_BT, positions_B1, self.cache)
        self.inputs_BD = self._react(self.rows, hidden_BD)
        self._leave()

    def _run(
        self, rows: Sequence[Row], inputs_BTD: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: ReservedCache
    ) -> Tensor:
        cache.padded = len({row.length for row in rows}) > 1
        outputs = self.method.stack(
            inputs_embeds=inputs_BTD,
            attention_mask=mask_BT if cache.padded else None,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
        )
        hidden_BD: Tensor = outputs.last_hidden_state[:, -1]
        return hidden_BD

    def _react(self, rows: Sequence[Row], hidden_BD: Tensor) -> Tensor:
        """Read one output of the stack; what each row is fed next, ``[B, D]``."""
        thinkers = [at for at, row in enumerate(rows) if row.thinks_next]
        answering = [at for at, row in enumerate(rows) if row.answers_next]
        found: list[Tensor] = []
        if answering:
            found.append(self._pick([rows[at] for at in answering], _select(hidden_BD, answering)))
        latent_step = self.method.step(_select(hidden_BD, thinkers)) if thinkers else None
        if latent_step is not None:
            counts = torch.ones_like(latent_step.done) if latent_step.recorded is None else latent_step.recorded
            found += [latent_step.done, counts]
        # The one wait of a step.
        known = torch.cat([part.long() for part in found]).tolist() if found else []
        picked = dict(zip(answering, known, strict=False))
        sources = [-1] * len(rows)  # which step a row is fed, if any
        if latent_step is not None:
            done, counted = known[len(answering) :][: len(thinkers)], known[len(answering) + len(thinkers) :]
            for place, at in enumerate(thinkers):
                rows[at].note(latent_step, place, done=bool(done[place]), counts=bool(counted[place]))
                # The last latent under the cap is fed too: the marker stands behind it.
                if rows[at].thinking:
                    sources[at] = place
        words = _next_words(rows, sources, picked)
        words_B, sources_B = upload([words, sources], hidden_BD.device)
        inputs_BD = self.method.embed_prompt(words_B[:, None])[:, 0]
        if latent_step is None:
            return inputs_BD
        feeds_BD = latent_step.next_input[sources_B.clamp(min=0)].to(inputs_BD.dtype)
        return torch.where(sources_B[:, None] >= 0, feeds_BD, inputs_BD)

    def _pick(self, rows: Sequence[Row], hidden_RD: Tensor) -> Tensor:
        """The next word of each of some rows that answer, ``[R]``."""
        scores_RV = cast(AnsweringReasoner, self.method).logits(hidden_RD)
        words_R = scores_RV.argmax(dim=-1)
        first = torch.zeros_like(words_R[:1])
        for at, row in enumerate(rows):
            decoding = row.job.speak
            assert isinstance(decoding, AnswerDecoding)
            if decoding.pick is not None:
                said = upload([row.said], first.device)
                words_R[at] = decoding.pick(first, said, scores_RV[at : at + 1])[0]
        return words_R

    def _leave(self) -> None:
        kept = _staying(self.rows)
        if len(kept) < len(self.rows):
            part = _Part(self.rows, self.cache, self.mask_BT, kept)
            self.inputs_BD = self.inputs_BD[part.kept_rows]
            self._regroup(part)

    def _regroup(self, *parts: _Part) -> None:
        """Make one cache of the kept rows of others; all rows end in the last column."""
        parts = tuple(part for part in parts if part.kept)
        if not parts:
            self.clear()
            return
        self.rows = [part.rows[at] for part in parts for at in part.kept]
        width = max(row.length for row in self.rows)

        def aligned(held: Tensor, index: Tensor) -> Tensor:
            """``[B, ..., T, X]`` with as many columns as the longest row needs."""
            chosen = held[index][..., -width:, :]
            return F.pad(chosen, (0, 0, width - chosen.shape[-2], 0))

        indices = [part.kept_rows for part in parts]
        cache = ReservedCache(self.method.stack.config, width + max(row.job.room for row in self.rows))
        for depth, layer in enumerate(cache.layers):
            held = [(part.cache.layers[depth], index) for part, index in zip(parts, indices, strict=True)]
            layer.update(
                torch.cat([aligned(source.keys, index) for source, index in held]),
                torch.cat([aligned(source.values, index) for source, index in held]),
            )
        self.cache = cache
        masks = [aligned(part.mask_BT[..., None], index) for part, index in zip(parts, indices, strict=True)]
        self.mask_BT = torch.cat(masks)[..., 0]


def _staying(rows: Sequence[Row]) -> list[int]:
    """A row may be cancelled at any moment, from another thread: ask once and keep the answer."""
    return [at for at, row in enumerate(rows) if not row.over and not row.cancelled]


def _next_words(rows: Sequence[Row], sources: Sequence[int], picked: Mapping[int, int]) -> list[int]:
    """The token that each row is fed where it is fed no latent; 0 where it is, or is over."""
    return [
        0 if row.over or source >= 0 else row.next_word(picked.get(at))
        for at, (row, source) in enumerate(zip(rows, sources, strict=True))
    ]


def _select(rows_B: Tensor, kept: Sequence[int]) -> Tensor:
    """Some rows, in their order."""
    return rows_B if len(kept) == len(rows_B) else rows_B[upload(kept, rows_B.device)]
