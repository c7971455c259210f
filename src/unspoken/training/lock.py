"""A run folder belongs to one run at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from unspoken import distributed

LOCK = ".lock"
_TIMEOUT = 0.2  # seconds; a single try can fail while the run before removes its file


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder. One process may hold it several times; of several ranks, rank 0 holds it for all.

    The operating system drops the lock with the process, however that ends.

    Raises:
        ValueError: another run holds it, or its lock file is a symbolic or a hard link.
    """
    path = folder.resolve() / LOCK
    # One object for each file in this process, which counts how often it is held. No substitute where the file system
    # has no locks: that one would outlive a killed process.
    lock = FileLock(path, is_singleton=True, thread_local=False, fallback_to_soft=False, on_acquired=_write_owner)
    distributed.run_on_main(lambda: _acquire(lock, path))
    try:
        yield
    finally:
        if distributed.is_main_process():
            if lock.lock_counter == 1:
                path.unlink(missing_ok=True)  # while it is locked: a waiting run notices and makes its own file
            lock.release()


def _acquire(lock: FileLock, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=_TIMEOUT)
    except Timeout:
        with path.open(errors="replace") as file:
            owner = file.read(200).strip()
        raise ValueError(
            f"{path.parent} is in use by another run ({owner or 'just starting'}); wait until it ends, or choose "
            "another folder"
        ) from None
    except OSError:
        if not path.is_symlink():
            raise
        raise ValueError(f"{path} is a symbolic link, which a lock never follows; remove it") from None


def _write_owner(descriptor: int) -> None:
    if os.fstat(descriptor).st_nlink > 1:
        raise ValueError(f"the file {LOCK} of the run folder is a hard link, so it is another file too; remove it")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
