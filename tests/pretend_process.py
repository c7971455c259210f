"""A process that has the pretend device, which cannot be taken back once PyTorch knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

Elsewhere = Callable[..., Any]


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Gives what calls a function with some arguments in that process; what it raises, it raises here."""
    from pretend_jobs import prepare

    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=prepare) as pool:
        yield lambda work, *given, **named: pool.submit(work, *given, **named).result()
