"""Connections: how many there are, and how long a client may take.

uvicorn reads requests without any limit of time, and counts connections when a request is complete. Its protocol is
extended here by deadlines, and by a cap under which the connection that has waited longest without a request makes
place for a newcomer: connections that do nothing cannot keep out those that ask something.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import resource
import time
from dataclasses import dataclass, field
from typing import Any

from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.h11_impl import H11Protocol

from unspoken.serving.engine import Limits

BACKLOG = 128  # connections that are accepted at once, before any of them is looked at
_RESERVED = 128  # descriptors for files, the loop and listening
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 70\r\n\r\n"
    b'{"error": {"message": "too many connections", "type": "server_error"}}'
)
_log = logging.getLogger(__name__)


def connection_cap(wanted: int) -> int:
    """How many connections may be open, given what the system lets this process open.

    Raises:
        ValueError: it lets it open too little for any.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = descriptors - BACKLOG - _RESERVED
    if descriptors != resource.RLIM_INFINITY and possible < 1:
        raise ValueError(
            f"this process may open {descriptors} files, and the server needs {BACKLOG + _RESERVED} beside one a "
            "connection; raise the limit (ulimit -n)"
        )
    return wanted if descriptors == resource.RLIM_INFINITY else min(wanted, possible)


@dataclass(kw_only=True)
class IdleConnections:
    """The connections of a server that have sent no complete request, the one that has waited longest first.

    Attributes:
        cap: of all connections.
        limits: of time.
    """

    cap: int
    limits: Limits
    connections: dict[Connection, None] = field(default_factory=dict)


class Connection(H11Protocol):
    """One connection.

    The next head must be complete in time. Its body has a deadline of its own where it is read, and an answer that its
    client does not take is given up.

    Args:
        waiting: see `IdleConnections`.
        arguments: of uvicorn's class.
    """

    def __init__(self, waiting: IdleConnections, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._waiting = waiting
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    @property
    def _has_head(self) -> bool:
        """A request has begun and its answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _in_progress(self) -> bool:
        """A complete request, or one that is being answered already."""
        return self._has_head and (not self.cycle.more_body or self.cycle.response_started)

    def connection_made(self, transport: Any) -> None:
        """A client connects; above the cap it takes the place of one that does nothing, or is sent away."""
        super().connection_made(transport)
        oldest = next(iter(self._waiting.connections), None)
        if len(self.connections) > self._waiting.cap:
            if oldest is None:
                _log.warning("%d connections have requests in progress; one more was refused", self._waiting.cap)
                transport.write(_BUSY)
                transport.close()
                return
            oldest.abort()
        self._wait()

    def abort(self) -> None:
        """Close the connection at once."""
        self._waiting.connections.pop(self, None)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of a client."""
        super().data_received(data)
        self._wait()

    def on_response_complete(self) -> None:
        """An answer was sent; the next request may be here already."""
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._waiting.connections.pop(self, None)
        self._end_deadline()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes its answer too slowly."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(self._waiting.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken what it was sent."""
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
        super().resume_writing()

    def shutdown(self) -> None:
        """The server ends: a request whose body is not complete will not be answered."""
        if self._has_head and not self._in_progress:
            self.abort()
        else:
            super().shutdown()

    def _wait(self) -> None:
        """Start or end the wait for a complete request, and for its head, by what is here now."""
        if self._in_progress or self.transport.is_closing():
            self._waiting.connections.pop(self, None)
        else:
            self._waiting.connections.setdefault(self, None)
        if self._has_head:
            self._end_deadline()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self._waiting.limits.head_seconds, self.abort)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def connection_settings(limits: Limits) -> dict[str, Any]:
    """Arguments of uvicorn that put its connections and its log under limits.

    Raises:
        ValueError: see `connection_cap`.
    """
    waiting = IdleConnections(cap=connection_cap(limits.connections), limits=limits)
    http = functools.partial(Connection, waiting)
    return {"http": http, "ws": "none", "backlog": BACKLOG, "log_config": log_config()}


# --- the log ---------------------------------------------------------------------------------------------------------


class Rate(logging.Filter):
    """Lets a number of lines a second through, saves up for ten seconds, and counts what it left out.

    Args:
        lines: a second.
    """

    def __init__(self, lines: float = 20) -> None:
        super().__init__()
        self._lines = lines
        self._left = 10 * lines
        self._last = time.monotonic()
        self._omitted = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        now = time.monotonic()
        self._left = min(10 * self._lines, self._left + (now - self._last) * self._lines)
        self._last = now
        if self._left < 1:
            self._omitted += 1
            return False
        self._left -= 1
        if self._omitted:
            record.msg = f"({self._omitted} lines were left out before this one) {record.msg}"
            self._omitted = 0
        return True


def log_config() -> dict[str, Any]:
    """uvicorn's, with a rate of lines, and with what asyncio and this package log."""
    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"rate": {"()": Rate}}
    for handler in config["handlers"].values():
        handler["filters"] = ["rate"]
    for name in ("asyncio", "unspoken"):
        config["loggers"][name] = {"handlers": ["default"], "level": "WARNING", "propagate": False}
    return config
