"""One thread that computes, and the queue before it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from unspoken.reasoning.engine import Reasoner
from unspoken.serving.batch import Batch, Job, Progress

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server accepts.

    Attributes:
        batch_size: answers that are computed at once.
        queue: answers that may wait for their turn beside those.
        prompt_tokens: cap of a prompt.
        answer_tokens: cap of an answer.
        body_seconds: time for the body of a request to arrive.

    Raises:
        ValueError: a limit below 1.
    """

    batch_size: int = 32
    queue: int = 256
    prompt_tokens: int = 4096
    answer_tokens: int = 1024
    body_seconds: int = 30

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"the limit {field.name} is {getattr(self, field.name)}; it is at least 1")


class QueueFull(Exception):
    """As many answers are waiting as may wait."""


class Closing(Exception):
    """Nothing new is begun any more."""


@dataclass
class Counters:
    """What was done since the start."""

    answers: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    spoken_tokens: int = 0
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
        self._batch = Batch(method)
        self._waiting: deque[Job] = deque()
        self._running = 0
        self._unfinished: set[Job] = set()
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
        """Refuse new work, finish what was taken, and return when that is done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

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
        with self._changed:
            if self._closing:
                raise Closing
            if len(self._unfinished) + len(jobs) > self.limits.batch_size + self.limits.queue:
                raise QueueFull
            self._unfinished.update(jobs)
            self._waiting.extend(jobs)
            self._changed.notify_all()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more: they leave the queue or the batch."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._unfinished.difference_update(jobs)
            self._waiting = deque(job for job in self._waiting if not job.cancelled)

    def finish(self, job: Job) -> None:
        """The answer is complete before the model has ended it: the job counts as answered and leaves the batch."""
        self._leave(job, answered=True)
        self.cancel([job])

    def _leave(self, job: Job, *, answered: bool) -> None:
        """A job is over: its place is free before anybody hears of it, unless it has been given up already."""
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
            self.counters.spoken_tokens += len(progress.tokens)
            if progress.over:
                self._leave(job, answered=not progress.failure)
            report(index, progress)

        return count

    def _work(self) -> None:
        batch = self._batch
        while True:
            with self._changed:
                self._running = len(batch.rows)
                self._changed.wait_for(lambda: self._waiting or batch.rows or self._closing)
                if not self._waiting and not batch.rows:
                    return
                free = max(0, self.limits.batch_size - len(batch.rows))
                joining = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
                self._running += len(joining)
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
