"""Files that a kill cannot leave half written, and that no link can turn elsewhere.

Everything that a run writes is written here, or by a library into a new folder of `new_folder`: under a temporary name
that nobody can know before, forced to disk, then renamed. A symbolic link that has the name of a file is replaced, and
what it points to stays as it is; one that has the name of a folder in which files are to be made is refused, and so is
one in place of a lock. The run folder itself, and what is above it, may be links.
"""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

_LINE = 110  # characters of a line of a JSON file
_ENCODER = json.JSONEncoder(allow_nan=False)
MODEL = "model"  # the finished folder of a stage, inside its working folder
UNFINISHED = ".*.tmp"  # temporary names
LARGEST_TEXT = 2**28  # bytes; configurations and results have thousands, the tokenizers of the hub some ten millions


class FolderError(ValueError):
    """A folder, or a model of the hub, that is not loaded; the message is one line: what, where, what to do."""


# --- writing ----------------------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Force a file or a directory entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one move: a reader sees the old one or the new one."""
    temporary = _temporary(path)
    # Nothing may have that name already, not even a link.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, with the content as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """As `write_text`, with the content as JSON.

    Raises:
        ValueError: the content holds a number that JSON has not, infinity for instance.
    """
    write_text(path, _as_json(content) + "\n")


def _as_json(value: Any, depth: int = 0) -> str:
    """An entry a line, but what is short, and lists of plain values such as curves, on one."""
    line = _ENCODER.encode(value)
    nested = isinstance(value, dict) or (
        isinstance(value, list | tuple) and any(isinstance(entry, dict | list | tuple) for entry in value)
    )
    if not nested or len(line) <= _LINE:
        return line
    if isinstance(value, dict):
        entries = [f"{_key(key)}: {_as_json(entry, depth + 1)}" for key, entry in value.items()]
    else:
        entries = [_as_json(entry, depth + 1) for entry in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    between = "\n" + " " * (depth + 1)
    return f"{begin}{between}{f',{between}'.join(entries)}\n{' ' * depth}{end}"


@lru_cache(maxsize=1024, typed=True)
def _key(key: Any) -> str:
    """A key of a mapping; numbers and None are written as text."""
    return json.dumps({key: 0})[1:-4]


def discard(path: Path) -> None:
    """Remove a folder or a file; of a link the link alone."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def new_folder(final: Path) -> Path:
    """A new, empty folder beside the one that will have its content; those that a kill left there are removed."""
    for leftover in final.parent.glob(f".{glob.escape(final.name)}.*.tmp"):
        discard(leftover)
    folder = _temporary(final)
    folder.mkdir(parents=True)
    return folder


def refuse_link(folder: Path) -> None:
    """Refuse a symbolic link where a run makes files.

    Raises:
        ValueError: it is one.
    """
    if folder.is_symlink():
        raise FolderError(
            f"{folder} is a symbolic link, but the folders of a run must be real directories; replace the link, or "
            "choose another run folder"
        )


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder somewhere inside another one.

    Raises:
        ValueError: a symbolic link stands between the two, or in place of the inner one.
    """
    root.mkdir(parents=True, exist_ok=True)
    for name in [*reversed(folder.relative_to(root).parents), folder.relative_to(root)][1:]:
        refuse_link(root / name)
        (root / name).mkdir(exist_ok=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The content of a file of text.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is no regular file (a pipe would never end), it is larger than any such file, or no UTF-8.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FolderError(f"{path} is no regular file; put a file there")
        if status.st_size > LARGEST_TEXT:
            raise FolderError(f"{path} has {status.st_size} bytes, and no file of this kind is as large; restore it")
        try:
            return file.read(LARGEST_TEXT).decode()
        except UnicodeDecodeError as error:
            raise FolderError(f"{path} is damaged: {error}; restore it") from None


def parse_json(text: str) -> Any:
    """The content of JSON text.

    Raises:
        json.JSONDecodeError: it is none, is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from None


@contextmanager
def one_line_error(what: str, remedy: str, unless: Callable[[Exception], bool] | None = None) -> Iterator[None]:
    """Turn an error of any type, from code that trusts what it reads, into one of one line.

    Args:
        what: cannot be done.
        unless: which errors are raised as they are, beside those that are one line already.

    Raises:
        ValueError: what was wrong.
    """
    try:
        yield
    except FolderError:
        raise
    except Exception as error:
        if unless is not None and unless(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        message = " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])
        raise FolderError(f"{what} ({type(error).__name__}: {message}); {remedy}") from error


def read_json(path: Path, remedy: str = "restore it") -> Any:
    """The content of a JSON file.

    Args:
        remedy: what the message of a damaged file asks for.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: as `read_text`, or it is no JSON.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise FolderError(f"{path} is damaged: {error}; {remedy}") from None
