"""The runtime checker of shapes and types that conftest.py switches on.

It is beartype, with one way out: a signature that beartype cannot read (``typing.Self`` outside a decorated class, a
protocol that is not ``runtime_checkable``) stays unchecked and is listed, so that a test can see that nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

# A whole number is welcome where a float is, as type checkers have it.
_enforced = beartype(conf=BeartypeConf(is_pep484_tower=True))
unchecked: list[str] = []


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations enforced."""
    try:
        return _enforced(function)
    except BeartypeDecorHintException:
        unchecked.append(f"{function.__module__}.{function.__qualname__}")
        return function
