"""A batch that rows join and leave at any step.

`unspoken.reasoning` decodes a batch that starts together and ends with its slowest row. A server's rows arrive one by
one, so here the cache is regrouped whenever somebody comes or goes: rows end in the same column, a newcomer's prompt is
read on its own and slid in beside the others, and columns that nobody uses any more are given up on the left. What a
row goes through is the engine's: think, close the chain with the marker, answer.

The library has continuous batching too (``transformers.generation.continuous_batching``, which ``transformers serve``
can use), but it cannot carry a latent. Its scheduler, its static input buffers and the carry-over between two steps
hold token ids, and the model is called with ``input_ids`` alone; a step whose input is a vector has no place in it.
Without it ``transformers serve`` calls ``generate`` for one request at a time.

A row's numbers are those it would have alone up to the order in which float32 sums are taken, so its tokens are the
same unless two scores are as close as rounding.

Axes: B rows, T columns of the cache, D latent width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache

from unspoken.chain import LatentChain, StopReason
from unspoken.reasoning import SilentReasoner, SpeakingReasoner, Speech, StopRule, Thought
from unspoken.reasoning.cache import ReservedCache, ReservedLayer


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
    speak: Speech | Callable[[LatentChain], list[int]]

    @property
    def room(self) -> int:
        """Steps that may follow the prompt."""
        spoken = len(self.speak.marker) + self.speak.max_tokens if isinstance(self.speak, Speech) else 0
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
        self.said: list[int] = []
        self._owed = list(job.speak.marker) if isinstance(job.speak, Speech) else []
        self._thoughts: list[tuple[Tensor, Tensor | None, Tensor | None]] = []

    @property
    def thinks_next(self) -> bool:
        """Whether the next output is a thought."""
        return self.thinking and self.steps < self.job.stop.max_latents

    @property
    def answers_next(self) -> bool:
        """Whether the next output is scored for a word of the answer."""
        return not self.thinks_next and not self._owed

    def note(self, thought: Thought, place: int, *, done: bool, counts: bool) -> None:
        """Record a thought; a row that is done thinks no more."""
        fixed = self.job.stop.fixed
        self.steps += 1
        self.thinking = fixed or not done
        if counts or fixed:
            self.latents += 1
            if not isinstance(self.job.speak, Speech):
                ids, weights = thought.support_ids, thought.support_weights
                at = slice(place, place + 1)
                self._thoughts.append(
                    (thought.latent[at], None if ids is None else ids[at], None if weights is None else weights[at])
                )
        if not isinstance(self.job.speak, Speech) and not self.thinks_next:
            reason = StopReason.FIXED if fixed else StopReason.CAP if self.thinking else StopReason.END
            self._tell(self.job.speak(self._chain(reason)), over=True, capped=reason == StopReason.CAP)

    def next_word(self, scores_V: Tensor | None) -> int:
        """The token that is fed next: what is left of the marker, then the words picked from scores."""
        speech = self.job.speak
        assert isinstance(speech, Speech)
        self.thinking = False
        if self._owed:
            return self._owed.pop(0)
        assert scores_V is not None
        said = torch.tensor([self.said], dtype=torch.long, device=scores_V.device)
        word = int(speech.choose({0: len(self.said)}, said, scores_V[None]))
        ended = word in speech.end_ids
        full = len(self.said) + 1 == speech.max_tokens
        self._tell([word], over=ended or full, capped=full and not ended)
        return word

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
    cache: DynamicCache
    mask_BT: Tensor
    kept: list[int]


class Batch:
    """Rows that are computed together.

    Args:
        method: whose stack they share; rows that answer with it need an `unspoken.reasoning.SpeakingReasoner`.

    Raises:
        ValueError: a layer of the stack forgets what is far back, so that rows cannot be regrouped.
    """

    def __init__(self, method: SilentReasoner) -> None:
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
        device, width = self.method.stack.device, max(len(row.job.prompt) for row in rows)
        ids_BT = torch.zeros((len(rows), width), dtype=torch.long, device=device)
        mask_BT = torch.zeros_like(ids_BT)
        for index, row in enumerate(rows):
            ids_BT[index, width - len(row.job.prompt) :] = torch.tensor(row.job.prompt, device=device)
            mask_BT[index, width - len(row.job.prompt) :] = 1
        cache = ReservedCache(self.method.stack.config, width)
        positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        inputs_BD = self._react(rows, self._run(self.method.embed_prompt(ids_BT), mask_BT, positions_BT, cache))
        present = _Part(self.rows, self.cache, self.mask_BT, _staying(self.rows))
        coming = _Part(rows, cache, mask_BT, _staying(rows))
        old_BD = self.inputs_BD[present.kept] if present.kept else inputs_BD[:0]
        self.inputs_BD = torch.cat([old_BD, inputs_BD[coming.kept]])
        self._regroup(present, coming)

    @torch.no_grad()
    def step(self) -> None:
        """One pass of the stack for all rows; those that are over or cancelled leave."""
        self._leave()
        if not self.rows:
            return
        self.mask_BT = F.pad(self.mask_BT, (0, 1), value=1)
        positions_B1 = self.mask_BT.sum(dim=1, keepdim=True) - 1
        hidden_BD = self._run(self.inputs_BD[:, None], self.mask_BT, positions_B1, self.cache)
        self.inputs_BD = self._react(self.rows, hidden_BD)
        self._leave()

    def _run(self, inputs_BTD: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: DynamicCache) -> Tensor:
        outputs = self.method.stack(
            inputs_embeds=inputs_BTD,
            attention_mask=mask_BT,
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
        scores: dict[int, Tensor] = {}
        if answering:
            method = cast(SpeakingReasoner, self.method)
            scores = dict(zip(answering, method.logits(hidden_BD[answering]), strict=True))
        feeds: dict[int, Tensor] = {}
        if thinkers:
            thought = self.method.think(hidden_BD[thinkers])
            done = thought.done.tolist()
            counts = [True] * len(done) if thought.counts is None else thought.counts.tolist()
            for place, at in enumerate(thinkers):
                rows[at].note(thought, place, done=done[place], counts=counts[place])
                # The last latent under the cap is fed too: the marker stands behind it.
                if rows[at].thinking:
                    feeds[at] = thought.feed[place]
        words_B1 = torch.zeros((len(rows), 1), dtype=torch.long, device=hidden_BD.device)
        for at, row in enumerate(rows):
            if not row.over and at not in feeds:
                words_B1[at] = row.next_word(scores.get(at))
        inputs_BD = self.method.embed_prompt(words_B1)[:, 0]
        if feeds:
            inputs_BD[list(feeds)] = torch.stack(list(feeds.values())).to(inputs_BD.dtype)
        return inputs_BD

    def _leave(self) -> None:
        kept = _staying(self.rows)
        if len(kept) < len(self.rows):
            self.inputs_BD = self.inputs_BD[kept]
            self._regroup(_Part(self.rows, self.cache, self.mask_BT, kept))

    def _regroup(self, *parts: _Part) -> None:
        """Make one cache of the kept rows of others; all rows end in the last column."""
        parts = tuple(part for part in parts if part.kept)
        if not parts:
            self.clear()
            return
        self.rows = [part.rows[at] for part in parts for at in part.kept]
        width = max(int(part.mask_BT[part.kept].sum(dim=1).max()) for part in parts)

        def aligned(held: Tensor, kept: list[int]) -> Tensor:
            """``[B, ..., T, X]`` with as many columns as the longest row needs."""
            chosen = held[kept][..., -width:, :]
            return F.pad(chosen, (0, 0, width - chosen.shape[-2], 0))

        cache = ReservedCache(self.method.stack.config, width + max(row.job.room for row in self.rows))
        for depth, layer in enumerate(cache.layers):
            held = [(part.cache.layers[depth], part.kept) for part in parts]
            layer.update(
                torch.cat([aligned(source.keys, kept) for source, kept in held]),
                torch.cat([aligned(source.values, kept) for source, kept in held]),
            )
        self.cache = cache
        self.mask_BT = torch.cat([aligned(part.mask_BT[..., None], part.kept)[..., 0] for part in parts])


def _staying(rows: Sequence[Row]) -> list[int]:
    """A row may be cancelled at any moment, from another thread: ask once and keep the answer."""
    return [at for at, row in enumerate(rows) if not row.over and not row.cancelled]
