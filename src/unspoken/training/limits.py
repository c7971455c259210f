"""Errors of one line where memory or disk is too small: what was too small, where, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Parts of the messages of the allocators of CPU, CUDA and others.
_MESSAGES = ("allocate memory", "not enough memory", "out of memory", "alloc_failed")


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that there was not enough memory."""
    by_message = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MESSAGES)
    return by_message or isinstance(error, MemoryError | torch.OutOfMemoryError)


@contextmanager
def explain_oom(work: str, remedy: str) -> Iterator[None]:
    """Inside, running out of memory ends in a ValueError of one line.

    Args:
        work: what needs the memory, with the sizes that decide how much.
        remedy: what to change.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ValueError(f"{work}: out of memory; {remedy}") from error


@contextmanager
def explain_io_error(folder: Path, *others: type[Exception]) -> Iterator[None]:
    """Inside, a disk that is full or cannot be written to ends in an OSError of one line.

    Args:
        folder: what is written.
        others: further exceptions that the libraries raise for a failed write.
    """
    refusals: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except Exception as error:
        # Libraries in Rust, as that of tokenizers, raise what has no type of its own.
        if not isinstance(error, refusals) and "(os error " not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise OSError(
            f"{folder} could not be written ({reason}); free space there, or give access, and run the same command "
            "again. What was finished before is unharmed"
        ) from error
