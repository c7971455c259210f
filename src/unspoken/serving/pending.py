"""The answers of one request, on their way from the engine's thread to the event loop and to the client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from unspoken.chain import StopReason
from unspoken.reasoning.inspection import Chain
from unspoken.serving.batch import Job, Progress
from unspoken.serving.engine import Closing, Engine, QueueFull
from unspoken.serving.preparation import PreparedRequest
from unspoken.serving.refusal import Refusal
from unspoken.serving.responses import Choice, ResponseFormat, error_of, usage_of
from unspoken.serving.systems import Served


class PendingAnswers:
    """The answers of one request.

    Raises:
        Refusal: the engine takes nothing more.
    """

    def __init__(self, served: Served, engine: Engine, prepared: PreparedRequest) -> None:
        self.choices = [Choice(scores=None if sampler is None else sampler.scored) for sampler in prepared.samplers]
        self._served = served
        self._engine = engine
        self._prepared = prepared
        self._latents: dict[int, int] = {}  # of each job that has begun to answer
        self._progress: asyncio.Queue[tuple[int, Progress]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def report(index: int, progress: Progress) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: a second signal ended the server at once
                loop.call_soon_threadsafe(self._progress.put_nowait, (index, progress))

        try:
            engine.submit(prepared.jobs, report)
        except QueueFull:
            raise Refusal(429, "the queue is full; try again in a second") from None
        except Closing:
            raise Refusal(503, "the server is shutting down; try again in a second") from None

    async def updates(self, *, read: bool) -> AsyncIterator[tuple[int, Choice]]:
        """The answers as they grow, until all of them are over.

        Args:
            read: whether the text of an answer is needed before it is over.

        Raises:
            Refusal: the model failed.
        """
        stops, left = self._prepared.request.stop or [], len(self.choices)
        while left:
            index, progress = await self._progress.get()
            choice = self.choices[index]
            if choice.reason is not None:  # what was computed after a text that ended it
                continue
            if progress.failure:
                raise Refusal(500, f"the model failed: {progress.failure}", code="model_failed")
            choice.tokens += progress.tokens
            self._latents[index] = progress.latents
            if progress.over:
                choice.reason = "length" if progress.capped else "stop"
            if read or stops or progress.over:
                choice.text = self._served.text(choice.tokens)
                ends = [place for stop in stops if (place := choice.text.find(stop)) >= 0]
                if ends:
                    choice.text, choice.reason = choice.text[: min(ends)], "stop"
                    self._engine.finish(self._prepared.jobs[index])
            if choice.reason is not None:
                left -= 1
                await self._extend(index, choice)
            yield index, choice

    async def _extend(self, index: int, choice: Choice) -> None:
        """Add what the extension holds of an answer that is over."""
        job, asked, cut = self._prepared.jobs[index], self._prepared.request.unspoken, self._prepared.cuts[index]
        extension: dict[str, Any] = {} if cut is None else {"max_tokens": cut}
        if asked is not None and asked.chain:
            extension["chain"] = await asyncio.to_thread(_chain, self._served, job, asked.coefficients)
        choice.extension = extension or None

    def shown(self, choice: Choice) -> int:
        """How many characters of an answer cannot change any more."""
        text, length = choice.text, len(choice.text)
        if choice.reason is not None:
            return length
        # A letter may need several tokens; until it is complete, the end of the text is a replacement.
        length -= len(text) - len(text.rstrip("\ufffd"))
        for stop in self._prepared.request.stop or ():
            starts = (size for size in range(min(len(stop), length), 0, -1) if text.endswith(stop[:size], 0, length))
            length -= next(starts, 0)
        return length

    def end(self) -> None:
        """The client has left or has everything: what is not over yet is given up."""
        self._engine.cancel(self._prepared.jobs)

    def usage(self) -> dict[str, Any]:
        """What it cost; a prompt counts once for all answers to it."""
        copies = self._prepared.request.n or 1
        prompts = sum(len(job.prompt) for job in self._prepared.jobs[::copies])
        tokens = sum(len(choice.tokens) for choice in self.choices)
        return usage_of(prompts, tokens, sum(self._latents.values()) if self._served.system.silent else 0)


def _chain(served: Served, job: Job, coefficients: int) -> dict[str, Any]:
    """The latent steps of an answer: tokens with their weights, see `unspoken.reasoning.inspection.Step`."""
    steps = [] if job.chain is None else Chain(system=served.system, record=job.chain).steps(coefficients)
    return {
        "stopped": StopReason(job.reason).name.lower(),
        "steps": [
            {
                "coefficients": [{"token": token, "coefficient": weight} for token, weight in step.tokens],
                "entropy": step.entropy,
                "nearest": step.nearest,
                "norm": step.norm,
            }
            for step in steps
        ],
    }


async def answered(pending: PendingAnswers, form: ResponseFormat) -> dict[str, Any]:
    """The answers of a request in one piece."""
    async for _ in pending.updates(read=False):
        pass
    return form.answer(pending.choices, pending.usage())


async def streamed(pending: PendingAnswers, form: ResponseFormat, *, counted: bool) -> AsyncIterator[str]:
    """Server-sent events: answers token by token, however long their chains were.

    Args:
        counted: whether the usage comes last.
    """
    shown, scored = [0] * len(pending.choices), [0] * len(pending.choices)
    try:
        for index in range(len(pending.choices) if form.chat else 0):
            yield _event(form.opening(index))
        async for index, choice in pending.updates(read=True):
            end = pending.shown(choice)
            if end > shown[index]:
                tokens = slice(scored[index], len(choice.tokens))
                yield _event(form.piece(index, choice.text[shown[index] : end], choice, tokens))
                shown[index], scored[index] = end, len(choice.tokens)
            if choice.reason is not None:
                yield _event(form.closing(index, choice))
        if counted:
            yield _event(form.counted(pending.usage()))
        yield "data: [DONE]\n\n"
    except Refusal as refusal:
        yield _event(error_of(refusal.status_code, str(refusal.detail), refusal.code))
    finally:
        pending.end()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
