"""The explorer in a server's process: one page and two routes that compute in the thread of the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from starlette.requests import ClientDisconnect

from unspoken.draw.formats import escaped
from unspoken.explorer.exploring import Explorer
from unspoken.explorer.opening import first_contents, task_of
from unspoken.explorer.page import render
from unspoken.runs import compression_rate
from unspoken.serving import Engine, Limits, Served, serve
from unspoken.serving.engine import Closing, QueueFull
from unspoken.serving.preparation import check_length, longest_answer
from unspoken.serving.refusal import Refusal
from unspoken.serving.server import Pages, RequestReader, unless_gone

PATH = "/explore"
_MESSAGE = 400  # characters of an error, which may quote what was sent


def pages(explorer: Explorer) -> Pages:
    """The routes of the explorer, see `unspoken.serving.server.app`."""

    def made(engine: Engine, reader: RequestReader, with_key: Any) -> APIRouter:
        router = APIRouter(prefix=PATH)
        page = render({**first_contents(explorer), "frozen": None})

        @router.get("")
        async def show() -> HTMLResponse:
            """The page; it holds nothing of the model but its name."""
            return HTMLResponse(page, headers={"Content-Security-Policy": "frame-ancestors 'none'"})

        async def computed(request: Request, compute: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Response:
            try:
                async with reader.body(request) as body:
                    asked = await reader.decoded(body)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            return await unless_gone(_awaited(engine, lambda: compute(asked)), request)

        @router.post("/chain", dependencies=[Depends(with_key)])
        async def chain(request: Request) -> Response:
            """See `Explorer.changed`."""
            return await computed(request, explorer.changed)

        @router.post("/between", dependencies=[Depends(with_key)])
        async def between(request: Request) -> Response:
            """See `Explorer.between`."""
            return await computed(request, explorer.between)

        return router

    return made


async def _awaited(engine: Engine, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the model's thread computes; a `Refusal` where it cannot, or the request makes no sense."""
    try:
        return await asyncio.wrap_future(engine.call(compute))
    except QueueFull:
        raise Refusal(429, "the queue is full; try again in a second") from None
    except Closing:
        raise Refusal(503, "the server is shutting down; try again in a second") from None
    except ValueError as error:
        raise Refusal(400, " ".join(str(error).split())[:_MESSAGE]) from None


def served_explorer(served: Served, limits: Limits, *, task: Any, rate: int | None) -> Explorer:
    """An explorer whose questions are checked as a server's requests are."""

    def check(question: str) -> None:
        check_length(served, limits, [question])
        longest_answer(served, limits, served.system.texts.prompt(question))

    most = min(served.answer_tokens, limits.answer_tokens)
    return Explorer(served.system, task=task, rate=rate, check=check, max_tokens=most)


def explore(
    source: str | Path,
    *,
    seed: int = 0,
    stage: str | None = None,
    reasoning: str | None = None,
    device: str | torch.device = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: str | Path | None = None,
) -> None:
    """Serve the explorer of a model, beside its API, until a signal stops it.

    Args:
        source, seed, stage, reasoning, device: see `unspoken.runs.open_system`.
        host, port, api_key_file: see `unspoken.serving.serve`.

    Raises:
        ValueError: there is no such model, or as `unspoken.serving.serve`.
        OSError: the file with the key cannot be read.
    """
    rate, task = compression_rate(source, seed, stage), task_of(source, seed, stage)

    def pages_of(served: Served, limits: Limits) -> Pages:
        print(escaped(f"explorer of {served.system.name}: http://{host}:{port}{PATH}"), flush=True)
        return pages(served_explorer(served, limits, task=task, rate=rate))

    serve(
        source,
        seed=seed,
        stage=stage,
        reasoning=reasoning,
        device=device,
        host=host,
        port=port,
        api_key_file=api_key_file,
        pages_of=pages_of,
    )
