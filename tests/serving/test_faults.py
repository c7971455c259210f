"""Clients that leave, requests that make no sense, and a server that is stopped."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system

from unspoken.serving import Limits, Served

QUESTION = TASK.sample("test", [0])[0].question


def expected_text() -> str:
    system = tiny_word_system()
    ids, mask = PROMPT_FORMAT.prompts(TASK.sample("test", [0]))
    return PROMPT_FORMAT.decode(system.respond(ids, mask, max_tokens=8).tokens)[0]


def asked(server: Any) -> str:
    body = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}]}
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=10).json()
    return answer["choices"][0]["message"]["content"]


# --- clients that leave, and the server that leaves ------------------------------------------------------------------


def stream_of(server: Any) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    return httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=10)


def responses(server: Any) -> Counter[str]:
    """How many there were, by status; 499 is of a client that has left."""
    text = httpx2.get(f"{server.url}/metrics").text
    return Counter({code: int(count) for code, count in re.findall(r'http_responses_total{code="(\d+)"} (\d+)', text)})


def test_a_client_that_leaves_within_its_body_is_counted(start: Any, served: Served, wait: Any) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    with start(served) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as wire:
            wire.sendall(head)
            wait(lambda: len(server.server.server_state.tasks) == 1)
        wait(lambda: responses(server)["499"] == 1)


def test_a_client_that_leaves_mid_stream_makes_place(start: Any, held: Any, wait: Any) -> None:
    reasoner, served = held
    with start(served, limits=Limits(batch_size=1, queue=1)) as server:
        with stream_of(server) as response:
            lines = response.iter_lines()
            reasoner.let(1)
            assert "role" in next(lines)
            assert next(line for line in lines if '"content"' in line)
            assert server.metric("answers_running") == 1
        wait(lambda: server.metric('http_responses_total{code="200"}') > 0)
        reasoner.let(1)
        wait(lambda: server.metric("answers_running") == 0)
        assert server.metric("answer_tokens_total") == 2
        assert server.metric("answers_total") == 0
        reasoner.let(100)
        assert asked(server) == expected_text()


def test_a_client_that_leaves_before_its_answer_makes_place(start: Any, held: Any, wait: Any) -> None:
    reasoner, served = held
    body = json.dumps({"model": "tiny", "prompt": QUESTION}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with start(served, limits=Limits(batch_size=1, queue=1)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as wire:
            wire.sendall(f"{head}\r\n\r\n".encode() + body)
            wait(lambda: server.metric("answers_running") == 1)
        wait(lambda: responses(server)["499"] == 1)
        # A row that leaves is noticed between two steps.
        reasoner.let(1)
        wait(lambda: server.metric("answers_running") == 0)
        assert server.metric("answers_total") == 0


def test_a_server_that_is_told_to_stop_finishes_and_takes_nothing_new(start: Any, held: Any, wait: Any) -> None:
    reasoner, served = held
    with start(served) as server:
        with stream_of(server) as response:
            lines = response.iter_lines()
            reasoner.let(1)
            assert next(line for line in lines if '"content": "' in line and "role" not in line)
            server.server.should_exit = True

            def refused() -> bool:
                try:
                    socket.create_connection(("127.0.0.1", server.port)).close()
                except ConnectionRefusedError:
                    return True
                return False

            wait(refused)
            assert server.thread.is_alive()
            reasoner.let(100)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        server.thread.join(timeout=10)
        assert not server.thread.is_alive()


# --- requests that make no sense -------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
RIGHT: dict[str, Any] = {"model": "tiny", "max_tokens": 2, "temperature": 1.0, "seed": 3, "stream": False, "n": 1}
ASKED: dict[str, Any] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": QUESTION}]},
    "/v1/completions": {"prompt": QUESTION},
}


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and a right body of which at most one field was changed, left out or added."""
    path = draw(st.sampled_from(sorted(ASKED)))
    body = RIGHT | ASKED[path]
    name = draw(st.sampled_from([*sorted(body), "stop", "no such field"]))
    kind = draw(st.sampled_from(["kept", "left out", "junk"]))
    if kind == "junk":
        body[name] = draw(JUNK)
    elif kind == "left out":
        body.pop(name, None)
    # Python writes and reads NaN and halves of surrogate pairs, which JSON has not.
    return path, json.dumps(body).encode()


# Made where it is drawn: Hypothesis writes strategies out, and warns of long ones.
DEEP = st.just(100_000).map(lambda depth: b"[" * depth)
BYTES = JUNK.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=50) | DEEP
THROWN = spoiled() | st.tuples(st.sampled_from(sorted(ASKED)), BYTES)


RESPONSE_SECONDS = 5  # of a machine that is busy with other tests; what the attacks cost was more


def assert_answered_or_refused(status: int, content: bytes) -> None:
    """No server error, and a refusal in the official form, in one line."""
    if status == 200:
        assert content.startswith((b'{"id"', b"data: "))
        assert b'"error"' not in content
        return
    assert 400 <= status < 500, content
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) <= 500
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]


def throw(server: Any, count: int) -> None:
    """Send that many bodies of every kind, half of them by the schema and its opposite."""
    import schemathesis  # its import takes as long as the other tests here

    statuses: set[int] = set()
    quick = settings(
        max_examples=max(1, count // 5), deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    with httpx2.Client(timeout=20) as client:

        @quick
        @given(thrown=THROWN, kind=st.sampled_from(["application/json"] * 3 + ["text/plain"]))
        def by_hand(thrown: tuple[str, bytes], kind: str) -> None:
            path, body = thrown
            response = client.post(server.url + path, content=body, headers={"Content-Type": kind})
            statuses.add(response.status_code)
            assert_answered_or_refused(response.status_code, response.content)

        by_hand()
        schema = schemathesis.openapi.from_dict(client.get(f"{server.url}/openapi.json").json())
    for path in sorted(ASKED):
        for mode in schemathesis.GenerationMode:

            @quick
            @given(case=schema[path]["POST"].as_strategy(generation_mode=mode), known=st.booleans())
            def by_schema(case: Any, known: bool) -> None:
                if known and isinstance(case.body, dict) and "model" in case.body:
                    case.body["model"] = "tiny"
                response = case.call(base_url=server.url)
                assert response.elapsed < RESPONSE_SECONDS
                statuses.add(response.status_code)
                if response.status_code not in (404, 405):
                    assert_answered_or_refused(response.status_code, response.content)

            by_schema()
    assert {200, 400, 404} <= statuses
    assert asked(server) == expected_text()
    assert server.metric("answers_running") == server.metric("answers_waiting") == server.metric("failures_total") == 0


# The server runs in a thread of this process, and Hypothesis takes what it draws for its strategies' doing.
RANDOM_ELSEWHERE = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


@RANDOM_ELSEWHERE
def test_requests_that_make_no_sense_are_refused(tiny: Any) -> None:
    throw(tiny, 50)


@pytest.mark.slow
@RANDOM_ELSEWHERE
def test_hundreds_of_requests_that_make_no_sense_are_refused(tiny: Any) -> None:
    throw(tiny, 300)


def test_a_body_without_end_is_stopped(tiny: Any) -> None:
    body = json.dumps({"model": "tiny", "prompt": "x" * 2**20}).encode()
    response = httpx2.post(f"{tiny.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    unknown = httpx2.get(f"{tiny.url}/v2/models")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
