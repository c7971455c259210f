"""The ends of every range of a field are accepted, and what lies beyond is refused by the field's name.

The ranges are those of OpenAI's API (temperature 0 to 2, top_p up to 1, at most 20 likely tokens) and of the table in
``docs/serving.md``.
"""

from __future__ import annotations

from typing import Any

import pytest

from unspoken.serving.fields import Endpoint
from unspoken.serving.refusal import Refusal
from unspoken.serving.schema import request_of

MESSAGE = {"role": "user", "content": "a"}
BODIES: dict[Endpoint, dict[str, Any]] = {
    "chat": {"model": "tiny", "messages": [MESSAGE]},
    "completions": {"model": "tiny", "prompt": "a"},
}
PARTS = {"type": "text", "text": "a"}
RANGES: list[tuple[Endpoint, str, list[Any], list[Any]]] = [
    ("completions", "logprobs", [0, 20], [-1, 21]),
    ("chat", "top_logprobs", [0, 20], [-1, 21]),
    ("chat", "temperature", [0, 0.01, 2], [-0.01, 2.01]),
    ("chat", "top_p", [0.001, 1], [0, -0.1, 1.001]),
    ("chat", "n", [1, 16], [0, 17]),
    ("chat", "max_tokens", [1], [0]),
    ("chat", "max_completion_tokens", [1], [0]),
    ("chat", "seed", [-(2**63), 2**63 - 1], [-(2**63) - 1, 2**63]),
    ("chat", "stop", ["a", ["a"] * 16, "a" * 256], ["", ["a"] * 17, "a" * 257]),
    ("chat", "messages", [[MESSAGE], [MESSAGE] * 1024], [[], [MESSAGE] * 1025]),
    (
        "chat",
        "messages",
        [[{"role": "user", "content": [PARTS] * 64}]],
        [[{"role": "user", "content": [PARTS] * 65}]],
    ),
    ("completions", "prompt", ["a", ["a"] * 64, [[1]] * 64, [0], [2**31 - 1]], [[], ["a"] * 65, [[1]] * 65, [2**31]]),
    ("chat", "unspoken", [{"coefficients": 0}, {"coefficients": 20}], [{"coefficients": -1}, {"coefficients": 21}]),
]


@pytest.mark.parametrize(("endpoint", "field", "ends", "beyond"), RANGES, ids=[name for _, name, _, _ in RANGES])
def test_a_range_ends_where_it_says(endpoint: Endpoint, field: str, ends: list[Any], beyond: list[Any]) -> None:
    for value in ends:
        request_of({**BODIES[endpoint], field: value}, endpoint)
    for value in beyond:
        with pytest.raises(Refusal, match=field) as refused:
            request_of({**BODIES[endpoint], field: value}, endpoint)
        assert refused.value.status_code == 400


def test_what_a_request_leaves_out() -> None:
    chat, completion = request_of(BODIES["chat"], "chat"), request_of(BODIES["completions"], "completions")
    assert chat.checked_temperature() == 0
    assert (chat.top, completion.top) == (None, None)
    assert request_of({**BODIES["chat"], "logprobs": True}, "chat").top == 0
    assert request_of({**BODIES["chat"], "logprobs": True, "top_logprobs": 3}, "chat").top == 3
    extension = request_of({**BODIES["chat"], "unspoken": {}}, "chat").unspoken
    assert extension is not None
    assert (extension.chain, extension.coefficients) == (False, 5)


def test_a_temperature_too_close_to_zero_is_refused() -> None:
    for temperature in (0.0, 0.01):
        assert request_of({**BODIES["chat"], "temperature": temperature}, "chat").checked_temperature() == temperature
    with pytest.raises(ValueError, match=r"at least 0\.01"):
        request_of({**BODIES["chat"], "temperature": 0.0099}, "chat").checked_temperature()
