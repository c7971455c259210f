"""Rows out of files and out of data sets on the Hugging Face hub, and what is wrong with them in one line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")


@lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """The order of the training rows in one epoch, ``[rows]``."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def set_name(source: str) -> str:
    """Name of a test set: its file without the suffix, or its name on the hub without the owner."""
    return Path(source).stem if _is_file(source) else source.partition(":")[0].rpartition("/")[2]


def _is_file(source: str) -> bool:
    return Path(source).suffix in (".json", ".jsonl") or Path(source).is_file() or not _HUB_NAME.fullmatch(source)


def read_source(source: str, split: str) -> tuple[Iterator[tuple[str, Any]], str]:
    """The rows of a file or of a data set on the hub, each with its place in words, and a hash of all of them."""
    if not _is_file(source):
        return _read_hub(source, split)
    try:
        return read_rows(source)
    except FileNotFoundError:
        raise ValueError(f"there is no file {source}; give a JSON file, or owner/name[:config] on the hub") from None


def _read_hub(source: str, split: str) -> tuple[Iterator[tuple[str, Any]], str]:
    """The rows of one split of a data set on the hub."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"there is no file {source}; to read it from the hub, install the extra: pip install 'unspoken[hub]'"
        ) from None

    name = _HUB_NAME.fullmatch(source)
    assert name is not None
    try:
        rows = [dict(row) for row in datasets.load_dataset(name["name"], name["config"], split=split)]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"there is no file {source}, and the hub gave no {split!r} split under that name "
            f"({' '.join(str(error).split())}); give a JSON file, or owner/name[:config] on the hub"
        ) from None
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
    return ((f"{source}, {split} row {number}", row) for number, row in enumerate(rows, start=1)), digest


def read_rows(path: str) -> tuple[Iterator[tuple[str, Any]], str]:
    """The rows of a JSON list, or of a file with one JSON object a line.

    Returns:
        Each row with its place in words, read by `row_fields`, and a hash of what the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, or a list that is no JSON.
    """
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}; it must be JSON in UTF-8") from None
    digest = hashlib.sha256(content).hexdigest()
    if not text.lstrip().startswith("["):
        lines = enumerate(text.split("\n"), start=1)
        return ((f"{path}, line {number}", line) for number, line in lines if line.strip()), digest
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not a JSON list ({error.msg}); mend the file") from None
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)), digest


def row_fields(row: Any) -> dict[str, Any]:
    """The named fields of a row: an object, or the line of text that should hold one.

    Raises:
        ValueError: it is none; the message says why, but not where.
    """
    if isinstance(row, str):
        try:
            row = json.loads(row)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise ValueError(f"a row must be an object with named fields, not {type(row).__name__}")
    return row


def field_of(row: dict[str, Any], name: str) -> Any:
    """A field of a row.

    Raises:
        ValueError: it is missing.
    """
    if name not in row:
        raise ValueError(f"field {name!r} is missing")
    return row[name]


def text_of(row: dict[str, Any], name: str) -> str:
    """A field that holds text, without spaces around it.

    Raises:
        ValueError: it is missing, blank or no text.
    """
    value = field_of(row, name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {name!r} is {value!r}; it must be text")
    return value.strip()


def texts_of(row: dict[str, Any], name: str) -> list[str]:
    """A field that holds a list of texts, without spaces around them.

    Raises:
        ValueError: it is missing or no such list.
    """
    value = field_of(row, name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"field {name!r} is {value!r}; it must be a list of texts")
    return [text.strip() for text in value]
