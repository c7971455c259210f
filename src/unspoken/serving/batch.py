"""A batch that rows join and leave between two steps.

A newcomer's prompt is read on its own, in pieces if it is long, and then its rows go on in the same decoder as the
others, see `unspoken.reasoning.engine.Decoder`: what a row goes through is what it goes through in a batch that starts
together.

transformers has continuous batching too (``transformers.generation.continuous_batching``, which ``transformers serve``
can use), but it cannot carry a latent. Its scheduler, its static input buffers and the carry-over between two steps
hold token ids, and the model is called with ``input_ids`` alone; a step whose input is a vector does not fit.
Without it ``transformers serve`` calls ``generate`` for one request at a time.

A row's numbers are those it would have alone up to the order in which float32 sums are taken, so its tokens are the
same unless two scores are as close as rounding.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from unspoken.chain import LatentChain, StopReason
from unspoken.reasoning.cache import ReservedCache, ReservedLayer
from unspoken.reasoning.engine import Decoder, LatentStep, Reasoner, StopRule
from unspoken.reasoning.picking import upload
from unspoken.reasoning.prompts import prompt_key
from unspoken.reasoning.row import AnswerDecoding, Phase, Row, chain_of

_LEAST_PIECE = 32  # tokens; a smaller piece takes no less time


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is new of a row.

    Attributes:
        tokens: of the answer, since the last progress.
        over: whether these were the last.
        latents: steps of the chain so far.
        capped: the answer, or the chain that is the answer, was cut off by its cap.
        failure: why there will be no answer; empty if nothing went wrong.
    """

    tokens: tuple[int, ...] = ()
    over: bool = False
    latents: int = 0
    capped: bool = False
    failure: str = ""


class Job(Row):
    """One answer in the making.

    Args:
        prompt: tokens, with those that open the chain.
        stop: when the chain ends.
        speaker: how the stack that reasons also answers; or, where something else reads the finished chain, what makes
            tokens of a chain of one row.
        keep_chain: whether ``chain`` is kept where the stack that reasons also answers.

    Attributes:
        report: receives every progress, in the thread that computes; it must return at once. Set it before the job
            joins a batch.
        submitted: when, by the monotonic clock.
        request: which jobs were asked for together.
        chain: of the answer that is over, where it was kept and has steps.
    """

    report: Callable[[Progress], None]
    submitted: float
    request: object

    def __init__(
        self,
        prompt: Sequence[int],
        stop: StopRule,
        speaker: AnswerDecoding | Callable[[LatentChain], list[int]],
        *,
        keep_chain: bool = False,
    ) -> None:
        decoding = speaker if isinstance(speaker, AnswerDecoding) else None
        super().__init__(**vars(stop), decoding=decoding, key=prompt_key(prompt))
        self.prompt = list(prompt)
        self.speaker = speaker
        self.chain: LatentChain | None = None
        self._keep_chain = keep_chain or decoding is None
        self._finished = False
        self._reported = 0
        self._steps: list[LatentStep] = []
        self._steps_seen = 0

    @property
    def length(self) -> int:
        """The most columns of the cache that it takes."""
        return len(self.prompt) + self.steps_left

    def report_step(self, latent_steps: Sequence[LatentStep], index: int) -> None:
        """Report what the last step of the decoder brought.

        Args:
            latent_steps: of all its rows.
            index: of this one among them.
        """
        over, tokens = self.phase is Phase.OVER, self.tokens[self._reported :]
        if self._keep_chain:
            self._keep_steps(latent_steps, index, over)
        if isinstance(self.speaker, AnswerDecoding):
            capped = over and self.tokens[-1] not in self.speaker.end_ids
        else:
            capped = self.reason is StopReason.CAP
            if over:
                assert self.chain is not None
                tokens = self.speaker(self.chain)
        if tokens or over:
            self._reported += len(tokens)
            self._finished = over
            latents = sum(self.recorded)
            self.report(Progress(tokens=tuple(tokens), over=over, latents=latents, capped=over and capped))

    def _keep_steps(self, latent_steps: Sequence[LatentStep], index: int, over: bool) -> None:
        new = self.recorded[self._steps_seen :]  # none where the row was in another phase
        self._steps_seen += len(new)
        for step, recorded in zip(latent_steps[len(latent_steps) - len(new) :], new, strict=True):
            if recorded:
                self._steps.append(step.select(slice(index, index + 1)))
        if over and self._steps:
            reason = upload([self.reason], self._steps[-1].latent.device)
            mask = torch.ones((1, len(self._steps)), dtype=torch.bool, device=reason.device)
            self.chain = chain_of(self._steps, mask, reason)

    def fail(self, reason: str) -> None:
        """Report that there will be no answer, unless there is one."""
        if not self._finished:
            self._finished = True
            self.report(Progress(over=True, failure=reason))


