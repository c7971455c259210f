"""Signals that end a command: in one line, with status 128 and the signal's number, and with nothing half written.

While a stage trains, the first signal waits until the step is done, so that a checkpoint of it can be written; a second
one ends the command at once, as does the first at any other time. Only the command line installs this: in a notebook,
Python's own ``KeyboardInterrupt`` ends what runs.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Of this process: how many blocks postpone signals, and which signal waits.
_deferring: list[int] = []
_waiting: list[int] = []


class Interrupted(BaseException):
    """A signal asks the command to end.

    Attributes:
        status: with which the process should exit.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Inside, the signals raise `Interrupted`, or wait where they are deferred; ignored ones stay ignored."""
    owner = os.getpid()

    def receive(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:
            raise KeyboardInterrupt  # a process of the data loader, which ends without a message
        if number == signal.SIGHUP:
            _leave_terminal()
        if _deferring and not _waiting:
            _waiting.append(number)
            return
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # ``nohup`` and shells that start something in the background ignore some of them.
    for number in (number for number in _SIGNALS if before[number] is not signal.SIG_IGN):
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number in _SIGNALS:
            signal.signal(number, before[number])
        _waiting.clear()


@contextmanager
def defer_signals() -> Iterator[None]:
    """Inside, the first signal waits, and `requested` is true; at the end it is raised.

    Raises:
        Interrupted: a signal came, and nothing else is being raised.
    """
    _deferring.append(1)
    try:
        yield
    finally:
        _deferring.pop()
    if _waiting and not _deferring:
        raise_interrupted()


@contextmanager
def allow_signals() -> Iterator[None]:
    """Inside a `defer_signals` block: signals raise again, one that waits too.

    Raises:
        Interrupted: a signal came.
    """
    kept, _deferring[:] = list(_deferring), []
    try:
        if _waiting:
            raise_interrupted()
        yield
    finally:
        _deferring[:] = kept


def requested() -> bool:
    """Whether a deferred signal waits."""
    return bool(_waiting)


def raise_interrupted() -> NoReturn:
    """End the command, because of the signal that waits or, where only another rank received one, as if by SIGTERM.

    Raises:
        Interrupted: always.
    """
    raise Interrupted(_waiting.pop() if _waiting else signal.SIGTERM)


def _leave_terminal() -> None:
    """Stop writing to a terminal that is gone: every line would be an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (sys.__stdout__.fileno(), sys.__stderr__.fileno()) if sys.__stdout__ and sys.__stderr__ else ():
        # A terminal that is gone is no terminal for ``isatty``, but still a device of characters.
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(null, descriptor)
    os.close(null)
