"""Many clients for a while: memory does not grow, nothing fails, and nobody waits for long.

The test takes ``UNSPOKEN_SOAK_SECONDS``, 30 by default; ten minutes are 600:

    UNSPOKEN_SOAK_SECONDS=600 python -m pytest -m slow -s tests/serving/test_soak.py
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from serving_process import serving_process
from tiny_words import TASK

SECONDS = float(os.environ.get("UNSPOKEN_SOAK_SECONDS", "30"))
CLIENTS = 128
QUESTIONS = [problem.question for problem in TASK.sample("test", range(20))]
RUDE = [b"{", b"[" * 10_000, b'{"model": "tiny", "messages": [' + b"1," * 50_000 + b"1]}", b"\xff" * 1000]


def body_of(draw: random.Random) -> dict[str, Any]:
    """A request that makes sense, of one of several kinds."""
    question = draw.choice(QUESTIONS)
    how: dict[str, Any] = draw.choice(
        [{}, {"stop": "the"}, {"n": 3, "temperature": 1.0, "top_p": 0.9}, {"max_tokens": 1000}, {"logprobs": 2}]
    )
    return {"model": "tiny", "prompt": question, "stream": draw.random() < 0.3, **how}


async def client(url: str, number: int, until: float, seen: Counter[int], times: list[float]) -> None:
    draw = random.Random(number)
    headers = {"Content-Type": "application/json"}
    async with httpx2.AsyncClient(timeout=60) as http:
        while time.monotonic() < until:
            if draw.random() < 0.1:
                answer = await http.post(f"{url}/v1/chat/completions", content=draw.choice(RUDE), headers=headers)
                seen[answer.status_code] += 1
                continue
            patience = 0.02 if draw.random() < 0.1 else 60  # some leave before their answer comes
            began = time.monotonic()
            with contextlib.suppress(httpx2.TimeoutException):
                answer = await http.post(f"{url}/v1/completions", json=body_of(draw), timeout=patience)
                seen[answer.status_code] += 1
                times.append(time.monotonic() - began)
                assert answer.status_code != 200 or b'"error"' not in answer.content


async def all_clients(url: str, seconds: float) -> tuple[Counter[int], list[float]]:
    seen, times, until = Counter[int](), list[float](), time.monotonic() + seconds
    await asyncio.gather(*(client(url, number, until, seen, times) for number in range(CLIENTS)))
    return seen, sorted(times)


@pytest.mark.slow
def test_many_clients_for_a_while(tmp_path: Path) -> None:
    with serving_process(tmp_path / "log") as server:
        process = psutil.Process(server.process.pid)
        asyncio.run(all_clients(server.url, SECONDS / 5))
        before = process.memory_info().rss
        seen, times = asyncio.run(all_clients(server.url, SECONDS))
        after, descriptors = process.memory_info().rss, process.num_fds()
        lines = httpx2.get(f"{server.url}/metrics").text
    reading = {
        "seconds": SECONDS,
        "clients": CLIENTS,
        "statuses": dict(seen),
        "p50": round(times[len(times) // 2], 3),
        "p95": round(times[int(len(times) * 0.95)], 3),
        "longest": round(times[-1], 3),
        "mebibytes": [round(size / 2**20, 1) for size in (before, after)],
        "descriptors": descriptors,
        "log_bytes": (tmp_path / "log").stat().st_size,
    }
    print(json.dumps(reading))
    assert max(seen) < 500, seen
    assert seen[200] > CLIENTS
    assert after < before + 2**25
    assert descriptors < 100
    assert "unspoken_answers_running 0" in lines
    assert "unspoken_answers_waiting 0" in lines
    assert (tmp_path / "log").stat().st_size < 10_000 + 5000 * 1.2 * SECONDS
