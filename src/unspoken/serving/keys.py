"""The key that clients must send."""

from __future__ import annotations

import os
from pathlib import Path

KEY_VARIABLE = "UNSPOKEN_API_KEY"


def checked_key(key: str, source: str) -> str:
    """A key without the end of its line.

    Args:
        key: as it was given.
        source: where, for messages.

    Raises:
        ValueError: no client could send it in a header.
    """
    line = key.removesuffix("\n").removesuffix("\r")
    if not line:
        raise ValueError(f"the API key in {source} is empty; write one there, for instance 32 random letters")
    if not all("!" <= letter <= "~" for letter in line):
        raise ValueError(
            f"the API key in {source} has spaces, control characters or letters outside ASCII, which clients cannot "
            "send in a header; choose one of visible ASCII characters in one line"
        )
    return line


def read_key(file: str | Path | None) -> str | None:
    """The key out of a file, or else out of the environment variable ``UNSPOKEN_API_KEY``; None if neither has one.

    Raises:
        ValueError: see `checked_key`, or the file is no text.
        OSError: the file cannot be read.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE)
        return checked_key(key, KEY_VARIABLE) if key else None
    try:
        return checked_key(Path(file).read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text, so it holds no API key; write the key alone into it") from None
