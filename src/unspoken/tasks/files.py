"""Problems from files and from data sets on the Hugging Face hub; a malformed row is an error of one line."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unspoken.storage import parse_json
from unspoken.tasks.problems import ReasoningProblem, ReasoningTask, require_whole_characters
from unspoken.tasks.spans import END, OPEN
from unspoken.tasks.task import Indices, ProblemList, Traits

# Each row with its place in words, and a hash of all of them.
Source: TypeAlias = tuple[Iterator[tuple[str, Any]], str]

_MOST_HELD_OUT = 500
_MOST_EXAMPLES, _LONGEST_EXAMPLE = 3, 200  # of rows that are left out for one reason, and characters of each
_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".gz")
_FORMATS = "JSON lines or a JSON list (.jsonl, .json), CSV (.csv) and Parquet (.parquet), each also packed (.gz)"
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?")


@lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """The order of the training rows in one epoch, ``[rows]``."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def set_name(source: str) -> str:
    """Name of a test set: its file without the suffix, or its name on the hub without the owner."""
    match = None if _is_file(source) else HUB_NAME.fullmatch(source)
    return _unpacked(source).stem if match is None else match["name"].rpartition("/")[2]


def _unpacked(source: str) -> Path:
    """The name that a packed file has without its packing."""
    path = Path(source)
    return path.with_suffix("") if path.suffix == ".gz" else path


def _is_file(source: str) -> bool:
    return Path(source).suffix in _SUFFIXES or Path(source).is_file() or not HUB_NAME.fullmatch(source)


def read_source(source: str, split: str) -> Source:
    """The rows of a file or of a data set on the hub; files are CSV, Parquet or JSON by their suffix.

    Args:
        split: of a data set whose name asks for no other.

    Raises:
        ValueError: the source is missing or cannot be read.
    """
    if not _is_file(source):
        return _read_hub(source, split)
    read = {".csv": _read_csv, ".parquet": _read_parquet}.get(_unpacked(source).suffix, read_rows)
    try:
        return read(source)
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {source}; give {_FORMATS}, or owner/name[:config][@split] on the hub"
        ) from None


