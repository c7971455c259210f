"""From the bytes of a request to JSON, at a bounded cost.

A decoder makes an object of every value before anything is checked, and no other thread runs meanwhile. So the values
are counted first, by searches that take microseconds, and what has too many is not decoded.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from unspoken.serving.refusal import Refusal

BODY_BYTES = 2**20
_QUOTES = 2**15
_VALUES = 2**16
_DEPTH = 32
_DIGITS = 100  # of a number; to convert thousands takes a time that grows with their square
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def decoded(body: bytes) -> Any:
    """The JSON value that a body is.

    Raises:
        Refusal: it is none, or has too many values, strings or levels.
    """
    _check_structure(body)
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_not_json)
    except ValueError as error:  # of the encoding too
        raise Refusal(400, f"the body is not JSON in UTF-8: {error}") from None


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check_structure(body: bytes) -> None:
    """Count what stands outside strings, without decoding anything."""
    quotes = body.count(b'"')
    if quotes > _QUOTES:
        raise Refusal(400, f"the body has {quotes} quotation marks; at most {_QUOTES} are read")
    outside, in_string = [], False
    for piece in body.split(b'"'):
        if in_string:
            # After an odd number of backslashes the quotation mark belongs to the string.
            in_string = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1
        else:
            outside.append(piece)
            in_string = True
    structure = b"".join(outside)
    values = sum(structure.count(mark) for mark in (b",", b":", b"[", b"{"))
    if values > _VALUES:
        raise Refusal(400, f"the body has about {values} values; at most {_VALUES} are read")
    if b"0" * _DIGITS in structure.translate(_DIGITS_AS_ZEROS):
        raise Refusal(400, f"the body has a number of {_DIGITS} digits or more")
    depth = 0
    for bracket in structure.translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > _DEPTH:
            raise Refusal(400, f"the body is nested more than {_DEPTH} levels deep")
