"""A clock that somebody sets while the server runs."""

from __future__ import annotations

import itertools
import time
from typing import Any

import httpx2
import pytest
from tiny_words import TASK

from unspoken.serving import Served


def test_answers_and_their_seconds_do_not_depend_on_the_wall_clock(
    start: Any, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "tiny", "prompt": [problem.question for problem in TASK.sample("test", range(4))], "seed": 0}

    def asked(server: Any) -> list[str]:
        answer = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=30)
        return [choice["text"] for choice in answer.json()["choices"]]

    with start(served) as server:
        expected = asked(server)
    years, now, began = itertools.cycle([0, 20, -20, 3, -1]), time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now + next(years) * 365 * 86400.0)
    with start(served) as server:
        assert asked(server) == asked(server) == expected
        seconds = server.metric("answer_seconds_total")
        assert server.metric("answers_total") == 8
    # Eight answers of at most as many seconds as all of it took.
    assert 0 < seconds < 8 * (time.monotonic() - began)
