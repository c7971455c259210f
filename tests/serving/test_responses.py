"""Answers as both endpoints write them, word for word, and the log-probabilities in them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unspoken.reasoning.picking import Sampler
from unspoken.serving.pending import PendingAnswers
from unspoken.serving.responses import Choice, ResponseFormat, usage_of
from unspoken.serving.sampling import ScoredToken, ScoringSampler

TEXTS = {5: "Ann", 6: " has", 7: "é", 8: ""}
SCORES = [
    ScoredToken(token=5, logprob=-0.5, top=[(5, -0.5), (6, -1.5)]),
    ScoredToken(token=6, logprob=-0.25, top=[(6, -0.25), (7, -2.0)]),
    ScoredToken(token=7, logprob=-1.0, top=[(8, -0.125), (7, -1.0)]),
]
ENTRIES = {
    5: {"token": "Ann", "logprob": -0.5, "bytes": [65, 110, 110]},
    6: {"token": " has", "logprob": -0.25, "bytes": [32, 104, 97, 115]},
    7: {"token": "é", "logprob": -1.0, "bytes": [195, 169]},
}
USAGE = usage_of(11, 3, 6)
ROW = torch.tensor([0])


def form(*, chat: bool) -> ResponseFormat:
    return ResponseFormat(chat=chat, name="tiny", number="1f", created=1700000000, token_text=TEXTS.__getitem__)


def choice(**more: Any) -> Choice:
    return Choice(tokens=[5, 6, 7], text="Ann hasé", reason="stop", **more)


def test_what_a_request_cost() -> None:
    assert USAGE == {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "total_tokens": 14,
        "completion_tokens_details": {"reasoning_tokens": 6},
    }


def test_an_answer_of_the_chat_endpoint() -> None:
    capped = Choice(tokens=[5], text="Ann", reason="length", extension={"max_tokens": 1})
    assert form(chat=True).answer([choice(), capped], USAGE) == {
        "id": "chatcmpl-1f",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Ann hasé", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "Ann", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
                "unspoken": {"max_tokens": 1},
            },
        ],
        "usage": USAGE,
    }


def test_an_answer_of_the_completions_endpoint_with_its_log_probabilities() -> None:
    assert form(chat=False).answer([choice(scores=SCORES)], USAGE) == {
        "id": "cmpl-1f",
        "object": "text_completion",
        "created": 1700000000,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "text": "Ann hasé",
                "logprobs": {
                    "tokens": ["Ann", " has", "é"],
                    "token_logprobs": [-0.5, -0.25, -1.0],
                    "top_logprobs": [{"Ann": -0.5, " has": -1.5}, {" has": -0.25, "é": -2.0}, {"": -0.125, "é": -1.0}],
                    "text_offset": [0, 3, 7],
                },
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


def test_log_probabilities_of_the_chat_endpoint_have_bytes() -> None:
    written = form(chat=True).answer([choice(scores=SCORES)], USAGE)["choices"][0]["logprobs"]
    assert written["refusal"] is None
    assert [{key: entry[key] for key in ENTRIES[5]} for entry in written["content"]] == list(ENTRIES.values())
    assert written["content"][0]["top_logprobs"] == [
        ENTRIES[5],
        {"token": " has", "logprob": -1.5, "bytes": [32, 104, 97, 115]},
    ]
    assert written["content"][2]["top_logprobs"] == [{"token": "", "logprob": -0.125, "bytes": []}, ENTRIES[7]]


@pytest.mark.parametrize("chat", [True, False])
def test_chunks_of_a_stream(chat: bool) -> None:
    made = form(chat=chat)
    head = {
        "id": "chatcmpl-1f" if chat else "cmpl-1f",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1700000000,
        "model": "tiny",
    }
    over = choice(scores=SCORES, extension={"max_tokens": 3})

    def chunk(finish: str | None, index: int, **content: Any) -> dict[str, Any]:
        entry = {"index": index, "logprobs": None, "finish_reason": finish, **content}
        return {**head, "choices": [entry]}

    text = {"delta": {"content": " has"}} if chat else {"text": " has"}
    assert made.piece(3, " has", choice(extension={"max_tokens": 3}), slice(1, 2)) == chunk(None, 3, **text)
    scored = made.piece(3, " has", over, slice(1, 3))["choices"][0]["logprobs"]
    if chat:
        assert [entry["logprob"] for entry in scored["content"]] == [-0.25, -1.0]
    else:
        assert (scored["tokens"], scored["text_offset"]) == ([" has", "é"], [0, 4])
    end = {"delta": {}} if chat else {"text": ""}
    assert made.closing(2, over) == chunk("stop", 2, **end, unspoken={"max_tokens": 3})
    assert made.counted(USAGE) == {**head, "choices": [], "usage": USAGE}
    if chat:
        assert made.opening(1) == chunk(None, 1, delta={"role": "assistant", "content": ""})


# --- log-probabilities -----------------------------------------------------------------------------------------------


def test_scores_of_tokens_are_logarithms_of_their_probabilities() -> None:
    halves = torch.tensor([[[0.5, 0.25, 0.25, 0.0], [0.125, 0.0, 0.0, 0.875]]]).log()
    sampler = ScoringSampler(Sampler(), 2)
    assert sampler(halves + 3, ROW, 0).tolist() == [[0, 3]]
    first, second = sampler.scored
    assert (first.token, second.token) == (0, 3)
    assert (first.logprob, second.logprob) == pytest.approx((math.log(0.5), math.log(0.875)))
    assert [token for token, _ in second.top] == [3, 0]
    assert [value for _, value in second.top] == pytest.approx([math.log(0.875), math.log(0.125)])
    sampler(halves[:, :1], ROW, 2)
    assert len(sampler.scored) == 3


def test_a_token_that_cannot_be_has_a_number_that_json_can_write() -> None:
    sampler = ScoringSampler(Sampler(), 9)
    sampler(torch.tensor([[[0.0, -math.inf, 0.0]]]), ROW, 0)
    (scored,) = sampler.scored
    assert len(scored.top) == 3  # there are no more tokens
    assert scored.top[-1] == (1, -9999.0)

    class Second(Sampler):
        def __call__(self, scores: Any, rows: Any = None, first: int = 0) -> torch.Tensor:
            return torch.ones((1, 1), dtype=torch.long)

    impossible = ScoringSampler(Second(), 0)
    impossible(torch.tensor([[[0.0, -math.inf]]]), ROW, 0)
    assert impossible.scored == [ScoredToken(token=1, logprob=-9999.0, top=[])]


# --- what of a text can be shown -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("Ann has", None, 7),
        ("Ann has", [], 7),
        ("Ann has", ["has!"], 4),
        ("Ann has", ["xhas"], 7),
        ("Ann has", ["s!", "as!"], 5),
        ("aaa", ["aaaa"], 0),
        ("aaa", ["aab"], 1),
        ("b", ["bcd"], 0),
        ("Ann h\ufffd\ufffd", None, 5),
        ("Ann h\ufffd", ["h!"], 4),
        ("A\ufffdn", None, 3),
        ("\ufffd", ["a"], 0),
        ("", ["a"], 0),
    ],
)
def test_no_text_is_shown_that_may_still_be_taken_back(text: str, stop: list[str] | None, shown: int) -> None:
    pending: Any = SimpleNamespace(_prepared=SimpleNamespace(request=SimpleNamespace(stop=stop)))
    assert PendingAnswers.shown(pending, Choice(text=text)) == shown
    assert PendingAnswers.shown(pending, Choice(text=text, reason="stop")) == len(text)
