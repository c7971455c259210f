"""A server on a free port, in a thread of its own, over models that take milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
import uvicorn
from tiny_hub import save_tokenizer
from tiny_models import tiny_language_model
from tiny_words import tiny_word_system
from torch import Tensor
from transformers import AutoTokenizer

from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.engine import LatentStep
from unspoken.serving import Limits, Served, app
from unspoken.serving.connections import connection_settings
from unspoken.tasks.prompt_format import PromptFormat, TextFormat

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}|{{ message.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[assistant|{% endif %}"
)
WORDS = 8  # of an answer, where a request names no number


class Running:
    """A server that is up."""

    def __init__(self, server: uvicorn.Server, thread: threading.Thread) -> None:
        self.server = server
        self.thread = thread
        self.port: int = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def metric(self, name: str) -> float:
        lines = httpx2.get(f"{self.url}/metrics").text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"unspoken_{name} "))


@contextlib.contextmanager
def running(served: Served, **how: Any) -> Iterator[Running]:
    limits, patience = how.pop("limits", None) or Limits(), how.pop("drain_seconds", 30)
    settings: dict[str, Any] = {
        **connection_settings(limits),
        "log_config": None,
        "log_level": "critical",
        "timeout_graceful_shutdown": patience,
    }
    config = uvicorn.Config(app(served, limits=limits, **how), host="127.0.0.1", port=0, **settings)
    server = uvicorn.Server(config)
    # Not uvicorn's own choice of loop: the policy of the test process must stay as it is.
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        until(lambda: server.started)
        yield Running(server, thread)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


class Held:
    """A reasoner that says a word only when it is let."""

    def __init__(self, reasoner: Any) -> None:
        self.reasoner = reasoner
        self.permits = threading.Semaphore(0)

    @property
    def stack(self) -> Any:
        return self.reasoner.stack

    def embed_prompt(self, input_ids: Tensor) -> Tensor:
        return self.reasoner.embed_prompt(input_ids)

    def step(self, hidden: Tensor) -> LatentStep:
        return self.reasoner.step(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        assert self.permits.acquire(timeout=60)
        return self.reasoner.logits(hidden)

    def let(self, words: int) -> None:
        self.permits.release(words)


def tiny_served() -> Served:
    return Served(system=replace(tiny_word_system(), name="tiny", max_tokens=WORDS))


@pytest.fixture
def served() -> Served:
    return tiny_served()


@pytest.fixture
def held() -> Iterator[tuple[Held, Served]]:
    served = tiny_served()
    reasoner = Held(served.system.reasoner)
    yield reasoner, replace(served, system=replace(served.system, reasoner=reasoner))
    reasoner.let(10_000)  # nobody waits for a word when the test is over


@pytest.fixture
def start() -> Any:
    return running


@pytest.fixture
def wait() -> Any:
    return until


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    with running(tiny_served()) as server:
        yield server


@pytest.fixture(scope="session")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """An untrained model of single letters with a chat template, which takes every turn."""
    folder = tmp_path_factory.mktemp("letters")
    size = save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    model = tiny_language_model("llama", vocab_size=size, max_position_embeddings=512)
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(3,), top_k=5, max_latents=3)
    system = causal_lm_system(model, settings, name="chatting", max_tokens=12)
    text_format = TextFormat(prompt_format=PromptFormat(tokenizer=tokenizer))
    return Served(system=replace(system, text_format=text_format))


@pytest.fixture(scope="module")
def chat_server(chatting: Served) -> Iterator[Running]:
    with running(chatting) as server:
        yield server
