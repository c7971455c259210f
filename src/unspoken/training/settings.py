"""Strict reading of nested settings: a mapping becomes frozen dataclasses, or an error of one line."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")
_LARGEST = 10**9  # of whole numbers


class SettingsError(ValueError):
    """A setting is unknown, missing, of the wrong type or impossible; the message names it."""


def nearest(word: object, known: list[str]) -> str:
    """The hint at the end of a message: the closest known word, or all of them."""
    if not known:
        return "there is nothing to choose from"
    close = difflib.get_close_matches(str(word), known, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(value) for value in typing.get_args(kind))
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list of {_describe(typing.get_args(kind)[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _convert(kind: Any, value: Any, where: str) -> Any:
    """A value converted to a type."""
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(kind, value, where)
    if origin is Literal:
        return _one_of_literals(typing.get_args(kind), value, where)
    if dataclasses.is_dataclass(kind):
        return (
            one_of([kind], value, where)
            if hasattr(kind, "kind")
            else read(typing.cast("type[Any]", kind), value, where)
        )
    if origin is tuple and isinstance(value, list | tuple):
        element = typing.get_args(kind)[0]
        return tuple(_convert(element, item, f"{where}[{index}]") for index, item in enumerate(value))
    if kind is float and (number := _number(value)) is not None:
        return number
    if kind is int and type(value) is int and abs(value) > _LARGEST:
        raise SettingsError(f"{where} is {value}; it must be at most {_LARGEST}")
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise SettingsError(f"{where} is {value!r}; it must be {_describe(kind)}")


def _one_of_literals(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value in choices and not isinstance(value, bool):
        return value
    raise SettingsError(f"{where} is {value!r}; {nearest(value, [str(choice) for choice in choices])}")


def _convert_union(kind: Any, value: Any, where: str) -> Any:
    """The first of several types that takes the value; of several dataclasses the one of its kind."""
    options = typing.get_args(kind)
    if value is None and type(None) in options:
        return None
    classes = [option for option in options if dataclasses.is_dataclass(option)]
    others = [option for option in options if option not in classes]
    if classes and (isinstance(value, Mapping) or others in ([], [type(None)])):
        return _convert(classes[0], value, where) if len(classes) == 1 else one_of(classes, value, where)
    for option in others:
        try:
            return _convert(option, value, where)
        except SettingsError:
            continue
    raise SettingsError(f"{where} is {value!r}; it must be {_describe(kind)}")


def _number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        value = float(value)  # YAML 1.1 takes 1e-3 for text
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def one_of(classes: Sequence[Any], value: Any, where: str) -> Any:
    """Choose among dataclasses by the key ``kind``."""
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where} is {value!r}; it must be a mapping with a 'kind'")
    by_kind = {cls.kind: cls for cls in classes}
    former = {cls.former_kind: cls.kind for cls in classes if hasattr(cls, "former_kind")}
    if "kind" not in value:
        raise SettingsError(f"{where}.kind is missing; choose from {', '.join(by_kind)}")
    kind = former.get(value["kind"], value["kind"]) if isinstance(value["kind"], str) else None
    if kind not in by_kind:
        raise SettingsError(f"{where}.kind is {value['kind']!r}; {nearest(value['kind'], list(by_kind))}")
    return read(by_kind[kind], {key: item for key, item in value.items() if key != "kind"}, where)


def _several_of(classes: Sequence[Any], values: Any, where: str) -> tuple[Any, ...]:
    """As `one_of`, for each of a list."""
    if not isinstance(values, list | tuple):
        raise SettingsError(f"{where} is {values!r}; it must be a list of mappings with a 'kind'")
    return tuple(one_of(classes, value, f"{where}[{index}]") for index, value in enumerate(values))


def _value(kind: Any, choices: Callable[[], Sequence[Any]] | None, value: Any, where: str) -> Any:
    """The value of one field of a dataclass, which may have to be chosen."""
    if choices is None or (value is None and type(None) in typing.get_args(kind)):
        return _convert(kind, value, where)
    return (_several_of if typing.get_origin(kind) is tuple else one_of)(choices(), value, where)


def read(cls: type[T], values: Any, where: str = "") -> T:
    """Build a frozen dataclass out of a mapping.

    Args:
        cls: the dataclass, of which nested dataclasses, tuples, unions with a ``kind`` and literals are read too.
            ``former_keys`` and ``former_kind`` are older names of its keys and kind. A field with ``choices`` in its
            metadata takes one of the classes that this function returns, a list of them, or null where its type does.
        values: what a YAML file holds.
        where: dotted path of the mapping, for messages.

    Raises:
        SettingsError: an unknown key (the nearest known one is named), a missing one, a wrong type, or a combination
            that the dataclass itself refuses.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where or 'the recipe'} is {values!r}; it must be a mapping of keys to values")
    former = getattr(cls, "former_keys", {})
    values = {former.get(key, key): value for key, value in values.items()}
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls)) if field.init}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise SettingsError(f"{prefix}{key} is not a known key; {nearest(key, list(fields))}")
    arguments = {}
    for key, value in values.items():
        arguments[key] = _value(hints[key], fields[key].metadata.get("choices"), value, f"{prefix}{key}")
    for name, field in fields.items():
        if name not in arguments and field.default is field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{prefix}{name} is missing; it must be {_describe(hints[name])}")
    try:
        return cls(**arguments)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"{where}: {error}".removeprefix(": ")) from None


def as_mapping(settings: Any) -> Any:
    """The reverse of `read`: plain containers that YAML and JSON can hold, with ``kind`` where there is a choice."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        content = {field.name: as_mapping(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
        return {"kind": settings.kind, **content} if hasattr(settings, "kind") else content
    if isinstance(settings, tuple | list):
        return [as_mapping(item) for item in settings]
    return settings
