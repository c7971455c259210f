"""Numbers that settings may have; importable without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def require_value(settings: Any, name: str, allowed: Callable[[Any], bool], expected: str) -> None:
    """Refuse a field of some settings whose value is out of range.

    Args:
        settings: any object with that field.
        name: of the field.
        allowed: whether a value is in range.
        expected: the range in words, such as ``at least 1``.

    Raises:
        ValueError: the value is out of range; the message names field, value and range.
    """
    value = getattr(settings, name)
    if not allowed(value):
        raise ValueError(f"{name} is {value}; it must be {expected}")
