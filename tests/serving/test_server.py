"""The server as its clients see it: the official client, many at once, some of them rude."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system

from unspoken import serving
from unspoken.backbone.folder import write_manifest
from unspoken.serving import Limits, Served, serve

QUESTIONS = [problem.question for problem in TASK.sample("test", range(20))]
WORDS = 8


def client_of(server: Any, key: str = "none", **how: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20, **how)


def asked(server: Any, question: str = QUESTIONS[0], **how: Any) -> Any:
    with client_of(server) as client:
        return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": question}], **how)


class Alone:
    """What the engine says to one question, without any server."""

    def __init__(self, question: str) -> None:
        system = tiny_word_system()
        prompt = torch.tensor([PROMPT_FORMAT.prompt(question)])
        answer = system.respond(prompt, max_tokens=WORDS)
        self.words, self.prompt_format = answer.tokens[0].tolist(), PROMPT_FORMAT
        self.prompt_tokens = prompt.shape[1] + len(system.opening)
        self.steps = int(answer.chain.lengths[0])
        self.ended = self.words[-1] == self.prompt_format.tokenizer.eos_token_id

    def text(self, words: int = WORDS) -> str:
        return self.prompt_format.decode(torch.tensor([self.words[:words]]))[0]


@pytest.fixture(scope="module")
def alone() -> list[Alone]:
    found = [Alone(question) for question in QUESTIONS]
    # Otherwise an answer that went to the wrong client would not be seen.
    assert len({one.text() for one in found}) > 12
    return found


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_official_client_is_answered_as_the_engine_answers(tiny: Any, alone: list[Alone]) -> None:
    with client_of(tiny) as client:
        for question, expected in zip(QUESTIONS[:3], alone, strict=False):
            chat = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": question}])
            parts: Any = [{"role": "user", "content": [{"type": "text", "text": question}]}]
            other = client.chat.completions.create(model="tiny", messages=parts, max_completion_tokens=2)
            whole = client.completions.create(model="tiny", prompt=question, max_tokens=3)
            assert chat.choices[0].message.content == expected.text()
            assert chat.choices[0].finish_reason == ("stop" if expected.ended else "length")
            assert other.choices[0].message.content == expected.text(2)
            assert whole.choices[0].text == expected.text(3)
            usage = chat.usage
            assert usage is not None
            assert usage.completion_tokens_details is not None
            assert usage.prompt_tokens == expected.prompt_tokens
            assert usage.completion_tokens == len(expected.words)
            assert usage.completion_tokens_details.reasoning_tokens == expected.steps
            assert usage.total_tokens == expected.prompt_tokens + len(expected.words)
        several = client.completions.create(model="tiny", prompt=QUESTIONS[:5])
        assert [choice.text for choice in several.choices] == [one.text() for one in alone[:5]]


def test_a_stream_says_the_same_word_by_word(tiny: Any, alone: list[Alone]) -> None:
    with client_of(tiny) as client:
        messages: Any = [{"role": "user", "content": QUESTIONS[1]}]
        options: Any = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(model="tiny", messages=messages, stream=True, stream_options=options)
        )
        pieces = [chunk.choices[0].delta.content for chunk in chunks[:-1] if chunk.choices[0].delta.content]
        assert "".join(pieces) == alone[1].text()
        assert len(pieces) > 2
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len(alone[1].words)
        assert [chunk.choices[0].finish_reason is None for chunk in chunks[:-1]] == [True] * (len(chunks) - 2) + [False]
        texts = {0: "", 1: ""}
        for chunk in client.completions.create(model="tiny", prompt=QUESTIONS[2:4], stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == {0: alone[2].text(), 1: alone[3].text()}


def test_drawn_words_depend_on_the_seed_alone(tiny: Any) -> None:
    drawn = [asked(tiny, temperature=1.0, seed=seed).choices[0].message.content for seed in (0, 1, 0, 1)]
    assert drawn[:2] == drawn[2:]
    assert len(set(drawn)) == 2
    cold = asked(tiny, temperature=0).choices[0].message.content
    assert cold == asked(tiny).choices[0].message.content


def test_two_hundred_clients_at_once_each_get_their_own_answer(start: Any, served: Served, alone: list[Alone]) -> None:
    async def ask(client: openai.AsyncOpenAI, index: int) -> None:
        expected, words = alone[index % 20], 4 + index // 40
        messages: Any = [{"role": "user", "content": QUESTIONS[index % 20]}]
        if index % 3:
            chat = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=words)
            assert chat.usage is not None
            assert chat.usage.completion_tokens == min(words, len(expected.words))
            text = chat.choices[0].message.content
        else:
            stream = await client.chat.completions.create(
                model="tiny", messages=messages, max_tokens=words, stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == expected.text(words)

    async def all_at_once() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            await asyncio.gather(*(ask(client, index) for index in range(200)))

    with start(served) as server:
        asyncio.run(all_at_once())
        assert server.metric("answers_total") == 200
        assert server.metric("answers_running") == server.metric("answers_waiting") == 0
        # Together they took far fewer passes than one after another (200 of at least 10).
        assert server.metric("stack_passes_total") < 1000


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_refused_in_the_official_form(start: Any, served: Served) -> None:
    with start(served, limits=Limits(prompt_tokens=60, answer_tokens=100), api_key="secret") as server:
        with client_of(server, "wrong") as stranger, pytest.raises(openai.AuthenticationError) as wrong:
            stranger.models.list()
        assert wrong.value.code == "invalid_api_key"
        with client_of(server, "secret") as client:
            message: Any = [{"role": "user", "content": QUESTIONS[0]}]
            with pytest.raises(openai.NotFoundError) as unknown:
                client.chat.completions.create(model="gpt-9", messages=message)
            assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("gpt-9")
            with pytest.raises(openai.BadRequestError) as long:
                client.completions.create(model="tiny", prompt=" ".join(QUESTIONS[:10]))
            assert long.value.code == "context_length_exceeded"
            with pytest.raises(openai.BadRequestError, match="one problem of the task 'arithmetic'"):
                client.chat.completions.create(model="tiny", messages=[*message, *message])
            with pytest.raises(openai.BadRequestError, match="unknown word"):
                client.completions.create(model="tiny", prompt="Colourless green ideas")
            with pytest.raises(openai.BadRequestError) as extra:
                client.chat.completions.create(model="tiny", messages=message, presence_penalty=0.5)
            assert extra.value.param == "presence_penalty"
            with pytest.raises(openai.BadRequestError, match=r"temperature is 0\.001"):
                client.chat.completions.create(model="tiny", messages=message, temperature=0.001)
        # Health and counters need no key; there is no page that loads scripts from elsewhere.
        assert httpx2.get(f"{server.url}/health").json() == {"status": "ok"}
        assert 'unspoken_http_responses_total{code="401"} 1' in httpx2.get(f"{server.url}/metrics").text
        assert httpx2.get(f"{server.url}/docs").status_code == 404


def test_a_full_queue_says_when_to_come_again(start: Any, held: Any, wait: Any) -> None:
    reasoner, served = held
    with start(served, limits=Limits(batch_size=1, queue=1)) as server:
        texts: list[str] = []
        threads = [
            threading.Thread(target=lambda: texts.append(asked(server).choices[0].message.content)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait(lambda: server.metric("answers_running") == server.metric("answers_waiting") == 1)
        with pytest.raises(openai.RateLimitError) as full:
            asked(server)
        assert full.value.response.headers["retry-after"] == "1"
        assert full.value.code == "queue_full"
        reasoner.let(100)
        for thread in threads:
            thread.join()
        assert texts == [Alone(QUESTIONS[0]).text()] * 2


def test_others_may_not_listen_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSPOKEN_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(ValueError, match=f"host {host} is reachable from other machines: set UNSPOKEN_API_KEY"):
            serve(tmp_path, host=host)
    # With a key, or at home, the next thing that is missing is the run.
    for how in ({"host": "0.0.0.0", "api_key": "secret"}, {}, {"host": "::1"}, {"host": "localhost"}):
        with pytest.raises(ValueError, match="neither a run folder"):
            serve(tmp_path, **how)
    write_manifest(tmp_path, {"step": 7})
    with pytest.raises(ValueError, match=r"nor a model folder \(no config.json\)"):
        serve(tmp_path)


def test_a_missing_library_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "unspoken.serving.server")
    with pytest.raises(ValueError, match=r"the server needs fastapi: install it with pip install 'unspoken\[serve\]'"):
        importlib.reload(serving)
