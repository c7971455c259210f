"""A run folder belongs to one run at a time."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unspoken import distributed

LOCK = ".lock"
_held: set[Path] = set()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder; within one process as often as it likes, and of several ranks rank 0 holds it for all.

    The operating system drops the lock with the process, however that ends.

    Raises:
        ValueError: another run holds it.
    """
    path = folder.resolve() / LOCK
    if path in _held:
        yield
        return
    # The number of the open file means nothing on other ranks.
    descriptor = distributed.run_on_main(lambda: _acquire(path))
    _held.add(path)
    try:
        yield
    finally:
        _held.remove(path)
        if distributed.is_main_process():
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise ValueError(
                f"{path.parent} is in use by another run ({owner or 'just starting'}); wait until it ends, or choose "
                "another folder"
            ) from None
        # Whoever held it before may have removed the file between our opening and our locking it.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor
