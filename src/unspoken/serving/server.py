"""The server: endpoints on an event loop that never computes, before an engine that does nothing else.

It listens on the loopback device unless another address is given, and then wants a key. Nothing in a request can make
it load or run code: models come from the folder that it was started with.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import socket
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unspoken.serving.bodies import BODY_BYTES, decoded
from unspoken.serving.connections import connection_settings
from unspoken.serving.engine import Engine, Limits
from unspoken.serving.fields import Endpoint
from unspoken.serving.keys import KEY_VARIABLE, checked_key, read_key
from unspoken.serving.pending import PendingAnswers, answered, streamed
from unspoken.serving.preparation import PreparedRequest, prepare_request, unknown_model
from unspoken.serving.refusal import Refusal
from unspoken.serving.responses import ResponseFormat, error_of
from unspoken.serving.schema import REQUESTS
from unspoken.serving.systems import Served, open_served

_BEARER = HTTPBearer(auto_error=False)
_HELD_BYTES = 2**26  # of all bodies that are being received or read
_SHORT_BODY = 2**14
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    408: "request_timeout",
    413: "request_too_large",
    429: "queue_full",
    503: "shutting_down",
}


def app(
    served: Served, *, limits: Limits | None = None, api_key: str | None = None, pages: Pages | None = None
) -> FastAPI:
    """The application; its engine runs while its lifespan lasts.

    Args:
        served: the system that answers.
        limits: see `Limits`.
        api_key: what clients must send as bearer token to ``/v1``; None asks for none.
        pages: makes further routes, given the engine, the reader and the dependency that asks for the key.

    Raises:
        ValueError: the system's stack cannot be shared by rows that come and go.
    """
    limits = limits or Limits()
    engine, reader, seen = Engine(served.system.reasoner, limits), RequestReader(served, limits), Counter[int]()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await run_in_threadpool(engine.close)
        reader.close()

    async def with_key(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if api_key is None:
            return
        if given is None or not hmac.compare_digest(given.credentials.encode(), api_key.encode()):
            message = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
            raise Refusal(401, message, close=True)

    api = FastAPI(title="unspoken", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    api.add_middleware(_Counter, seen=seen)
    api.add_exception_handler(HTTPException, _refused)
    api.add_exception_handler(Exception, _broken)
    api.include_router(_endpoints(served, engine, reader, with_key))
    if pages is not None:
        api.include_router(pages(engine, reader, with_key), include_in_schema=False)

    @api.get("/openapi.json", dependencies=[Depends(with_key)], include_in_schema=False)
    async def openapi() -> Response:
        """What clients may send, for programs that read such schemas."""
        return _json(schema)

    @api.get("/health")
    async def health() -> Response:
        """Whether new work is taken."""
        alive = engine.alive
        return _json({"status": "ok" if alive else "closing"}, 200 if alive else 503)

    @api.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Counters in the text format of Prometheus."""
        return PlainTextResponse(_metrics(engine, seen), media_type="text/plain; version=0.0.4")

    schema = _schema(api)
    return api


def serve(
    run: str | Path,
    *,
    seed: int = 0,
    stage: str | None = None,
    reasoning: str | None = None,
    device: str | torch.device = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    api_key_file: str | Path | None = None,
    limits: Limits | None = None,
    drain_seconds: int = 30,
    pages_of: Callable[[Served, Limits], Pages] | None = None,
) -> None:
    """Serve a finished model until a signal stops it.

    On SIGTERM or SIGINT no new connection is taken, and what was asked is answered, for ``drain_seconds`` at most.

    Args:
        run, seed, stage, reasoning, device: see `open_served`.
        host, port: where to listen.
        api_key: see `app`.
        api_key_file: a file that holds the key; without either, the environment variable ``UNSPOKEN_API_KEY`` counts.
        limits: see `Limits`.
        drain_seconds: patience with answers in the making.
        pages_of: see `app`, of the model that was opened.

    Raises:
        ValueError: the model does not exist; the host is reachable from other machines and no key is set; the key
            cannot be sent in a header; or the port is in use.
        OSError: the file with the key cannot be read.
    """
    key = read_key(api_key_file) if api_key is None else checked_key(api_key, "api_key")
    if key is None and not _is_loopback(host):
        raise ValueError(
            f"host {host} is reachable from other machines: set {KEY_VARIABLE} or give a file with a key, or listen on "
            "127.0.0.1"
        )
    _refuse_busy(host, port)  # before a model is loaded, which may take minutes
    served = open_served(run, seed=seed, stage=stage, reasoning=reasoning, device=device)
    limits = limits or Limits()
    pages = None if pages_of is None else pages_of(served, limits)
    api, settings = app(served, limits=limits, api_key=key, pages=pages), connection_settings(limits)
    uvicorn.run(api, host=host, port=port, timeout_graceful_shutdown=drain_seconds, **settings)


def _refuse_busy(host: str, port: int) -> None:
    """Refuse an address at which nothing can listen."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ValueError(f"host {host!r} has no address here ({error.strerror}); give 127.0.0.1 or 0.0.0.0") from None
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                trial.bind(address)
            except OSError as error:
                raise ValueError(
                    f"nothing can listen at {host} port {port} ({error.strerror}); give another --port, or 0 for any "
                    "that is free"
                ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- endpoints -------------------------------------------------------------------------------------------------------


def _endpoints(served: Served, engine: Engine, reader: RequestReader, with_key: Any) -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[Depends(with_key)])
    card = {"id": served.system.name, "object": "model", "created": int(time.time()), "owned_by": "unspoken"}

    @router.get("/models")
    async def models() -> Response:
        """The one model that is served."""
        return _json({"object": "list", "data": [card]})

    @router.get("/models/{name}")
    async def model(name: str) -> Response:
        """What is known of a model."""
        if name != served.system.name:
            raise unknown_model(name, served)
        return _json(card)

    @router.post("/chat/completions", openapi_extra=_body_of("chat"))
    async def chat(request: Request) -> Response:
        """Answer the last message of a chat."""
        return await answer(request, "chat")

    @router.post("/completions", openapi_extra=_body_of("completions"))
    async def complete(request: Request) -> Response:
        """Answer problems."""
        return await answer(request, "completions")

    async def answer(request: Request, endpoint: Endpoint) -> Response:
        try:
            async with reader.body(request) as body:
                prepared = await reader.read(endpoint, body)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; the number is nginx's
        pending = PendingAnswers(served, engine, prepared)
        form = ResponseFormat(
            chat=endpoint == "chat",
            name=served.system.name,
            number=uuid.uuid4().hex,
            created=int(time.time()),
            token_text=served.token_text,
        )
        asked = prepared.request
        if asked.stream:
            counted = asked.stream_options is not None and bool(asked.stream_options.include_usage)
            return StreamingResponse(streamed(pending, form, counted=counted), media_type="text/event-stream")
        try:
            return await unless_gone(answered(pending, form), request)
        finally:
            pending.end()

    return router


class RequestReader:
    """Receives bodies and has them read in threads, so that neither time nor memory grows with what clients send.

    Args:
        served: for what is asked.
        limits: of prompts, and of the time that a body may take.
    """

    def __init__(self, served: Served, limits: Limits) -> None:
        self._served = served
        self._limits = limits
        self._held = 0
        # Short bodies have a thread of their own: they never wait for the tokens of long ones.
        self._threads = [ThreadPoolExecutor(1, f"unspoken-{length}-prompts") for length in ("short", "long")]

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The bytes of a request, which count as long as they are in use.

        Raises:
            Refusal: they are too many, come too slowly, are no JSON by their type, or others hold too many.
        """
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "send the body as application/json", code="unsupported_type", close=True)
        body, seconds = bytearray(), self._limits.body_seconds
        try:
            try:
                async with asyncio.timeout(seconds):
                    async for chunk in request.stream():
                        self._take(len(body), len(chunk))
                        body += chunk
            except TimeoutError:
                raise Refusal(408, f"the body was not complete after {seconds} seconds", close=True) from None
            yield bytes(body)
        finally:
            self._held -= len(body)

    def _take(self, received: int, more: int) -> None:
        if received + more > BODY_BYTES:
            raise Refusal(413, f"the request is larger than {BODY_BYTES} bytes", close=True)
        if self._held + more > _HELD_BYTES:
            raise Refusal(429, "too many bytes of requests are waiting; try again in a second", close=True)
        self._held += more

    async def read(self, endpoint: Endpoint, body: bytes) -> PreparedRequest:
        """A request, ready to be answered.

        Raises:
            Refusal: see `prepare_request`.
        """
        threads = self._threads[len(body) > _SHORT_BODY]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, prepare_request, self._served, self._limits, endpoint, body)

    async def decoded(self, body: bytes) -> Any:
        """A body as JSON.

        Raises:
            Refusal: see `unspoken.serving.bodies.decoded`.
        """
        threads = self._threads[len(body) > _SHORT_BODY]
        return await asyncio.get_running_loop().run_in_executor(threads, decoded, body)

    def close(self) -> None:
        """End the threads."""
        for threads in self._threads:
            threads.shutdown(wait=False, cancel_futures=True)


Pages = Callable[[Engine, RequestReader, Any], APIRouter]


async def unless_gone(answer: Coroutine[Any, Any, dict[str, Any]], request: Request) -> Response:
    """The answer, unless its client hangs up first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    content, departure = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({content, departure}, return_when=asyncio.FIRST_COMPLETED)
        if content.done():
            return _json(content.result())
        return Response(status_code=499)
    finally:
        content.cancel()
        departure.cancel()


def _body_of(endpoint: Endpoint) -> dict[str, Any]:
    """What the schema requires of a body, which is checked outside FastAPI."""
    name = REQUESTS[endpoint].__name__
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"requestBody": {"required": True, "content": content}}


def _schema(api: FastAPI) -> dict[str, Any]:
    """The schema of the API with that of the bodies."""
    schema = get_openapi(title=api.title, version=api.version, routes=api.routes)
    parts: dict[str, Any] = {}
    for request in REQUESTS.values():
        model = request.model_json_schema(ref_template="#/components/schemas/{model}")
        parts |= model.pop("$defs", {}) | {request.__name__: model}
    schema.setdefault("components", {}).setdefault("schemas", {}).update(parts)
    return schema


# --- errors, and what is counted -------------------------------------------------------------------------------------


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # In ASCII, since half a surrogate pair in a client's own field name cannot be written otherwise.
    return Response(json.dumps(content), status, headers, media_type="application/json")


def _error_response(
    status: int, message: str, code: str | None = None, field: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    return _json(error_of(status, message, code, field), status, headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    code = getattr(error, "code", None) or _CODES.get(status)
    return _error_response(status, str(error.detail), code, getattr(error, "field", None), dict(error.headers or {}))


async def _broken(_: Request, _error: Exception) -> Response:
    return _error_response(500, "the server failed; its log has the reason")


class _Counter:
    """Counts answers by status, and ends requests in order that a shutdown gives up."""

    def __init__(self, app: ASGIApp, seen: Counter[int]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.seen[message["status"]] += 1
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except asyncio.CancelledError:  # the deadline of a shutdown; an answer that has begun is cut off
            if not started:
                message, close = "the server is shutting down; try again in a second", {"Connection": "close"}
                await _error_response(503, message, _CODES[503], headers=close)(scope, receive, counted)


def _metrics(engine: Engine, seen: Counter[int]) -> str:
    counters = engine.counters
    lines = [
        "# HELP unspoken_http_responses_total Responses by status.",
        "# TYPE unspoken_http_responses_total counter",
    ]
    lines += [f'unspoken_http_responses_total{{code="{code}"}} {count}' for code, count in sorted(seen.items())]
    for name, kind, text, value in (
        ("answers_total", "counter", "Answers that were completed.", counters.answers),
        ("failures_total", "counter", "Answers lost to an error of the model.", counters.failures),
        ("prompt_tokens_total", "counter", "Prompt tokens of these answers.", counters.prompt_tokens),
        ("answer_tokens_total", "counter", "Tokens of answers.", counters.answer_tokens),
        ("latent_steps_total", "counter", "Steps of the chains of these answers.", counters.latent_steps),
        ("stack_passes_total", "counter", "Passes of the stack over the running batch.", counters.passes),
        ("answer_seconds_total", "counter", "Time from admission to the last token.", round(counters.seconds, 6)),
        ("answers_running", "gauge", "Answers being computed.", engine.running),
        ("answers_waiting", "gauge", "Answers whose turn has not come.", engine.waiting),
    ):
        full = f"unspoken_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {value}"]
    return "\n".join(lines) + "\n"
