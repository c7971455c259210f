"""A batch that rows join and leave between two steps.

A newcomer's prompt is read on its own, and then its rows go on in the same decoder as the others, see
`unspoken.reasoning.engine.Decoder`: what a row goes through is what it goes through in a batch that starts together.

The library has continuous batching too (``transformers.generation.continuous_batching``, which ``transformers serve``
can use), but it cannot carry a latent. Its scheduler, its static input buffers and the carry-over between two steps
hold token ids, and the model is called with ``input_ids`` alone; a step whose input is a vector does not fit.
Without it ``transformers serve`` calls ``generate`` for one request at a time.

A row's numbers are those it would have alone up to the order in which float32 sums are taken, so its tokens are the
same unless two scores are as close as rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from unspoken.chain import LatentChain, StopReason
from unspoken.reasoning.cache import ReservedCache, ReservedLayer
from unspoken.reasoning.engine import Decoder, LatentStep, Reasoner, StopRule, chain_of
from unspoken.reasoning.picking import upload
from unspoken.reasoning.row import AnswerDecoding, Phase, Row


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
        chain: of the answer that is over, where it was kept and has steps.
    """

    report: Callable[[Progress], None]
    submitted: float

    def __init__(
        self,
        prompt: Sequence[int],
        stop: StopRule,
        speaker: AnswerDecoding | Callable[[LatentChain], list[int]],
        *,
        keep_chain: bool = False,
    ) -> None:
        decoding = speaker if isinstance(speaker, AnswerDecoding) else None
        super().__init__(max_latents=stop.max_latents, fixed=stop.fixed, decoding=decoding)
        self.prompt = list(prompt)
        self.speaker = speaker
        self.chain: LatentChain | None = None
        self._keep_chain = keep_chain or decoding is None
        self._finished = False
        self._reported = 0
        self._steps: list[LatentStep] = []
        self._steps_seen = 0

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
    """Rows that are computed together.

    Args:
        method: whose stack they share; rows that answer with it need an `unspoken.reasoning.AnsweringReasoner`.

    Raises:
        ValueError: a layer of the stack forgets what is far back, so that rows cannot be regrouped.
    """

    def __init__(self, method: Reasoner) -> None:
        if any(type(layer) is not ReservedLayer for layer in ReservedCache(method.stack.config, 1).layers):
            raise ValueError(
                "this model has layers that keep only part of what they saw (a sliding window, or a recurrent state), "
                "and their rows cannot join a running batch; serve a model with full attention"
            )
        self.method = method
        self.decoder: Decoder | None = None

    @property
    def rows(self) -> list[Job]:
        """Those that are computed."""
        return [] if self.decoder is None else cast(list[Job], self.decoder.rows)

    def clear(self) -> None:
        """Forget every row."""
        self.decoder = None

    @torch.no_grad()
    def join(self, rows: Sequence[Job]) -> None:
        """Read the prompts of new rows and take them in."""
        if not rows:
            return
        lengths = [len(row.prompt) for row in rows]
        padded = [[0] * (max(lengths) - len(row.prompt)) + row.prompt for row in rows]
        inputs = self.method.embed_prompt(upload(padded, self.method.stack.device))
        joining = Decoder(self.method, rows, inputs, lengths, selective=True)
        _step(joining)
        if self.decoder is None:
            self.decoder = joining
            self._regroup()
        else:
            self._regroup(joining)

    def step(self) -> None:
        """One pass of the stack for all rows; those that are over or cancelled leave."""
        self._regroup()
        if self.decoder is not None:
            _step(self.decoder)
            self._regroup()

    def _regroup(self, joining: Decoder | None = None) -> None:
        if self.decoder is not None:
            self.decoder.regroup(joining)
            if not self.decoder.rows:
                self.clear()


def _step(decoder: Decoder) -> None:
    latent_steps = decoder.step()
    for index, row in enumerate(cast(list[Job], decoder.rows)):
        row.report_step(latent_steps, index)
