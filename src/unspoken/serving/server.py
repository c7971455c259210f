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
import os
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unspoken.reasoning.picking import Sampler
from unspoken.serving.batch import Job, Progress
from unspoken.serving.engine import Closing, Engine, Limits, QueueFull
from unspoken.serving.schema import ChatRequest, CompletionRequest, Form, error_of, usage_of
from unspoken.serving.systems import Served, open_served

KEY_VARIABLE = "UNSPOKEN_API_KEY"
_BEARER = HTTPBearer(auto_error=False)
_BODY_BYTES = 2**20
_CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 429: "queue_full", 503: "shutting_down"}


class Refusal(HTTPException):
    """An answer other than 200, with the code that tells clients why and the field that it is about."""

    def __init__(self, status: int, message: str, *, code: str | None = None, field: str | None = None) -> None:
        later = {"Retry-After": "1"} if status in (429, 503) else None
        super().__init__(status, message, later)
        self.code = code
        self.field = field


def app(served: Served, *, limits: Limits | None = None, api_key: str | None = None) -> FastAPI:
    """The application; its engine runs while its lifespan lasts.

    Args:
        served: the system that answers.
        limits: see `Limits`.
        api_key: what clients must send as bearer token to ``/v1``; None asks for none.

    Raises:
        ValueError: the system's stack cannot be shared by rows that come and go.
    """
    engine = Engine(served.system.reasoner, limits or Limits())
    seen: Counter[int] = Counter()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await run_in_threadpool(engine.close)

    api = FastAPI(title="unspoken", lifespan=lifespan, docs_url=None, redoc_url=None)
    api.add_middleware(_Gate, seen=seen)
    api.add_exception_handler(HTTPException, _refused)
    api.add_exception_handler(RequestValidationError, _malformed)
    api.add_exception_handler(Exception, _broken)
    api.include_router(_endpoints(served, engine, api_key))

    @api.get("/health")
    async def health() -> Response:
        """Whether new work is taken."""
        alive = engine.alive
        return _json({"status": "ok" if alive else "closing"}, 200 if alive else 503)

    @api.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Counters in the text format of Prometheus."""
        return PlainTextResponse(_metrics(engine, seen), media_type="text/plain; version=0.0.4")

    return api


def serve(
    run: str | Path,
    *,
    seed: int = 0,
    stage: str | None = None,
    device: str | torch.device = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    limits: Limits | None = None,
    drain_seconds: int = 30,
) -> None:
    """Serve a finished model until a signal says stop.

    On SIGTERM or SIGINT no new connection is taken, and what was asked is answered, for ``drain_seconds`` at most.

    Args:
        run, seed, stage, device: see `open_served`.
        host, port: where to listen.
        api_key: see `app`; the environment variable ``UNSPOKEN_API_KEY`` by default.
        limits: see `Limits`.
        drain_seconds: patience with answers in the making.

    Raises:
        ValueError: there is no such model, or the address is open to others and there is no key.
    """
    key = api_key or os.environ.get(KEY_VARIABLE) or None
    if key is None and not _is_loopback(host):
        raise ValueError(f"host {host} is open to others: set {KEY_VARIABLE}, or listen on 127.0.0.1")
    served = open_served(run, seed=seed, stage=stage, device=device)
    uvicorn.run(app(served, limits=limits, api_key=key), host=host, port=port, timeout_graceful_shutdown=drain_seconds)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- endpoints -------------------------------------------------------------------------------------------------------


def _endpoints(served: Served, engine: Engine, api_key: str | None) -> APIRouter:
    async def with_key(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if api_key is None:
            return
        if given is None or not hmac.compare_digest(given.credentials.encode(), api_key.encode()):
            raise Refusal(401, "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'")

    router = APIRouter(prefix="/v1", dependencies=[Depends(with_key)])
    card = {"id": served.system.name, "object": "model", "created": int(time.time()), "owned_by": "unspoken"}

    def known(name: str) -> None:
        if name != served.system.name:
            message = f"there is no model {name!r} here; the one that is served is {served.system.name!r}"
            raise Refusal(404, message, code="model_not_found", field="model")

    @router.get("/models")
    async def models() -> Response:
        """The one model that is served."""
        return _json({"object": "list", "data": [card]})

    @router.get("/models/{name}")
    async def model(name: str) -> Response:
        """What is known of a model."""
        known(name)
        return _json(card)

    @router.post("/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer the problem of a chat's only message."""
        return await answer(body, request, chat=True)

    @router.post("/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Answer problems."""
        return await answer(body, request, chat=False)

    async def answer(body: ChatRequest | CompletionRequest, request: Request, *, chat: bool) -> Response:
        known(body.model)
        try:
            # Long texts take a while to tokenise.
            jobs = await run_in_threadpool(_jobs, served, engine.limits, body, chat)
        except ValueError as error:
            raise Refusal(400, str(error)) from None
        flight = _Flight(served, engine, jobs)
        form = Form(chat=chat, name=served.system.name, number=uuid.uuid4().hex, created=int(time.time()))
        if body.stream:
            counted = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(_stream(flight, form, counted=counted), media_type="text/event-stream")
        try:
            return await _unless_gone(_answer(flight, form), request)
        finally:
            flight.end()

    return router


def _jobs(served: Served, limits: Limits, body: ChatRequest | CompletionRequest, chat: bool) -> list[Job]:
    """What is to be done for a request.

    Raises:
        ValueError: the task cannot read a text, or something is out of bounds.
    """
    requested = body.max_tokens
    if isinstance(body, ChatRequest):
        requested = requested if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = min(served.answer_tokens, limits.answer_tokens) if requested is None else requested
    if max_tokens > limits.answer_tokens:
        raise ValueError(f"max_tokens is {max_tokens}; this server says at most {limits.answer_tokens}")
    temperature, device, jobs = body.checked_temperature(), served.system.reasoner.stack.device, []
    for index, text in enumerate(body.texts()):
        generator = torch.Generator(device)
        if body.seed is None:
            generator.seed()
        else:
            generator.manual_seed((body.seed + index) % 2**63)
        job = served.job(served.prompt(text, chat=chat), max_tokens, Sampler(temperature, generator))
        positions = served.system.positions
        most = limits.prompt_tokens if positions is None else min(limits.prompt_tokens, positions - job.steps_left)
        if len(job.prompt) > most:
            raise Refusal(
                400,
                f"the prompt has {len(job.prompt)} tokens; with {job.steps_left} steps of thinking and speaking behind "
                f"it, at most {max(0, most)} fit",
                code="context_length_exceeded",
            )
        jobs.append(job)
    return jobs


class _Flight:
    """The answers of one request, on their way from the engine's thread to the event loop.

    Raises:
        Refusal: the engine takes nothing more.
    """

    def __init__(self, served: Served, engine: Engine, jobs: Sequence[Job]) -> None:
        self.served = served
        self.tokens: list[list[int]] = [[] for _ in jobs]
        self.capped = [False] * len(jobs)
        self._engine = engine
        self._jobs = jobs
        self._latents = [0] * len(jobs)
        self._progress: asyncio.Queue[tuple[int, Progress]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def report(index: int, progress: Progress) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: a second signal ended the server at once
                loop.call_soon_threadsafe(self._progress.put_nowait, (index, progress))

        try:
            engine.submit(jobs, report)
        except QueueFull:
            raise Refusal(429, "as many answers are waiting as may wait; try again in a second") from None
        except Closing:
            raise Refusal(503, "the server is shutting down; try again in a second") from None

    async def progress(self) -> AsyncIterator[tuple[int, Progress]]:
        """Every token of the answers, until all of them are over.

        Raises:
            Refusal: the model failed.
        """
        left = len(self._jobs)
        while left:
            index, progress = await self._progress.get()
            if progress.failure:
                raise Refusal(500, f"the model failed: {progress.failure}", code="model_failed")
            self.tokens[index] += progress.tokens
            self._latents[index], self.capped[index] = progress.latents, progress.capped
            left -= progress.over
            yield index, progress

    def end(self) -> None:
        """Nobody listens any more: what is not over yet gives up its place."""
        self._engine.cancel(self._jobs)

    def usage(self) -> dict[str, Any]:
        """What it cost."""
        prompts = sum(len(job.prompt) for job in self._jobs)
        return usage_of(prompts, sum(map(len, self.tokens)), sum(self._latents) if self.served.system.silent else 0)


async def _answer(flight: _Flight, form: Form) -> Response:
    async for _ in flight.progress():
        pass
    return _json(form.answer([flight.served.text(tokens) for tokens in flight.tokens], flight.capped, flight.usage()))


async def _stream(flight: _Flight, form: Form, *, counted: bool) -> AsyncIterator[str]:
    """Server-sent events: an answer token by token, however long its chain was."""
    shown = [""] * len(flight.tokens)
    try:
        if form.chat:
            yield _event(form.opening(0))
        async for index, progress in flight.progress():
            text = flight.served.text(flight.tokens[index])
            # A letter may need several tokens; until it is whole, the end of the text is a replacement.
            if len(text) > len(shown[index]) and (progress.over or not text.endswith("\ufffd")):
                yield _event(form.piece(index, text[len(shown[index]) :]))
                shown[index] = text
            if progress.over:
                yield _event(form.closing(index, progress.capped))
        if counted:
            yield _event(form.counted(flight.usage()))
        yield "data: [DONE]\n\n"
    except Refusal as refusal:
        yield _event(error_of(refusal.status_code, str(refusal.detail), refusal.code))
    finally:
        flight.end()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _unless_gone(answer: Any, request: Request) -> Response:
    """The answer, unless its client hangs up first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    response, departure = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({response, departure}, return_when=asyncio.FIRST_COMPLETED)
        if response.done():
            result: Response = response.result()
            return result
        return Response(status_code=499)  # nobody reads it; the number is nginx's
    finally:
        response.cancel()
        departure.cancel()


# --- errors, and what is counted -------------------------------------------------------------------------------------


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # In ASCII, since half a surrogate pair in a client's own field name cannot be written otherwise.
    return Response(json.dumps(content), status, headers, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    code = getattr(error, "code", None) or _CODES.get(status)
    content = error_of(status, str(error.detail), code, getattr(error, "field", None))
    return _json(content, status, dict(error.headers or {}))


async def _malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    return _json(error_of(400, f"{field}: {first['msg']}" if field else first["msg"], field=field or None), 400)


async def _broken(_: Request, _error: Exception) -> Response:
    return _json(error_of(500, "the server failed; its log says why"), 500)


class _Gate:
    """Counts answers by status and stops bodies that are too large, on their way in."""

    def __init__(self, app: ASGIApp, seen: Counter[int]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0

        async def measured() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > _BODY_BYTES:
                raise Refusal(413, f"the request is larger than {_BODY_BYTES} bytes")
            return message

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen[message["status"]] += 1
            await send(message)

        await self.app(scope, measured, counted)


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
        ("spoken_tokens_total", "counter", "Tokens of answers.", counters.spoken_tokens),
        ("latent_steps_total", "counter", "Steps of the chains of these answers.", counters.latent_steps),
        ("stack_passes_total", "counter", "Passes of the stack over the running batch.", counters.passes),
        ("answer_seconds_total", "counter", "Time from admission to the last word.", round(counters.seconds, 6)),
        ("answers_running", "gauge", "Answers being computed.", engine.running),
        ("answers_waiting", "gauge", "Answers whose turn has not come.", engine.waiting),
    ):
        full = f"unspoken_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {value}"]
    return "\n".join(lines) + "\n"
