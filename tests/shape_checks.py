"""The runtime checker of shapes that conftest.py switches on: of every function and dataclass that annotates some.

It is beartype, with one way out: a signature that beartype cannot read (``typing.Self`` outside a decorated class, a
protocol that is not ``runtime_checkable``) stays unchecked and is listed, so that a test can see that nothing else is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

# A whole number is welcome where a float is, as type checkers have it.
_enforced = beartype(conf=BeartypeConf(is_pep484_tower=True))
unchecked: list[str] = []
_SHAPE = re.compile(r"\b(Float|Int|Integer|Bool|Num|Shaped)\[")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations enforced."""
    try:
        return _enforced(function)
    except BeartypeDecorHintException:
        unchecked.append(f"{function.__module__}.{function.__qualname__}")
        return function


def annotates_shapes(thing: Any) -> bool:
    """Whether an annotation of a function, or of a class's fields, is a tensor of some shape."""
    function = getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
    return any(_SHAPE.search(str(annotation)) for annotation in getattr(function, "__annotations__", {}).values())


def leave_other_functions_alone() -> None:
    """Have the import hook of jaxtyping decorate what annotates shapes, in place of everything in a module.

    Its decorator binds the arguments of every call, and is made anew for a nested function each time that its outer one
    is called: a tenth of the time of the tests.
    """
    decorator_of = jaxtyping.jaxtyped

    def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
        decorate = decorator_of(typechecker=typechecker)
        return lambda thing: decorate(thing) if annotates_shapes(thing) else thing

    jaxtyping.jaxtyped = jaxtyped