def hub_rows(source: str, split: str, *, streaming: bool = False) -> Any:
    """The rows of one split of a data set on the hub.

    Args:
        source: ``owner/name[:config][@split]``.
        split: where the source names none.
        streaming: rows arrive as they are read, and nothing is stored.

    Raises:
        ValueError: the hub cannot be read, or it has no such data.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"there is no file {source}; to read it from the hub, install the extra: pip install 'unspoken[hub]'"
        ) from None
    named = HUB_NAME.fullmatch(source)
    assert named is not None
    split = named["split"] or split
    try:
        return datasets.load_dataset(named["name"], named["config"], split=split, streaming=streaming)
    except Exception as error:  # datasets and huggingface_hub raise errors of many classes
        raise ValueError(
            f"there is no file {source}, and the hub gave no {split!r} split under that name "
            f"({' '.join(str(error).split())}); give a file, or owner/name[:config][@split] on the hub"
        ) from None


def _read_hub(source: str, split: str) -> Source:
    rows = [dict(row) for row in hub_rows(source, split)]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
    return ((f"{source}, {split} row {number}", row) for number, row in enumerate(rows, start=1)), digest


def _content(path: str) -> bytes:
    try:
        content = Path(path).read_bytes()
        return gzip.decompress(content) if Path(path).suffix == ".gz" else content
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}; give a file that can be read") from None


def _text(path: str, content: bytes, what: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path}: {error}; it must be {what} in UTF-8 (supported: {_FORMATS})") from None


def read_rows(path: str) -> Source:
    """The rows of a JSON list, or of a file with one JSON object per line.

    Returns:
        Each row with its position in words, to be read by `row_fields`, and a hash of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, or a list that is no JSON.
    """
    content = _content(path)
    text, digest = _text(path, content, "JSON"), hashlib.sha256(content).hexdigest()
    if not text.lstrip().startswith("["):
        _refuse_other_format(path, text)
        lines = enumerate(text.split("\n"), start=1)
        return ((f"{path}, line {number}", line) for number, line in lines if line.strip()), digest
    try:
        rows = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not a JSON list ({error.msg}); fix the file") from None
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)), digest


def _refuse_other_format(path: str, text: str) -> None:
    """Refuse a file whose name promises no JSON and that begins with none, by a ValueError that lists the formats."""
    suffix = _unpacked(path).suffix
    if suffix in _SUFFIXES or text.lstrip().startswith("{"):
        return
    name = f"the suffix {suffix}" if suffix else "a name without suffix"
    raise ValueError(
        f"cannot read {path}: it is not JSON, and {name} stands for no supported format; supported are {_FORMATS}"
    )


def _read_csv(path: str) -> Source:
    """The rows of a table with a header, commas and double quotes; row 1 is the first after the header."""
    content = _content(path)
    reader = csv.reader(io.StringIO(_text(path, content, "CSV"), newline=""), strict=True)

    def rows() -> Iterator[tuple[str, Any]]:
        try:
            names = [name.strip() for name in next(reader, [])]
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{path}: the header names {twice[0]!r} twice; rename a column")
            for number, cells in enumerate((cells for cells in reader if cells), start=1):
                row: Any = dict(zip(names, cells, strict=False))
                if len(cells) > len(names):
                    row = ValueError(f"it has {len(cells)} cells, and the header {len(names)}")
                yield f"{path}, row {number}", row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error}); fix the file") from None

    return rows(), hashlib.sha256(content).hexdigest()


def _read_parquet(path: str) -> Source:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"to read {path}, install the extra: pip install 'unspoken[hub]'") from None
    content = _content(path)
    try:
        rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not Parquet ({' '.join(str(error).split())}); fix the file") from None
    digest = hashlib.sha256(content).hexdigest()
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)), digest


def row_fields(row: Any) -> dict[str, Any]:
    """The named fields of a row, which is an object, a line of JSON, or an error found while the file was read.

    Raises:
        ValueError: there are no fields; the message does not name the row.
    """
    if isinstance(row, ValueError):
        raise row
    if isinstance(row, str):
        try:
            row = parse_json(row)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise ValueError(f"a row must be an object with named fields, not {type(row).__name__}")
    require_whole_characters(json.dumps(row, ensure_ascii=False, default=str))
    return row


def unknown_fields(fields: dict[str, Any], known: str) -> ValueError:
    """The error of a row whose format is not known."""
    return ValueError(f"unknown fields {', '.join(map(repr, fields)) or '(none)'}; known are {known}")


def field_of(row: dict[str, Any], name: str) -> Any:
    """A field of a row; a ValueError if it is missing."""
    if name not in row:
        raise ValueError(f"field {name!r} is missing")
    return row[name]


def text_of(row: dict[str, Any], name: str) -> str:
    """A field that holds text, without spaces around it; a ValueError if it is missing, blank or no text."""
    value = field_of(row, name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {name!r} is {value!r}; it must be text")
    return value.strip()


def texts_of(row: dict[str, Any], name: str) -> list[str]:
    """A field that holds a list of texts, without spaces around them; a ValueError if it is missing or no such list."""
    value = field_of(row, name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"field {name!r} is {value!r}; it must be a list of texts")
    return [text.strip() for text in value]


def check_split_names(names: Iterable[str]) -> None:
    """Refuse two splits of one name, by a ValueError."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{count} splits are named {name!r}; rename the file, since a test set is named by it")


@dataclass(frozen=True, kw_only=True)
class FileConfig:
    """Which files are read."""

    # A file (JSON lines, a JSON list, CSV or Parquet, each also as .gz), or ``owner/name[:config][@split]`` on the
    # Hugging Face hub, whose "train" split is read if none is named; null if nothing is trained.
    train: str | None = None
    # Training rows held out, chosen by a hash of the question; null is a tenth of them, at most 500. A question that
    # occurs several times is held out with all its rows, so there may be a few more.
    validation_rows: int | None = None
    # Files, or names on the hub, whose "test" split is read if none is named. A test set is named after its file
    # without the suffix, or by the name on the hub without the owner.
    tests: tuple[str, ...] = ()
    skip_malformed: bool = False  # leave out rows that cannot be read, with a count, instead of refusing the file

    def __post_init__(self) -> None:
        if self.train is None and not self.tests:
            raise ValueError("neither train nor tests names a file; give at least one")
        if self.validation_rows is not None and self.validation_rows < 0:
            raise ValueError(f"validation_rows is {self.validation_rows}; it cannot be negative")
        check_split_names(["train", "validation", *map(set_name, self.tests)])

    @property
    def traits(self) -> Traits:
        """Natural language out of files."""
        return Traits(natural_language=True, from_files=True, markers=(OPEN, END))


def chosen(rows: Sequence[ReasoningProblem], indices: Indices, split: str) -> ProblemList[ReasoningProblem]:
    """Rows of a split that ends; an IndexError where there is no such row."""
    for index in indices:
        if not 0 <= index < len(rows):
            raise IndexError(f"index {index} is outside split {split!r} of {len(rows)} problems")
    return ProblemList(rows[int(index)] for index in indices)


