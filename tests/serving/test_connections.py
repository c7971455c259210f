"""Clients that connect and do nothing, or as little as they can."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving_process import PATIENCE, serving_process
from tiny_words import TASK

from unspoken.serving import Limits, Served
from unspoken.serving.connections import Rate, connection_cap, log_config

QUESTION = TASK.sample("test", [0])[0].question
HALF_HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"
HALF_BODY = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
)


@contextlib.contextmanager
def connections(port: int, number: int, start: bytes = b"") -> Iterator[list[socket.socket]]:
    opened = []
    try:
        for _ in range(number):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=20))
            opened[-1].sendall(start)
        yield opened
    finally:
        for wire in opened:
            wire.close()


def closed(wire: socket.socket, seconds: float = 10) -> bool:
    """Whether the server closes a connection, with or without an answer before."""
    wire.settimeout(seconds)
    try:
        while wire.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def asked(url: str) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": QUESTION}, timeout=20)


QUICK = Limits(head_seconds=1, body_seconds=1)


@pytest.mark.parametrize("start_of_request", [b"", b"G", HALF_HEAD])
def test_a_head_that_is_never_complete_is_not_waited_for(start_of_request: bytes, start: Any, served: Served) -> None:
    with start(served, limits=QUICK) as server, connections(server.port, 1, start_of_request) as (wire,):
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(20):  # a little more before every other deadline
                time.sleep(0.1)
                wire.sendall(b"X-A: b\r\n" if start_of_request else b"")
        assert closed(wire)
        assert time.monotonic() - began < 8


def test_a_body_that_is_never_complete_is_not_waited_for(start: Any, served: Served) -> None:
    with start(served, limits=QUICK) as server, connections(server.port, 1, HALF_BODY) as (wire,):
        wire.settimeout(10)
        answer = wire.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "request_timeout"' in answer + wire.recv(4096)
        assert closed(wire)
        # A body that nobody wants does not keep a connection open either.
        with connections(server.port, 1, HALF_BODY.replace(b"/v1/completions", b"/none")) as (other,):
            assert closed(other)


def test_a_client_that_does_not_take_its_answers_is_given_up(start: Any, served: Served, wait: Any) -> None:
    with start(served, limits=Limits(write_seconds=1)) as server:
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect(("127.0.0.1", server.port))
            with contextlib.suppress(OSError):
                for _ in range(2000):  # far more than all buffers between here and there hold
                    wire.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            wait(lambda: not server.server.server_state.connections)
        assert asked(server.url).status_code == 200


def test_those_who_do_nothing_make_place_for_those_who_ask(start: Any, served: Served, wait: Any) -> None:
    with (
        start(served, limits=Limits(connections=20, head_seconds=60)) as server,
        connections(server.port, 15) as idle,
        connections(server.port, 30, HALF_BODY),
        connections(server.port, 30, HALF_HEAD),
    ):
        assert asked(server.url).status_code == 200
        wait(lambda: len(server.server.server_state.connections) <= 21)
        assert all(closed(wire) for wire in idle)


def test_only_requests_in_progress_are_never_closed_for_others(start: Any, held: Any, wait: Any) -> None:
    reasoner, served = held
    body = httpx2.Request("POST", "http://x/v1/completions", json={"model": "tiny", "prompt": QUESTION}).content
    request = HALF_BODY[:-1].replace(b"1000", b"%d" % len(body)) + body
    with start(served, limits=Limits(connections=2)) as server, connections(server.port, 2, request) as busy:
        wait(lambda: len(server.server.server_state.tasks) == 2)
        with connections(server.port, 1) as (third,):
            assert third.recv(4096).startswith(b"HTTP/1.1 503 ")
            assert closed(third)
        reasoner.let(1000)
        for wire in busy:
            assert wire.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_head_that_came_in_pieces_sets_no_deadline_for_the_answer(start: Any, held: Any) -> None:
    reasoner, served = held
    body = httpx2.Request("POST", "http://x/v1/completions", json={"model": "tiny", "prompt": QUESTION}).content
    request = HALF_BODY[:-1].replace(b"1000", b"%d" % len(body)) + body
    with start(served, limits=QUICK) as server, connections(server.port, 1) as (wire,):
        for piece in (request[:9], request[9:20], request[20:]):
            wire.sendall(piece)
            time.sleep(0.1)
        time.sleep(1)
        reasoner.let(1000)
        assert wire.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_connections_stay_below_what_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    def allowed(descriptors: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))

    allowed(1024)
    assert connection_cap(512) == 512
    assert connection_cap(5000) == 768
    allowed(resource.RLIM_INFINITY)
    assert connection_cap(5000) == 5000
    allowed(257)
    assert connection_cap(512) == 1
    allowed(256)
    with pytest.raises(ValueError, match=r"may open 256 files.*ulimit -n"):
        connection_cap(512)


def test_the_log_has_a_bounded_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rate = Rate(lines=20)

    def written(lines: int) -> list[str]:
        records = [logging.LogRecord("a", 30, "b", 1, "line %d", (number,), None) for number in range(lines)]
        return [record.getMessage() for record in records if rate.filter(record)]

    assert len(written(10_000)) == 200
    now[0] = 1.0
    assert written(10_000)[0] == "(9800 lines were left out before this one) line 0"
    now[0] = 1000.0
    assert len(written(10_000)) == 200
    assert all(handler["filters"] == ["rate"] for handler in log_config()["handlers"].values())
    assert {"asyncio", "unspoken", "uvicorn"} <= set(log_config()["loggers"])


def test_a_shutdown_keeps_its_deadline_and_answers_what_it_gives_up(start: Any, held: Any) -> None:
    _, served = held
    began = 0.0
    with start(served, drain_seconds=1) as server:
        body = httpx2.Request("POST", "http://x/v1/completions", json={"model": "tiny", "prompt": QUESTION}).content
        request = HALF_BODY[:-1].replace(b"1000", b"%d" % len(body)) + body
        with connections(server.port, 1, request) as (busy,), connections(server.port, 5, HALF_BODY) as half:
            time.sleep(0.3)
            began = time.monotonic()
            server.server.should_exit = True
            assert all(closed(wire) for wire in half)
            busy.settimeout(10)
            assert busy.recv(4096).startswith(b"HTTP/1.1 503 ")
            held[0].let(1000)
    assert time.monotonic() - began < 10


def attacked(number: int, tmp_path: Path, descriptors: int = 512) -> None:
    """That many connections that do nothing, half a head or half a body, a question beside them, and a shutdown."""
    log = tmp_path / "log"
    with serving_process(log, descriptors=descriptors) as server:
        with (
            connections(server.port, number // 3),
            connections(server.port, number // 3, HALF_HEAD),
            connections(server.port, number - 2 * (number // 3), HALF_BODY),
        ):
            for _ in range(3):
                began = time.monotonic()
                assert asked(server.url).status_code == 200
                assert time.monotonic() - began < 5
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(20)
            assert time.monotonic() - began < PATIENCE + 2
        assert "Traceback" not in log.read_text()
        assert log.stat().st_size < 100_000


def test_a_question_is_answered_beside_idle_connections(tmp_path: Path) -> None:
    attacked(300, tmp_path)


@pytest.mark.slow
def test_a_question_is_answered_beside_more_idle_connections_than_files(tmp_path: Path) -> None:
    attacked(1100, tmp_path, descriptors=1024)
