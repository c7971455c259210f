"""Corpora of damaged and hostile inputs, and the limits within which every one of them ends in one line."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 8.0  # of one case on a busy machine; a case that does not end takes for ever
GIBIBYTES = 2  # beyond what the process has already

# What stands in place of a file, whatever its format.
SPOILED: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(path.stat().st_size)),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "nested lists": lambda path: path.write_text("[" * 100_000),
    "nested objects": lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("3"),
    "null": lambda path: path.write_text("null"),
    "no keys": lambda path: path.write_text("{}"),
    "not a number": lambda path: path.write_text('{"a": NaN}'),
    "missing": Path.unlink,
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
}
# What stands in place of one value.
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 10**9, 10**12, 10**30, 1.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        "NaN",
        "nobody/code",
        "../../etc/passwd",
        "\x1b[31m",
        "a" * 5000,
        [],
        [[]],
        [1] * 5000,
        {},
        {"model_type": "llama"},
    ),
)


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of nested mappings and lists are, those that hold others too."""
    if path:
        yield path
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield from leaves(value, (*path, key))


def altered(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy in which one value is another; ``...`` leaves it out."""
    copy = json.loads(json.dumps(content))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return copy


class Endless(BaseException):
    """A case took too long."""


@contextmanager
def limits(seconds: float = SECONDS) -> Iterator[None]:
    """Inside, this process gets so much time and memory and no more."""

    def late(*_: Any) -> None:
        raise Endless

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + GIBIBYTES * 2**30, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(act: Callable[[], Any], seconds: float = SECONDS) -> str:
    """How a case ends: "works", "refused", or what must not be."""
    began = time.monotonic()
    try:
        with limits(seconds):
            act()
    except (ValueError, OSError) as error:
        message = str(error)
        if "\n" in message.strip():
            return f"several lines: {message!r}"
        return "refused" if message else "refused without a word"
    except Endless:
        return f"did not end in {time.monotonic() - began:.0f} s"
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "works"


def surprises(cases: Iterator[tuple[str, Callable[[], Any]]]) -> dict[str, str]:
    """Cases that neither work nor are refused in one line."""
    ends = {name: outcome(act) for name, act in cases}
    assert ends
    return {name: end for name, end in ends.items() if end not in ("works", "refused")}
