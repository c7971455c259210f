"""Bodies that are made to cost time: none holds the event loop, or a thread that others need, for long."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import httpx2
import pytest
from tiny_words import TASK

from unspoken.serving import Limits, Served
from unspoken.serving.bodies import BODY_BYTES, decoded
from unspoken.serving.fields import Endpoint
from unspoken.serving.preparation import prepare_request
from unspoken.serving.refusal import Refusal
from unspoken.serving.schema import request_of

# No longer may one thing take, on the slowest processor of the tests; without limits some took six seconds.
SECONDS = 0.1
QUESTION = TASK.sample("test", [0])[0].question
PATHS: dict[Endpoint, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


def of_chat(messages: bytes) -> bytes:
    return b'{"model": "tiny", "messages": [' + messages + b"]}"


def of_prompt(prompt: bytes) -> bytes:
    return b'{"model": "tiny", "prompt": ' + prompt + b"}"


def repeated(entry: bytes, size: int = BODY_BYTES - 100) -> bytes:
    return b",".join([entry] * (size // (len(entry) + 1)))


PART, MESSAGE = b'{"type":"text","text":"a"}', b'{"role":"user","content":"a"}'
BODIES: dict[str, bytes] = {
    "numbers for messages": of_chat(repeated(b"1")),
    "empty objects": of_chat(repeated(b"{}")),
    "as many empty objects as are read": of_chat(repeated(b"{}", 60_000)),
    "numbers for parts": of_chat(b'{"role":"user","content":[' + repeated(b"1") + b"]}"),
    "empty parts": of_chat(b'{"role":"user","content":[' + repeated(b"{}", 60_000) + b"]}"),
    "right parts": of_chat(b'{"role":"user","content":[' + repeated(PART, 200_000) + b"]}"),
    "right messages": of_chat(repeated(MESSAGE, 200_000)),
    "messages without content": of_chat(repeated(b'{"role":"user"}', 100_000)),
    "deep lists": b"[" * BODY_BYTES,
    "deep objects": b'{"a":' * (BODY_BYTES // 5),
    "deep content": of_chat(b'{"role":"user","content":' + b"[" * 1000 + b"]" * 1000 + b"}"),
    "long integers": b"[" + repeated(b"9" * 4200) + b"]",
    "a long integer": b"[" + b"1" * (BODY_BYTES - 2) + b"]",
    "long fractions": b"[" + repeated(b"0." + b"3" * 90) + b"]",
    "large exponents": of_prompt(b'"a", "seed": 1e999999999'),
    "not a number": of_prompt(b'"a", "temperature": NaN'),
    "many fields": b"{" + b",".join(b'"f%d":1' % number for number in range(16_000)) + b"}",
    "one field again and again": b"{" + repeated(b'"model":"tiny"', 240_000) + b"}",
    "a long name of a field": b'{"' + b"x" * (BODY_BYTES - 10) + b'":1}',
    "a long model": b'{"model":"' + b"x" * 1_000_000 + b'","prompt":"a"}',
    "quotation marks": b'"' * BODY_BYTES,
    "escaped quotation marks": b'"' + b'\\"' * 500_000 + b'"',
    "backslashes": b'"' + b"\\" * (BODY_BYTES - 3) + b'"',
    "escaped letters": of_prompt(b'"' + b"\\u00e9" * 170_000 + b'"'),
    "halves of surrogate pairs": of_prompt(b'"' + b"\\ud800" * 170_000 + b'"'),
    "one half of a surrogate pair": of_prompt(b'"\\ud800"'),
    "bytes of no encoding": b"\xff" * BODY_BYTES,
    "an encoding cut short": of_prompt(b'"\xe2\x82"'),
    "another encoding": of_prompt(b'"a"').decode().encode("utf-16"),
    "zeros": b"\0" * BODY_BYTES,
    "commas for a prompt": of_prompt(b'"' + b"," * 1_000_000 + b'"'),
    "spaces for a prompt": of_prompt(b'"' + b" " * 1_000_000 + b'"'),
    "token ids without end": of_prompt(b"[" + repeated(b"1") + b"]"),
    "many token ids": of_prompt(b"[" + repeated(b"1", 120_000) + b"]"),
    "token ids below zero": of_prompt(b"[" + repeated(b"-1", 120_000) + b"]"),
    "numbers after a prompt": of_prompt(b'["a",' + repeated(b"1", 120_000) + b"]"),
    "numbers for stop texts": of_prompt(b'"a", "stop": [' + repeated(b"1", 120_000) + b"]"),
    "many short prompts of ids": of_prompt(b"[" + repeated(b"[1]", 60_000) + b"]"),
    "many prompts": of_prompt(b"[" + repeated(b'"a"', 60_000) + b"]"),
    "long stop texts": of_prompt(b'"a", "stop": [' + repeated(b'"' + b"x" * 900 + b'"', 900_000) + b"]"),
    "nothing": b"",
}


def seconds_of(action: Any) -> float:
    """The least processor time of three tries: other threads and programs do not count."""
    times = []
    for _ in range(3):
        began = time.thread_time()
        action()
        times.append(time.thread_time() - began)
    return min(times)


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_at_once(name: str, served: Served) -> None:
    body = BODIES[name]
    endpoint: Endpoint = "chat" if b"messages" in body[:100] else "completions"

    def refused() -> None:
        with pytest.raises(Refusal) as refusal:
            prepare_request(served, Limits(), endpoint, body)
        assert refusal.value.status_code in (400, 404)

    assert served.longest_token > 1  # reads the vocabulary once
    assert seconds_of(refused) < SECONDS


@pytest.mark.parametrize(
    "body",
    [
        of_chat(b",".join([MESSAGE] * 1000)),
        of_chat(b'{"role":"user","content":"' + b"a " * 100_000 + b'"}'),
        of_prompt(json.dumps(['She said: "[{,:" \\" \\\\" ' * 50] * 64).encode()),
        of_prompt(json.dumps([list(range(900))] * 64).encode()),
    ],
)
def test_a_large_body_that_makes_sense_is_read_at_once(body: bytes) -> None:
    endpoint: Endpoint = "chat" if b"messages" in body[:100] else "completions"
    assert request_of(decoded(body), endpoint).model == "tiny"
    assert seconds_of(lambda: request_of(decoded(body), endpoint)) < SECONDS


def test_no_bad_body_holds_the_event_loop(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loop_thread, run, longest = tiny.thread, asyncio.events.Handle._run, [0.0]

    def timed(handle: asyncio.events.Handle) -> None:
        if threading.current_thread() is not loop_thread:
            run(handle)
            return
        began = time.thread_time()
        run(handle)
        longest[0] = max(longest[0], time.thread_time() - began)

    monkeypatch.setattr(asyncio.events.Handle, "_run", timed)
    with httpx2.Client(timeout=20) as client:
        for name, body in BODIES.items():
            for path in PATHS.values():
                response = client.post(f"{tiny.url}{path}", content=body, headers={"Content-Type": "application/json"})
                assert response.status_code in (400, 404), name
                assert len(response.json()["error"]["message"]) <= 500
        assert 0 < longest[0] < SECONDS
        wrong = client.post(f"{tiny.url}/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"})
        assert wrong.status_code == 415
    answer = httpx2.post(f"{tiny.url}/v1/completions", json={"model": "tiny", "prompt": QUESTION}, timeout=20)
    assert answer.status_code == 200


def test_strings_may_hold_what_looks_like_structure() -> None:
    text = '{"[' * 60 + '\\"' * 60 + "\\" * 61 + ",:" * 60
    assert decoded(json.dumps({"a": [text, {text: text}]}).encode()) == {"a": [text, {text: text}]}
