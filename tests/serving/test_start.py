"""How a server starts: what it hands to uvicorn, what clients may ask for, and what it answers before it computes."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from collections import Counter
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import APIRouter

from unspoken.serving import Limits, Served, app, serve, server
from unspoken.serving import open_served as open_model

PATHS = {"/health", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/chat/completions", "/v1/completions"}


def test_a_server_listens_at_home_and_finishes_what_it_has_for_thirty_seconds(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    started: list[dict[str, Any]] = []

    def open_served(source: Any, **how: Any) -> Served:
        opened.append((source, how))
        return served

    monkeypatch.setattr(server, "open_served", open_served)
    monkeypatch.setattr(server, "_refuse_busy", lambda host, port: opened.append((host, port)))
    monkeypatch.setattr(uvicorn, "run", lambda _api, **how: started.append(how))
    monkeypatch.delenv("UNSPOKEN_API_KEY", raising=False)
    serve("run")
    assert opened == [
        ("127.0.0.1", 8000),
        ("run", {"seed": 0, "stage": None, "reasoning": None, "device": "auto"}),
    ]
    assert inspect.signature(open_model).parameters["seed"].default == 0
    serve("run", limits=Limits(connections=3), drain_seconds=4, port=1, pages_of=None)
    facts = [(how["host"], how["port"], how["timeout_graceful_shutdown"], how["backlog"]) for how in started]
    assert facts == [("127.0.0.1", 8000, 30, 128), ("127.0.0.1", 1, 4, 128)]
    assert [how["http"].args[0].cap for how in started] == [512, 3]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "local")],
)
def test_the_loopback_device_has_these_names(host: str, loopback: bool) -> None:
    assert server._is_loopback(host) is loopback


def test_an_address_where_something_listens_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"nothing can listen at 127.0.0.1 port {port} \(Address already in use\);"
        ):
            server._refuse_busy("127.0.0.1", port)
    server._refuse_busy("127.0.0.1", port)
    with pytest.raises(ValueError, match="host 'no such host' has no address here"):
        server._refuse_busy("no such host", 8000)


def got(served: Served, path: str, **how: Any) -> httpx2.Response:
    """What an application answers whose engine does not run."""

    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app(served, **how), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://tiny") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_a_server_that_takes_nothing_is_not_healthy(served: Served) -> None:
    answer = got(served, "/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "closing"})


def test_programs_can_read_what_clients_may_send(served: Served) -> None:
    answer = got(served, "/openapi.json")
    assert answer.status_code == 200
    schema = answer.json()
    assert set(schema["paths"]) == PATHS
    for path, name in (("/v1/chat/completions", "ChatRequest"), ("/v1/completions", "CompletionRequest")):
        body = schema["paths"][path]["post"]["requestBody"]
        assert body == {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
        }
        assert name in schema["components"]["schemas"]
    for page in ("/docs", "/redoc"):
        assert got(served, page).status_code == 404


def test_pages_of_a_program_are_served_and_not_in_the_schema(served: Served) -> None:
    def pages(*_: Any) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/page", lambda: "text")
        return router

    assert got(served, "/page", pages=pages).json() == "text"
    assert set(got(served, "/openapi.json", pages=pages).json()["paths"]) == PATHS


@pytest.mark.parametrize("begun", [True, False])
def test_a_shutdown_cuts_off_what_has_begun_and_ends_the_rest_in_order(begun: bool) -> None:
    async def given_up(_scope: Any, _receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200})
        raise asyncio.CancelledError

    seen, sent = Counter[int](), list[Any]()

    async def keep(message: Any) -> None:
        sent.append(message)

    scope: Any = {"type": "http"}
    asyncio.run(server._Counter(given_up, seen)(scope, None, keep))  # type: ignore[arg-type]
    status = 200 if begun else 503
    assert (sent[0]["status"], seen) == (status, {status: 1})
    if begun:
        assert len(sent) == 1
        return
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["code"] == "shutting_down"


@pytest.mark.parametrize(
    ("path", "key", "status", "code"),
    [
        ("/v1/models", "secret", 401, "invalid_api_key"),
        ("/v1/models/other", None, 404, "model_not_found"),
        ("/nowhere", None, 404, "not_found"),
        ("/v1/completions", None, 405, None),
    ],
)
def test_refusals_have_codes_for_programs(
    served: Served, path: str, key: str | None, status: int, code: str | None
) -> None:
    answer = got(served, path, api_key=key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("status", "code"), [(408, "request_timeout"), (413, "request_too_large"), (429, "queue_full")]
)
def test_other_refusals_have_codes_too(status: int, code: str) -> None:
    refusal = server.Refusal(status, "why", close=True)
    answer = asyncio.run(server._refused(None, refusal))  # type: ignore[arg-type]
    assert answer.status_code == status
    assert json.loads(bytes(answer.body))["error"]["code"] == code
    assert answer.headers["connection"] == "close"


def test_a_server_that_fails_tells_where_the_reason_is() -> None:
    answer = asyncio.run(server._broken(None, RuntimeError("secret")))  # type: ignore[arg-type]
    assert answer.status_code == 500
    assert json.loads(bytes(answer.body)) == {
        "error": {
            "message": "the server failed; its log has the reason",
            "type": "server_error",
            "param": None,
            "code": None,
        }
    }