class Batch:
    """Rows that are computed together, and prompts that are read between their steps.

    A long prompt is read in pieces, one piece after each step of the rows, so that nobody waits for all of it. A piece
    takes about as long as such a step, by what both took so far.

    Args:
        method: whose stack they share; rows that answer with it need an `unspoken.reasoning.AnsweringReasoner`.
        piece_tokens: the most prompt tokens that are read at once.

    Raises:
        ValueError: a layer of the stack forgets what is far back, so that rows cannot be regrouped.
    """

    def __init__(self, method: Reasoner, piece_tokens: int = 512) -> None:
        if any(type(layer) is not ReservedLayer for layer in ReservedCache(method.stack.config, 1).layers):
            raise ValueError(
                "this model has layers that keep only part of what they saw (a sliding window, or a recurrent state), "
                "and their rows cannot join a running batch; serve a model with full attention"
            )
        self.method = method
        self.decoder: Decoder | None = None
        self._piece_tokens = piece_tokens
        self._unread: deque[Job] = deque()
        self._reading: Decoder | None = None
        self._step_seconds = self._token_seconds = 0.0

    @property
    def rows(self) -> list[Job]:
        """Those that are computed or read, or will be read next."""
        reading = [] if self._reading is None else self._reading.rows
        return [*self._decoded, *cast(list[Job], reading), *self._unread]

    @property
    def reads_long(self) -> bool:
        """A long prompt is being read, or will be read next."""
        return self._reading is not None or bool(self._unread)

    @property
    def budget(self) -> int:
        """Prompt tokens that may be read before the next step of the rows."""
        if not self._decoded or not self._token_seconds:
            return self._piece_tokens
        tokens = max(_LEAST_PIECE, int(self._step_seconds / self._token_seconds))
        return min(self._piece_tokens, tokens)

    @property
    def _decoded(self) -> list[Job]:
        return [] if self.decoder is None else cast(list[Job], self.decoder.rows)

    def clear(self) -> None:
        """Forget every row."""
        self.decoder = self._reading = None
        self._unread.clear()

    @torch.no_grad()
    def join(self, rows: Sequence[Job]) -> None:
        """Take new rows in: read their prompts, or put those that are long in line to be read in pieces."""
        short = [row for row in rows if len(row.prompt) <= self._piece_tokens]
        self._unread.extend(row for row in rows if len(row.prompt) > self._piece_tokens)
        if short:
            with self._timed(len(short) * max(len(row.prompt) for row in short)):
                self._start(self._opened(short))

    @torch.no_grad()
    def step(self) -> None:
        """One pass of the stack for all rows, and a piece of a prompt; those that are over or cancelled leave."""
        self._regroup()
        if self.decoder is not None:
            began = time.perf_counter()
            _step(self.decoder)
            self._step_seconds = _smoothed(self._step_seconds, time.perf_counter() - began)
            self._regroup()
        self._read_piece()

    def _read_piece(self) -> None:
        while self._unread and self._unread[0].cancelled:
            self._unread.popleft()
        if self._reading is not None and cast(Job, self._reading.rows[0]).cancelled:
            self._reading = None
        if self._reading is None and self._unread:
            self._reading = self._opened([self._unread.popleft()])
        if self._reading is None:
            return
        reading, left = self._reading, self._reading.inputs.shape[1]
        columns = min(self.budget, left)
        with self._timed(columns):
            if columns < left:
                reading.read(columns)
            else:
                self._reading = None
                self._start(reading)

    def _opened(self, rows: Sequence[Job]) -> Decoder:
        lengths = [len(row.prompt) for row in rows]
        padded = [[0] * (max(lengths) - len(row.prompt)) + row.prompt for row in rows]
        inputs = self.method.embed_prompt(upload(padded, self.method.stack.device))
        return Decoder(self.method, rows, inputs, lengths, selective=True)

    def _start(self, joining: Decoder) -> None:
        """Read what is left of prompts and take their rows in."""
        _step(joining)
        if self.decoder is None:
            self.decoder = joining
            self._regroup()
        else:
            self._regroup(joining)

    def _regroup(self, joining: Decoder | None = None) -> None:
        if self.decoder is not None:
            self.decoder.regroup(joining)
            if not self.decoder.rows:
                self.decoder = None

    @contextlib.contextmanager
    def _timed(self, tokens: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._token_seconds = _smoothed(self._token_seconds, (time.perf_counter() - began) / tokens)


def _smoothed(mean: float, seconds: float) -> float:
    return seconds if not mean else 0.8 * mean + 0.2 * seconds


def _step(decoder: Decoder) -> None:
    latent_steps = decoder.step()
    for index, row in enumerate(cast(list[Job], decoder.rows)):
        row.report_step(latent_steps, index)
