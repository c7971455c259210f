"""Jobs that wait, and which of them is taken next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from unspoken.serving.batch import Job


class Queue:
    """Jobs that wait. Requests take turns, so that none waits for all jobs of another one."""

    def __init__(self) -> None:
        self._turns: deque[deque[Job]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._turns))

    def add(self, jobs: Sequence[Job]) -> None:
        """Put the jobs of one request at the end."""
        self._turns.append(deque(jobs))

    def drop_cancelled(self) -> None:
        """Leave out what nobody waits for any more."""
        kept = (deque(job for job in jobs if not job.cancelled) for jobs in self._turns)
        self._turns = deque(jobs for jobs in kept if jobs)

    def take(self, fits: Callable[[Job], bool | None]) -> Job | None:
        """The first job that fits, of the request whose turn it is, or of those after it.

        Args:
            fits: whether a job can be taken now; None means that those after it must wait for it.
        """
        for place, jobs in enumerate(self._turns):
            fit = fits(jobs[0])
            if fit is None:
                break
            if fit:
                del self._turns[place]
                job = jobs.popleft()
                if jobs:
                    self._turns.append(jobs)
                return job
        return None
