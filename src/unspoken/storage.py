"""Files that a kill cannot leave half written: under a temporary name first, forced to disk, then renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

MODEL = "model"  # the finished folder of a stage, inside its working folder


def sync(path: Path) -> None:
    """Force a file or a directory entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one move: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, with the content as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """As `write_text`, with the content as JSON.

    Raises:
        ValueError: the content holds a number that JSON has not, infinity for instance.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