def tenth_of(rows: int) -> int:
    """Training rows that are held out where a recipe gives no number."""
    return max(1, min(rows // 10, _MOST_HELD_OUT))


class FileTask(ReasoningTask):
    """Problems from files; the backbone brings the tokenizer.

    A fingerprint is of what the files hold and of how they are read, but not of where they lie.
    """

    dropped: dict[str, int]
    left_out: dict[str, list[str]]

    def __init__(self, config: FileConfig) -> None:
        self.config = config
        self.tests = tuple(set_name(source) for source in config.tests)
        self.dropped, self.left_out = {}, {}
        self._digests: dict[str, str] = {}
        self._problems: dict[str, list[ReasoningProblem]] = {}
        trained = () if config.train is None else (("train", config.train),)
        for name, source in (*trained, *zip(self.tests, config.tests, strict=True)):
            self._problems[name] = []
            copies: Counter[str] = Counter()
            rows, self._digests[name] = read_source(source, "train" if name == "train" else "test")
            for where, row in rows:
                try:
                    problem = self._problem(row, name)
                except ValueError as error:
                    if not config.skip_malformed:
                        raise ValueError(
                            f"{where}: {error}; fix the row, or set skip_malformed to leave such rows out"
                        ) from None
                    self._leave_out(f"{name}: malformed", f"{where}: {error}")
                    continue
                fault = self._fault(problem) if name == "train" else None
                if fault is None:
                    copies[problem.key] += 1
                    if copies[problem.key] > 1:  # some files hold a row twice; a key names one of them
                        problem = replace(problem, key=f"{problem.key}:{copies[problem.key]}")
                    self._problems[name].append(problem)
                else:
                    self._leave_out(f"{name}: {fault}", f"{where}: {problem.question}")
            if not self._problems[name]:
                counts = [
                    f"{count} {reason.removeprefix(f'{name}: ')}"
                    for reason, count in self.dropped.items()
                    if reason.startswith(f"{name}: ")
                ]
                raise ValueError(f"{source} has no usable row ({', '.join(counts) or 'it is empty'})")
        if config.train is not None:
            self._hold_out(config.train)

    def _leave_out(self, reason: str, row: str) -> None:
        """Count a row that is left out, and keep its text if it is among the first."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        examples = self.left_out.setdefault(reason, [])
        if len(examples) < _MOST_EXAMPLES:
            examples.append(shorten(row, _LONGEST_EXAMPLE, placeholder=" ..."))

    @abstractmethod
    def _problem(self, row: Any, split: str) -> ReasoningProblem:
        """One row as a problem; the name of the split is the first part of its key.

        Raises:
            ValueError: the row cannot be read; the message does not name the row.
        """

    def _fault(self, _problem: ReasoningProblem) -> str | None:
        """Why a training row that can be read is left out all the same."""
        return None

    def _held_out(self, rows: int) -> dict[str, tuple[str, int]]:
        """Splits that are cut from the training rows: the key that sets the size of each, and its size."""
        count = self.config.validation_rows
        return {"validation": ("validation_rows", tenth_of(rows) if count is None else count)}

    def _hold_out(self, source: str) -> None:
        """Move the questions with the smallest hashes to other splits, in whatever order the file has them.

        A question that occurs several times moves with all its rows, so no question is in two splits.
        """
        rows = self._problems["train"]
        total = len(rows)
        for split, (key, count) in self._held_out(total).items():
            hashes = [hashlib.sha256(problem.question.encode()).hexdigest() for problem in rows]
            held = set(sorted(hashes)[:count])
            self._problems[split] = [problem for problem, digest in zip(rows, hashes, strict=True) if digest in held]
            rows = [problem for problem, digest in zip(rows, hashes, strict=True) if digest not in held]
            if not rows:
                raise ValueError(
                    f"{key} is {count}, which leaves nothing of the {total} rows of {source} to train on; hold out "
                    "fewer"
                )
        self._problems["train"] = rows

    def size(self, split: str) -> int:
        """Problems in a split; training goes on after them with the next epoch."""
        return len(self._rows(split))

    def sample(self, split: str, indices: Indices, seed: int = 0) -> ProblemList[ReasoningProblem]:
        """The problems with the given indices.

        Training index i is row i mod n of epoch i div n, and every epoch has an order of its own, drawn with the seed.
        The other splits have the order of their file.
        """
        rows = self._rows(split)
        count = len(rows)
        if split != "train":
            return chosen(rows, indices, split)
        if any(index < 0 for index in indices):
            raise IndexError(f"index {min(indices)} is outside split 'train'; indices count from 0")
        return ProblemList(rows[epoch_order(seed, int(index) // count, count)[int(index) % count]] for index in indices)

    def _rows(self, split: str) -> list[ReasoningProblem]:
        if split not in self._problems:
            raise ValueError(f"there is no split {split!r}; this task has {', '.join(sorted(self._problems))}")
        return self._problems[split]
