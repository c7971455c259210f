"""Every limit is the one that the page states: its end is allowed, and the next value beyond it is not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from unspoken.serving import Limits, Served
from unspoken.serving import fields as known_fields
from unspoken.serving.batch import Batch
from unspoken.serving.bodies import BODY_BYTES, decoded
from unspoken.serving.connections import Rate, connection_settings, log_config
from unspoken.serving.refusal import Refusal
from unspoken.serving.responses import error_of
from unspoken.serving.schema import request_of
from unspoken.serving.server import RequestReader

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
MIB = 2**20


def test_the_limits_are_those_of_the_page() -> None:
    limits = Limits()
    for line in (
        f"| answers at once, and waiting | {limits.batch_size} and {limits.queue} | 429",
        f"| tokens of a prompt | {limits.prompt_tokens} | 400",
        f"| tokens of an answer | {limits.answer_tokens} | cut",
        f"| positions of all answers at once | {limits.batch_tokens:,} | they wait",
        f"| prompt tokens read between two steps | {limits.piece_tokens}, fewer",
        f"| connections | {limits.connections}, and fewer",
        f"| time for a head, and without one | {limits.head_seconds} s; 5 s",
        f"| time for a body | {limits.body_seconds} s | 408",
        f"| time to take an answer | {limits.write_seconds} s | closed",
    ):
        assert line in PAGE, line


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_a_limit_is_at_least_one(name: str) -> None:
    assert getattr(Limits(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"the limit {name} is 0; it is at least 1"):
        Limits(**{name: 0})


# --- what a body may hold --------------------------------------------------------------------------------------------


def refused(body: bytes) -> str:
    with pytest.raises(Refusal) as refusal:
        decoded(body)
    assert refusal.value.status_code == 400
    return refusal.value.detail


def listed(entry: bytes, count: int) -> bytes:
    return b"[" + b",".join([entry] * count) + b"]"


def test_a_body_may_have_as_many_quotation_marks_as_the_page_states() -> None:
    assert "32,768 quotation marks" in PAGE
    assert decoded(listed(b'""', 16_384)) == [""] * 16_384
    message = "the body has 32769 quotation marks; at most 32768 are read"
    assert refused(listed(b'""', 16_384) + b'"') == message


def test_a_body_may_have_as_many_values_as_the_page_states() -> None:
    assert "65,536 values" in PAGE
    assert len(decoded(listed(b"1", 65_536))) == 65_536
    assert refused(listed(b"1", 65_537)) == "the body has about 65537 values; at most 65536 are read"
    assert len(decoded(listed(b"{}", 32_768))) == 32_768
    assert "65538 values" in refused(listed(b"{}", 32_769))


@pytest.mark.parametrize(("opened", "closed"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_body_may_be_as_deep_as_the_page_states(opened: bytes, closed: bytes) -> None:
    assert "32 levels" in PAGE
    inner = b"1" if closed == b"}" else b""
    decoded(opened * 32 + inner + closed * 32)
    assert refused(opened * 33 + inner + closed * 33) == "the body is nested more than 32 levels deep"
    # What was closed before counts no more, and no less.
    decoded(b"[" + b"[]," * 40 + b"[" * 31 + b"]" * 31 + b"]")
    assert "levels deep" in refused(b"[" + b"[]," * 40 + b"[" * 32 + b"]" * 32 + b"]")
    assert decoded(b'["' + b"[{" * 40 + b'"]') == ["[{" * 40]


@pytest.mark.parametrize("digit", [b"9", b"0", b"5"])
def test_a_number_may_have_99_digits(digit: bytes) -> None:
    assert decoded(b"[1." + digit * 99 + b"]") == [float(b"1." + digit * 99)]
    assert refused(b"[1." + digit * 100 + b"]") == "the body has a number of 100 digits or more"
    assert decoded(b'["' + digit * 100 + b'"]') == [digit.decode() * 100]
    for other in (b"/", b":"):  # the neighbours of the digits among the bytes
        assert "is not JSON" in refused(other * 100)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (rb'["\"", [[]]]', ['"', [[]]]),
        (rb'["\\", [[]]]', ["\\", [[]]]),
        (rb'["\\\"[", "]"]', ['\\"[', "]"]),
    ],
)
def test_a_quotation_mark_after_an_odd_number_of_backslashes_ends_no_string(body: bytes, value: Any) -> None:
    assert decoded(body) == value
    deep = b"[" * 40
    assert decoded(body.replace(b", ", b', "' + deep + b'", ', 1))[1] == deep.decode()


# --- the desk --------------------------------------------------------------------------------------------------------


def request_with(body: bytes, kind: bytes | None = b"application/json") -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [] if kind is None else [(b"content-type", kind)]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def at_desk(served: Served, action: Callable[[RequestReader], Awaitable[None]]) -> None:
    desk = RequestReader(served, Limits())
    try:
        asyncio.run(action(desk))  # type: ignore[arg-type]
    finally:
        desk.close()


def test_a_body_of_a_mebibyte_is_received_and_no_byte_more(served: Served) -> None:
    async def action(desk: RequestReader) -> None:
        async with desk.body(request_with(b"x" * MIB)) as body:
            assert len(body) == MIB
        with pytest.raises(Refusal, match=f"the request is larger than {MIB} bytes") as large:
            async with desk.body(request_with(b"x" * (MIB + 1))):
                pass
        assert large.value.status_code == 413
        assert large.value.headers == {"Connection": "close"}

    assert BODY_BYTES == MIB
    at_desk(served, action)


def test_bodies_that_are_held_at_once_have_a_limit_together(served: Served) -> None:
    async def action(desk: RequestReader) -> None:
        async with contextlib.AsyncExitStack() as held:
            for _ in range(64):
                await held.enter_async_context(desk.body(request_with(b"x" * MIB)))
            with pytest.raises(Refusal, match="too many bytes of requests") as full:
                async with desk.body(request_with(b"x")):
                    pass
            assert full.value.status_code == 429
        async with desk.body(request_with(b"x")) as body:
            assert body == b"x"

    assert "| bodies held at once | 64 MiB | 429 |" in PAGE
    at_desk(served, action)


def test_a_body_is_json_by_its_type_or_has_none(served: Served) -> None:
    async def action(desk: RequestReader) -> None:
        for kind in (None, b"application/json", b"Application/JSON; charset=utf-8"):
            async with desk.body(request_with(b"{}", kind)) as body:
                assert body == b"{}"
        for kind in (b"text/json", b"", b"application/json2"):
            with pytest.raises(Refusal) as other:
                async with desk.body(request_with(b"{}", kind)):
                    pass
            assert (other.value.status_code, other.value.code) == (415, "unsupported_type")
            assert other.value.headers == {"Connection": "close"}

    at_desk(served, action)


def test_short_bodies_never_wait_for_long_ones(served: Served) -> None:
    short, long = (b'"' + b"x" * (size - 2) + b'"' for size in (2**14, 2**14 + 1))
    free = threading.Event()

    async def action(desk: RequestReader) -> None:
        occupied = desk._threads[1].submit(free.wait, 20)
        for read in (desk.decoded, lambda body: desk.read("chat", body)):
            begun = asyncio.ensure_future(read(long))
            if read == desk.decoded:
                assert await asyncio.wait_for(read(short), 10) == "x" * (2**14 - 2)
            else:
                with pytest.raises(Refusal, match="not a JSON object"):
                    await asyncio.wait_for(read(short), 10)
            assert not begun.done()
            begun.cancel()
        free.set()
        assert occupied.result(10)
        assert await desk.decoded(long) == "x" * (2**14 - 1)

    at_desk(served, action)


def test_a_desk_that_closes_waits_for_nobody(served: Served) -> None:
    desk, free = RequestReader(served, Limits()), threading.Event()
    threading.Timer(2, free.set).start()
    desk._threads[0].submit(free.wait, 20)
    waiting = desk._threads[0].submit(int)
    began = time.monotonic()
    desk.close()
    assert time.monotonic() - began < 1
    assert waiting.cancelled()
    free.set()


# --- connections and the log -----------------------------------------------------------------------------------------


def test_uvicorn_gets_the_limits_of_connections() -> None:
    settings = connection_settings(Limits(connections=7, head_seconds=3))
    (waiting,) = settings["http"].args
    assert (waiting.cap, waiting.limits.head_seconds, waiting.connections) == (7, 3, {})
    assert (settings["ws"], settings["backlog"]) == ("none", 128)


def test_the_log_has_twenty_lines_a_second_and_two_hundred_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rate = Rate()

    def written(lines: int) -> list[str]:
        records = [logging.LogRecord("a", 30, "b", 1, "line %d", (number,), None) for number in range(lines)]
        return [record.getMessage() for record in records if rate.filter(record)]

    assert "| lines in the log | 20 a second, 200 at once |" in PAGE
    assert written(201) == [f"line {number}" for number in range(200)]
    assert written(5) == []
    now[0] += 0.03125
    assert written(1) == []
    now[0] += 0.03125  # which with what was saved is a line and a quarter
    assert written(2) == ["(7 lines were left out before this one) line 0"]
    now[0] += 1
    lines = written(25)
    assert lines[0] == "(1 lines were left out before this one) line 0"
    assert lines[1:] == [f"line {number}" for number in range(1, 20)]
    now[0] += 9
    assert len(written(500)) == 180
    now[0] += 11
    assert len(written(500)) == 200


def test_what_libraries_log_is_written_once() -> None:
    loggers = log_config()["loggers"]
    for name in ("asyncio", "unspoken"):
        assert loggers[name] == {"handlers": ["default"], "level": "WARNING", "propagate": False}
    log_config()["loggers"].clear()
    assert "uvicorn" in log_config()["loggers"]


def test_names_of_fields_are_logged_up_to_60_letters_and_a_hundred_of_them(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_fields, "_logged", set())
    with caplog.at_level(logging.WARNING):
        known_fields.log_ignored(["x" * 61, "x" * 62, "x" * 59])
        assert caplog.messages == [f"unknown fields of requests are ignored: '{'x' * 60}', '{'x' * 59}'"]
        known_fields.log_ignored(f"field{number}" for number in range(200))
    named = [name for message in caplog.messages for name in message.partition(": ")[2].split(", ")]
    assert len(named) == 100
    assert named[-1] == "'field97'"


def test_fields_inside_of_messages_and_options_are_logged_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_fields, "_logged", set())
    message = {"role": "user", "content": "a", "name": "ann", "weight": 1}
    body = {"model": "tiny", "messages": [message], "stream_options": {"include_usage": True, "other": 1}}
    with caplog.at_level(logging.WARNING):
        request_of(body, "chat")
        request_of({"model": "tiny", "prompt": "a", "stream_options": None}, "completions")
    assert caplog.messages == [
        "unknown fields of requests are ignored: 'other'",
        "unknown fields of requests are ignored: 'weight'",
    ]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers"), [(400, {}), (408, {}), (429, {"Retry-After": "1"}), (500, {}), (503, {"Retry-After": "1"})]
)
def test_only_what_passes_by_itself_is_to_be_tried_again(status: int, headers: dict[str, str]) -> None:
    assert Refusal(status, "why").headers == headers
    assert Refusal(status, "why", close=True).headers == headers | {"Connection": "close"}


def test_an_error_is_one_line_of_at_most_500_characters() -> None:
    def shown(message: str) -> str:
        return str(error_of(400, message)["error"]["message"])

    assert shown("x" * 500) == "x" * 500
    assert shown("x" * 501) == "x" * 499 + "…"
    assert shown(" a\n\tb ") == "a b"
    assert shown(" " * 1999 + "ab") == "a"  # no more is read of a message than 2000 characters


@pytest.mark.parametrize(("status", "kind"), [(499, "invalid_request_error"), (500, "server_error")])
def test_the_kind_of_an_error_is_that_of_its_status(status: int, kind: str) -> None:
    assert error_of(status, "why") == {"error": {"message": "why", "type": kind, "param": None, "code": None}}
    named = error_of(status, "why", "code", "field")["error"]
    assert (named["code"], named["param"]) == ("code", "field")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "none", "content": "a"}]}, "messages.1.role"),
        ({"n": 0}, "n"),
        ({"unspoken": {"coefficients": 21}}, "unspoken.coefficients"),
        ({"stream_options": {"include_usage": "never"}}, "stream_options.include_usage"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_its_path(changes: dict[str, Any], field: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], **changes}
    with pytest.raises(Refusal) as refusal:
        request_of(body, "chat")
    assert refusal.value.field == field
    assert refusal.value.detail.startswith(f"{field}: ")


def test_a_batch_reads_512_tokens_at_once_where_nobody_waits(served: Served) -> None:
    assert Batch(served.system.reasoner).budget == 512
