"""Both ends of the shapes that can be built."""

from __future__ import annotations

from typing import Any

import pytest

from unspoken.architecture import check_architecture

SHAPE: dict[str, Any] = {
    "vocab_size": 1,
    "hidden_size": 1,
    "attention_size": 2,
    "intermediate_size": 1,
    "num_hidden_layers": 0,
    "num_attention_heads": 1,
    "initializer_range": 1e-9,
}


@pytest.mark.parametrize(
    ("key", "allowed", "refused"),
    [
        *[(key, [2**24], [0, 2**24 + 1, 1.0, None]) for key in ("vocab_size", "hidden_size", "intermediate_size")],
        ("attention_size", [2**24], [0, 1, 3, 2**24 + 2]),
        ("num_attention_heads", [1], [0, 2, 3]),
        ("num_hidden_layers", [4096], [-1, 4097]),
        ("initializer_range", [1.0], [0, -0.02]),
    ],
)
def test_every_key_ends_where_it_should(key: str, allowed: list[Any], refused: list[Any]) -> None:
    check_architecture(**SHAPE)
    for value in allowed:
        check_architecture(**{**SHAPE, key: value})
    for value in refused:
        with pytest.raises(ValueError, match=key):
            check_architecture(**{**SHAPE, key: value})
