"""One thread that computes, and the queue before it."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import TypeVar

from unspoken.reasoning.engine import Reasoner
from unspoken.serving.batch import Batch, Job, Progress
from unspoken.serving.queue import Queue

T = TypeVar("T")

_log = logging.getLogger(__name__)
_LAST_STEP = 10  # seconds
_PATIENCE = 5  # seconds that a long job lets short ones pass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server accepts.

    Attributes:
        batch_size: answers that are computed at once; those to one request have at most three quarters of them.
        batch_tokens: positions of these answers together, each counted with the longest one's; likewise.
        piece_tokens: tokens of prompts that are read between two steps.
        queue: answers that may wait for their turn beside those.
        prompt_tokens: cap of a prompt.
        answer_tokens: cap of an answer.
        connections: open at once, or fewer where the system lets the process open fewer files.
        head_seconds: time for the head of a request to arrive, and for a connection to wait for one.
        body_seconds: time for its body.
        write_seconds: time for a client to take what it was sent.

    Raises:
        ValueError: a limit below 1.
    """

    batch_size: int = 32
    batch_tokens: int = 2**14
    piece_tokens: int = 512
    queue: int = 256
    prompt_tokens: int = 4096
    answer_tokens: int = 1024
    connections: int = 512
    head_seconds: int = 10
    body_seconds: int = 30
    write_seconds: int = 60

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"the limit {field.name} is {getattr(self, field.name)}; it is at least 1")


class QueueFull(Exception):
    """The queue of waiting answers is full."""


class Closing(Exception):
    """The engine is shutting down and takes no new work."""


@dataclass
class Counters:
    """What was done since the start."""

    answers: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    latent_steps: int = 0
    passes: int = 0
    seconds: float = 0.0  # from admission to the last token, summed over answers


class Engine:
    """Computes answers in a thread of its own, as many at once as the limits allow; the others wait in order.

    Args:
        method: see `Batch`.
        limits: see `Limits`.
    """

    def __init__(self, method: Reasoner, limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self._batch = Batch(method, limits.piece_tokens)
        self._waiting = Queue()
        self._running = 0
        self._unfinished: set[Job] = set()
        self._calls: deque[Callable[[], None]] = deque()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="unspoken-model", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether new work is taken."""
        return self._thread.is_alive() and not self._closing

    @property
    def running(self) -> int:
        """Answers being computed."""
        return self._running

    @property
    def waiting(self) -> int:
        """Answers whose turn has not come."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def close(self) -> None:
        """Refuse new work, finish what was taken, and return when that is done, or after ten seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_LAST_STEP)

    def submit(self, jobs: Sequence[Job], report: Callable[[int, Progress], None]) -> None:
        """Take some jobs, all or none.

        Args:
            jobs: what to do.
            report: receives every progress of the job with the given index, in the thread that computes; it must
                return at once.

        Raises:
            QueueFull: there are not as many places left.
            Closing: `close` was called.
        """
        for index, job in enumerate(jobs):
            job.report, job.submitted = self._counted(job, index, report), time.monotonic()
            job.request = jobs
        with self._changed:
            if self._closing:
                raise Closing
            if len(self._unfinished) + len(jobs) > self.limits.batch_size + self.limits.queue:
                raise QueueFull
            self._unfinished.update(jobs)
            self._waiting.add(jobs)
            self._changed.notify_all()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Compute something else with the model, between two steps of the batch, which waits for it.

        Raises:
            QueueFull: as many calls are waiting as answers may wait.
            Closing: `close` was called.
        """
        result: Future[T] = Future()

        def compute() -> None:
            if result.set_running_or_notify_cancel():
                try:
                    result.set_result(function())
                except Exception as error:  # who waits for the result gets it
                    result.set_exception(error)

        with self._changed:
            if self._closing:
                raise Closing
            if len(self._calls) >= self.limits.queue:
                raise QueueFull
            self._calls.append(compute)
            self._changed.notify_all()
        return result

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more: they leave the queue or the batch."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._unfinished.difference_update(jobs)
            self._waiting.drop_cancelled()

    def finish(self, job: Job) -> None:
        """The answer is complete before the model has ended it: the job counts as answered and leaves the batch."""
        self._leave(job, answered=True)
        self.cancel([job])

    def _leave(self, job: Job, *, answered: bool) -> None:
        """A job is over: its place is free before its end is reported, unless it has been given up already."""
        with self._changed:
            if job not in self._unfinished:
                return
            self._unfinished.discard(job)
        counters = self.counters
        if not answered:
            counters.failures += 1
            return
        counters.answers += 1
        counters.prompt_tokens += len(job.prompt)
        counters.latent_steps += sum(job.recorded)
        counters.seconds += time.monotonic() - job.submitted

    def _counted(self, job: Job, index: int, report: Callable[[int, Progress], None]) -> Callable[[Progress], None]:
        def count(progress: Progress) -> None:
            self.counters.answer_tokens += len(progress.tokens)
            if progress.over:
                self._leave(job, answered=not progress.failure)
            report(index, progress)

        return count

    def _admitted(self) -> list[Job]:
        """The next rows to compute: so many that the batch stays within its tokens, and reading within its budget."""
        batch, limits, now = self._batch, self.limits, time.monotonic()
        joining, prompts, budget, reads_long = list[Job](), list[int](), batch.budget, batch.reads_long
        rows, longest = Counter[int](), Counter[int]()  # of all (0) and of each request: positions of the longest

        def extended(key: int, job: Job) -> tuple[int, int]:
            return rows[key] + 1, max(longest[key], job.length)

        def exceeds(key: int, job: Job, places: int, tokens: int) -> bool:
            number, length = extended(key, job)
            return number > 1 and (number > places or number * length > tokens)

        def fits(job: Job) -> bool | None:
            places, tokens = limits.batch_size, limits.batch_tokens
            # A quarter is kept for others than this request.
            if exceeds(id(job.request), job, places - places // 4, tokens - tokens // 4):
                return False
            if exceeds(0, job, places, tokens):
                return None if now - job.submitted > _PATIENCE else False
            if len(job.prompt) > limits.piece_tokens:
                return not reads_long
            return not prompts or (len(prompts) + 1) * max(*prompts, len(job.prompt)) <= budget

        def hold(job: Job) -> None:
            for key in (0, id(job.request)):
                rows[key], longest[key] = extended(key, job)

        for row in batch.rows:
            hold(row)
        while rows[0] < limits.batch_size and (job := self._waiting.take(fits)) is not None:
            hold(job)
            joining.append(job)
            if len(job.prompt) > limits.piece_tokens:
                reads_long = True
            else:
                prompts.append(len(job.prompt))
        return joining

    def _work(self) -> None:
        batch = self._batch
        while True:
            with self._changed:
                self._running = len(batch.rows)
                self._changed.wait_for(lambda: len(self._waiting) or batch.rows or self._calls or self._closing)
                if not len(self._waiting) and not batch.rows and not self._calls:
                    return
                call = self._calls.popleft() if self._calls else None
                joining = self._admitted()
                self._running += len(joining)
            if call is not None:
                call()
            if not joining and not batch.rows:
                continue
            try:
                batch.join(joining)
                batch.step()
                self.counters.passes += 1
            except Exception as error:  # one bad batch must not end the server
                _log.exception("the model failed; its rows are given up")
                failed = dict.fromkeys([*batch.rows, *joining])
                batch.clear()
                for row in failed:
                    row.fail(f"{type(error).__name__} while computing the answer")
