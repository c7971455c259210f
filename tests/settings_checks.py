"""Compares settings with what is known of them from elsewhere.

Defaults stand in tables of the documentation, beside the papers' values. A table counts where its header has a
column "default". Its first column names one key, or several whose defaults stand in the same order; ``a.b`` is a field
of a field, and "of `kind`" after the keys says whose they are.

Those of models' configurations are recorded: a folder that was written before a field existed has the meaning of its
default, so a default cannot change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedConfig

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECORDED = Path(__file__).parent / "recorded_configurations.json"
WORDS = {"none": None, "empty": [], "on": True, "off": False}


def documented(*pages: str) -> dict[tuple[str, str | None], Any]:
    """Default of every key on some pages, by key and the kind that it belongs to; None where no kind is named."""
    defaults: dict[tuple[str, str | None], Any] = {}
    for names, kind, cell in (row for page in pages for row in _rows(page)):
        values = [cell] if len(names) == 1 else re.split(r", | and ", cell)
        if len(values) == 1:
            values *= len(names)
        if len(values) == len(names):
            defaults |= {(name, kind): _value(text) for name, text in zip(names, values, strict=True)}
    return defaults


def _rows(page: str) -> Iterator[tuple[list[str], str | None, str]]:
    column = None
    for line in (DOCS / page).read_text().splitlines():
        if not line.startswith("|"):
            column = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if column is None:
            column = cells.index("default") if "default" in cells else -1
            continue
        if column > 0 and "`" in cells[0]:
            keys, _, kind = cells[0].partition(" of ")
            names = re.findall(r"`(?:stages\.\*\.)?(?:\.\.\.)?(?:objective\.)?([\w.]+)`", keys)
            parent = names[0].rpartition(".")[0]
            names[1:] = [f"{parent}.{name}" if parent else name for name in names[1:]]
            yield names, kind.strip("`") or None, cells[column]


def _value(text: str) -> Any:
    if text.startswith("`") and re.search(r"\W", text.strip("`")):
        return text.strip("`")
    values = [WORDS[word] if word in WORDS else yaml.safe_load(word.strip("`")) for word in text.split(", ")]
    return values[0] if len(values) == 1 else values


def check_defaults(settings: type, *pages: str, kind: str | None = None, prefix: str = "") -> None:
    """Every setting with a default stands on one of the pages, with that default.

    Null, an empty list and an empty text may be left out, or stand there as words, such as "set" or "of the folder".

    Args:
        settings: a dataclass.
        pages: relative to the folder of the documentation.
        kind: what a page's "of `kind`" must be where it says so.
        prefix: what comes before the names of fields on the pages.
    """
    stated = documented(*pages)
    assert stated, pages
    for field in fields(settings):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        name = prefix + field.name
        entry = (name, kind) if (name, kind) in stated else (name, None)
        if is_dataclass(default) and entry not in stated:
            check_defaults(type(default), *pages, kind=kind, prefix=f"{name}.")
        elif entry in stated:
            value = stated[entry]
            plain = list(default) if isinstance(default, tuple) else default
            if default in (MISSING, None, ()) or default == "":
                assert not value or isinstance(value, str), f"{name} is {value!r} on {pages}, but has no default"
            else:
                assert (value, type(value) is bool) == (plain, type(plain) is bool), (
                    f"{name} is {value!r} on {pages}, but its default is {default!r}"
                )
        else:
            assert default in (MISSING, None, (), ""), f"{pages} do not state the default of {name}, {default!r}"


def check_recorded(configuration: type[PreTrainedConfig]) -> None:
    """A configuration has the fields and defaults that folders on disk rely on."""
    own = configuration.__mro__[: configuration.__mro__.index(PreTrainedConfig)]
    names = {name for base in own for name in base.__annotations__}
    recorded = json.loads(RECORDED.read_text())[configuration.__name__]
    assert {name: getattr(configuration, name) for name in names} == recorded


def check_ranges(
    settings: Callable[..., Any], ranges: Mapping[str, tuple[Sequence[Any], Sequence[Any]]], **others: Any
) -> None:
    """Each setting takes the ends of its range, and is refused by name beyond them.

    Args:
        ranges: for each setting, values that it takes and values that it does not.
        others: further settings.
    """
    for name, (allowed, refused) in ranges.items():
        for value in allowed:
            assert getattr(settings(**{**others, name: value}), name) == value
        for value in refused:
            with pytest.raises(ValueError, match=name):
                settings(**{**others, name: value})
