"""Answers on their way to a client: where they end, what of them is sent when, and what they cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from unspoken.serving.batch import Progress
from unspoken.serving.engine import Closing, QueueFull
from unspoken.serving.pending import PendingAnswers, answered, streamed
from unspoken.serving.refusal import Refusal
from unspoken.serving.responses import ResponseFormat

TEXTS = ("", "Ann ", "has ", "3 ", "pears", "\ufffd")
OVER = Progress(tokens=(4,), over=True, latents=2)


class FakeEngine:
    """A model whose jobs progress as a test sets them, and what is asked of its engine."""

    def __init__(
        self, jobs: int = 1, *, error: type[Exception] | None = None, silent: bool = True, **asked: Any
    ) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.jobs = [SimpleNamespace(prompt=[5] * (10 + number), chain=None, reason=0) for number in range(jobs)]
        self.request = SimpleNamespace(**{"stop": None, "n": None, "unspoken": None, **asked})
        self.error, self.silent = error, silent
        self.report: Any = None
        self.texts = 0  # that were made of tokens

    def submit(self, jobs: Sequence[Any], report: Any) -> None:
        if self.error is not None:
            raise self.error
        self.report = report

    def finish(self, job: Any) -> None:
        self.calls.append(("finish", self.jobs.index(job)))

    def cancel(self, jobs: Sequence[Any]) -> None:
        self.calls.append(("cancel", len(jobs)))

    def text(self, tokens: Sequence[int]) -> str:
        self.texts += 1
        return "".join(TEXTS[token] for token in tokens)

    def pending(self, cuts: Sequence[int | None] | None = None) -> PendingAnswers:
        prepared: Any = SimpleNamespace(
            request=self.request,
            jobs=self.jobs,
            samplers=[None] * len(self.jobs),
            cuts=cuts or [None] * len(self.jobs),
        )
        served: Any = SimpleNamespace(text=self.text, system=SimpleNamespace(silent=self.silent))
        return PendingAnswers(served, self, prepared)  # type: ignore[arg-type]


def updates(
    engine: FakeEngine, *progress: Progress, read: bool = False, index: int = 0, cuts: Any = None
) -> tuple[PendingAnswers, list[tuple[str, str | None]]]:
    """The text and the end of an answer after each progress."""

    async def run() -> tuple[PendingAnswers, list[tuple[str, str | None]]]:
        pending = engine.pending(cuts)
        for one in progress:
            engine.report(index, one)
        return pending, [(choice.text, choice.reason) async for _, choice in pending.updates(read=read)]

    return asyncio.run(run())


def tokens(*ids: int) -> Progress:
    return Progress(tokens=ids, latents=2)


# --- where an answer ends --------------------------------------------------------------------------------------------


def test_a_text_is_made_where_somebody_reads_it_or_it_is_complete() -> None:
    _, unread = updates(FakeEngine(), tokens(1), tokens(2, 3), OVER)
    assert unread == [("", None), ("", None), ("Ann has 3 pears", "stop")]
    _, read = updates(FakeEngine(), tokens(1), tokens(2, 3), OVER, read=True)
    assert read == [("Ann ", None), ("Ann has 3 ", None), ("Ann has 3 pears", "stop")]
    _, capped = updates(FakeEngine(), Progress(tokens=(1,), over=True, capped=True))
    assert capped == [("Ann ", "length")]


@pytest.mark.parametrize(
    ("stop", "seen"),
    [
        (["pear"], [("Ann ", None), ("Ann has 3 ", None), ("Ann has 3 ", "stop")]),
        (["3", "has"], [("Ann ", None), ("Ann ", "stop")]),
        (["has", "3"], [("Ann ", None), ("Ann ", "stop")]),
        (["Ann"], [("", "stop")]),
        (["An", "n has"], [("", "stop")]),
        (["plums"], [("Ann ", None), ("Ann has 3 ", None), ("Ann has 3 pears", "stop")]),
    ],
)
def test_an_answer_ends_before_the_first_of_its_stops(stop: list[str], seen: list[tuple[str, str | None]]) -> None:
    engine = FakeEngine(stop=stop)
    pending, actual = updates(engine, tokens(1), tokens(2, 3), OVER)
    assert actual == seen
    # The engine is informed where the model has not ended the answer itself, and what comes later counts no more.
    assert engine.calls == ([] if stop == ["plums"] else [("finish", 0)])
    assert len(pending.choices[0].tokens) == {1: 1, 2: 3, 3: 4}[len(seen)]


def test_what_an_answer_was_cut_to_stands_beside_it() -> None:
    pending, _ = updates(FakeEngine(), OVER, cuts=[7])
    assert pending.choices[0].extension == {"max_tokens": 7}
    pending, _ = updates(FakeEngine(), OVER)
    assert pending.choices[0].extension is None
    asked = SimpleNamespace(chain=True, coefficients=2)
    pending, _ = updates(FakeEngine(unspoken=asked), OVER, cuts=[7])
    assert pending.choices[0].extension == {"max_tokens": 7, "chain": {"stopped": "end", "steps": []}}
    pending, _ = updates(FakeEngine(unspoken=SimpleNamespace(chain=False, coefficients=2)), OVER)
    assert pending.choices[0].extension is None


def test_a_model_that_fails_is_an_error_of_the_server() -> None:
    with pytest.raises(Refusal, match="the model failed: out of memory") as failed:
        updates(FakeEngine(), tokens(1), Progress(over=True, failure="out of memory"))
    assert (failed.value.status_code, failed.value.code) == (500, "model_failed")


@pytest.mark.parametrize(("error", "status"), [(QueueFull, 429), (Closing, 503)])
def test_what_the_engine_does_not_take_is_refused(error: type[Exception], status: int) -> None:
    with pytest.raises(Refusal, match="try again in a second") as refused:
        updates(FakeEngine(error=error))
    assert (refused.value.status_code, refused.value.headers) == (status, {"Retry-After": "1"})


# --- what is sent, and what it cost ----------------------------------------------------------------------------------


def sent(engine: FakeEngine, *progress: tuple[int, Progress], chat: bool = True, counted: bool = False) -> list[Any]:
    """Events of a stream: the choice, its new text and its end, or another content; and the last line."""
    form = ResponseFormat(chat=chat, name="tiny", number="1", created=1, token_text=str)

    async def run() -> list[str]:
        pending = engine.pending()
        for index, one in progress:
            engine.report(index, one)
        return [event async for event in streamed(pending, form, counted=counted)]

    events: list[Any] = []
    for event in asyncio.run(run()):
        assert event.startswith("data: ")
        assert event.endswith("\n\n")
        if event == "data: [DONE]\n\n":
            events.append("done")
            continue
        content = json.loads(event.removeprefix("data: "))
        if not content.get("choices"):
            events.append(content.get("usage") or content["error"]["message"])
            continue
        (choice,) = content["choices"]
        text = choice["delta"].get("content") if chat else choice["text"]
        events.append((choice["index"], text, choice["finish_reason"]))
    return events


def test_a_stream_of_a_chat() -> None:
    engine = FakeEngine(2)
    first, second = (0, tokens(1, 2)), (1, tokens(3))
    assert sent(engine, first, second, (0, tokens(5)), (1, OVER), (0, OVER), counted=True) == [
        (0, "", None),
        (1, "", None),
        (0, "Ann has ", None),
        (1, "3 ", None),
        # A letter that is not complete is sent with the next one.
        (1, "pears", None),
        (1, None, "stop"),
        (0, "\ufffdpears", None),
        (0, None, "stop"),
        {
            "prompt_tokens": 21,
            "completion_tokens": 6,
            "total_tokens": 27,
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
        "done",
    ]
    assert engine.calls == [("cancel", 2)]


def test_a_stream_of_a_completion_holds_back_what_may_be_a_stop() -> None:
    engine = FakeEngine(stop=["has 3"])
    assert sent(engine, (0, tokens(1)), (0, tokens(2)), (0, tokens(2)), (0, OVER), chat=False) == [
        (0, "Ann ", None),
        (0, "has ", None),
        (0, "has pears", None),
        (0, "", "stop"),
        "done",
    ]
    engine = FakeEngine(stop=["has 3"])
    assert sent(engine, (0, tokens(1)), (0, tokens(2)), (0, tokens(3)), chat=False) == [
        (0, "Ann ", None),
        (0, "", "stop"),
        "done",
    ]
    assert engine.calls == [("finish", 0), ("cancel", 1)]


def test_a_stream_that_fails_ends_in_the_error() -> None:
    engine = FakeEngine()
    failure = Progress(over=True, failure="out of memory")
    assert sent(engine, (0, tokens(1)), (0, failure), chat=False) == [
        (0, "Ann ", None),
        "the model failed: out of memory",
    ]
    assert engine.calls == [("cancel", 1)]


@pytest.mark.parametrize(
    ("copies", "silent", "prompts", "steps"),
    [(None, True, 46, 8), (1, True, 46, 8), (2, True, 22, 8), (4, False, 10, 0)],
)
def test_a_prompt_counts_once_for_all_its_answers(copies: int | None, silent: bool, prompts: int, steps: int) -> None:
    engine = FakeEngine(4, n=copies, silent=silent)

    async def run() -> dict[str, Any]:
        pending = engine.pending()
        for index in range(4):
            engine.report(index, tokens(1, 2))
            engine.report(index, OVER)
        return await answered(pending, ResponseFormat(chat=False, name="tiny", number="1", created=1, token_text=str))

    answer = asyncio.run(run())
    assert [choice["text"] for choice in answer["choices"]] == ["Ann has pears"] * 4
    assert engine.texts == 4  # none of an answer that is not complete
    assert answer["usage"] == {
        "prompt_tokens": prompts,
        "completion_tokens": 12,
        "total_tokens": prompts + 12,
        "completion_tokens_details": {"reasoning_tokens": steps},
    }
