"""What the explorer computes, what its routes refuse, and what a page without a server holds."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect
from tiny_words import TASK, tiny_word_system

import unspoken
from unspoken.explorer import record, routes
from unspoken.explorer.exploring import Explorer
from unspoken.explorer.opening import first_contents
from unspoken.explorer.page import render
from unspoken.explorer.routes import pages, served_explorer
from unspoken.serving import Limits, Served, app
from unspoken.serving.refusal import Refusal

TREE = "MC,MJ,CN,CG,JF,JA[ROOT]M[TARGET]N[ROUTE]"


@pytest.fixture(scope="module")
def trees() -> Explorer:
    return Explorer(unspoken.load("tree-search", device="cpu"))


@pytest.fixture(scope="module")
def words() -> Explorer:
    return Explorer(tiny_word_system(), task=TASK, rate=2)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    served, limits = Served(system=tiny_word_system()), Limits()
    explorer = served_explorer(served, limits, task=TASK, rate=None)
    with TestClient(app(served, limits=limits, api_key="secret", pages=pages(explorer))) as made:
        yield made


def edited(explorer: Explorer, *edits: dict[str, Any], problem: int | str = 0) -> dict[str, Any]:
    return explorer.changed({"problem": problem, "edits": list(edits)})


# --- what is computed ------------------------------------------------------------------------------------------------


def test_a_chain_is_read_beside_the_tree_and_the_explicit_step(trees: Explorer) -> None:
    own = edited(trees, problem=TREE)
    assert (own["text"], own["expected"], own["correct"], own["changed"]) == ("MCN", "MCN", True, False)
    assert own["tree"]["names"] == [*"MCJNGFA"]
    assert [step["piece"] for step in own["steps"]] == ["M", "C", "N", "[EOS]"]
    assert [step["decoded"] for step in own["steps"]] == ["M", "C", "N", "[EOS]"]
    assert [step["rows"][0][0] for step in own["steps"]] == ["M", "C", "N", "[EOS]"]
    assert all(step["distance"] < 0.2 for step in own["steps"])
    assert own["steps"][0]["names"]["M"] > 0.9


def test_the_rest_is_kept_or_written_anew(trees: Explorer) -> None:
    own = edited(trees)["steps"]
    kept = edited(trees, {"kind": "zero", "step": 0})["steps"]
    written = edited(trees, {"kind": "zero", "step": 0, "rest": "write"})["steps"]
    assert kept[0]["norm"] == written[0]["norm"] == 0
    assert [step["rows"] for step in kept[1:]] == [step["rows"] for step in own[1:]]
    assert written[1]["rows"] != own[1]["rows"]
    # Steps may be counted from the end.
    last = len(own) - 1
    for step, same in ((0, -1 - last), (last, -1)):
        changes = [edited(trees, {"kind": "zero", "step": place, "rest": "write"})["steps"] for place in (step, same)]
        assert changes[0] == changes[1]
        assert changes[0][step]["norm"] == 0
    # A change that changes nothing leaves what comes after it as it was.
    unmoved = edited(trees, {"kind": "noise", "step": 1, "amount": 0.0, "rest": "write"})
    assert unmoved["text"] == "MCN" and not unmoved["changed"]
    assert [step["rows"][0][0] for step in unmoved["steps"]] == ["M", "C", "N", "[EOS]"]


def test_the_value_in_a_box_is_what_an_answer_comes_to() -> None:
    cups = Explorer(unspoken.load("cups", device="cpu"))
    own = edited(cups)
    assert own["value"] == own["expected"] == own["own"]["value"] and f"{{{own['value']}}}" in own["text"]
    assert own["tree"] is None and own["steps"][0]["decoded"] is None


def test_every_change_does_what_its_name_is(trees: Explorer) -> None:
    own, other = edited(trees)["steps"], edited(trees, problem=1)["steps"]

    def rows(*edits: dict[str, Any]) -> list[str]:
        return [step["rows"][0][0] for step in edited(trees, *edits)["steps"]]

    assert rows({"kind": "swap", "step": 1, "problem": 1})[1] == other[1]["rows"][0][0] != own[1]["rows"][0][0]
    assert rows({"kind": "move", "step": 0, "to": 2}) == ["C", "N", "M", "[EOS]"]
    assert rows({"kind": "delete", "step": 1}) == ["M", "N", "[EOS]"]
    assert rows({"kind": "truncate", "steps": 2}) == ["M", "C"]
    assert rows({"kind": "mix", "problem": 1, "fraction": 1.0}) == [step["rows"][0][0] for step in other]
    assert rows({"kind": "delete", "step": 0}, {"kind": "delete", "step": 0}) == ["N", "[EOS]"]
    noisy = edited(trees, {"kind": "noise", "step": 0, "amount": 1.0})["steps"][0]
    assert noisy["norm"] == pytest.approx(own[0]["norm"], rel=1e-3) and noisy["rows"] != own[0]["rows"]
    answers = trees.between({"problem": 0, "other": 1, "points": 11})
    assert [point["text"] for point in answers["points"]][::10] == ["MCN", edited(trees, problem=1)["text"]]
    assert answers["flips"] and answers["flips"][0]["from"] == "MCN"


def test_a_weight_is_what_it_is_set_to(trees: Explorer, words: Explorer) -> None:
    changed = dict(edited(trees, {"kind": "weigh", "step": 0, "token": "J", "weight": 0.6})["steps"][0]["tokens"])
    assert changed["J"] == pytest.approx(0.6, abs=1e-3)
    token, weight = edited(words)["steps"][0]["tokens"][0]
    step = edited(words, {"kind": "weigh", "step": 0, "token": token, "weight": 0.9})["steps"][0]
    assert step["tokens"][0] == (token, pytest.approx(0.9, abs=1e-3)) and weight < 0.9
    # Of another chain between two: the mixture of both mixtures.
    chain, other = words.system.answer([words.question(0), words.question(1)])
    half = chain.chain.mixed(other.chain, 0.5)
    expected = (chain.chain.record.latents[0, 0] + other.chain.record.latents[0, 0]) / 2
    assert torch.allclose(half.record.latents[0, 0], expected, atol=1e-5)
    assert sum(dict(half.steps(top=20)[0].tokens).values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        ([], "request is \\[\\]; it must be a mapping"),
        ({}, "request.problem is missing"),
        ({"problem": -1}, "there is no test problem -1; they are numbered from 0"),
        ({"problem": True}, "request.problem is True; it must be a whole number or text"),
        ({"problem": 0, "edits": [{"kind": "bend"}]}, "request.edits\\[0\\].kind is 'bend'"),
        ({"problem": 0, "edits": [{"kind": "zero", "step": 9}]}, "there is no step 9"),
        ({"problem": 0, "edits": [{"kind": "noise", "step": 0, "amount": -1.0}]}, "amount is -1.0"),
        (
            {"problem": 0, "edits": [{"kind": "weigh", "step": 0, "token": "J", "weight": 2.0}]},
            "it must be from 0 to 1",
        ),
        ({"problem": 0, "edits": [{"kind": "truncate", "steps": 0}]}, "an empty chain has no answer"),
        ({"problem": 0, "edits": [{"kind": "zero", "step": 0}] * 33}, "at most 32"),
    ],
)
def test_what_makes_no_sense_is_one_line(trees: Explorer, request_body: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        trees.changed(request_body)
    assert "\n" not in str(refused.value)


# --- routes ----------------------------------------------------------------------------------------------------------


def test_routes_want_the_key_and_the_page_does_not(client: TestClient) -> None:
    page = client.get("/explore")
    assert page.status_code == 200 and "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert client.post("/explore/chain", json={"problem": 0}).status_code == 401
    known = {"Authorization": "Bearer secret"}
    answer = client.post("/explore/chain", json={"problem": 0}, headers=known)
    assert answer.status_code == 200 and answer.json()["question"] == TASK.sample("test", [0])[0].question
    between = client.post("/explore/between", json={"problem": 0, "other": 1, "points": 3}, headers=known)
    assert len(between.json()["points"]) == 3
    # The API is beside it, and its schema knows nothing of the page.
    assert client.get("/v1/models", headers=known).status_code == 200
    assert not any("explore" in path for path in client.get("/openapi.json", headers=known).json()["paths"])


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"[" * 40 + b"]" * 40, 400, "levels deep"),
        (b'{"problem": "' + b"x " * 300_000 + b'"}', 400, "this server reads prompts of at most"),
        (b'{"problem": "' + b"x" * 2**20 + b'"}', 413, "larger than"),
        (b'{"problem": 0, "edits": [{"kind": "zero", "step": 99}]}', 400, "there is no step 99"),
    ],
)
def test_bodies_are_checked_as_the_server_checks_them(client: TestClient, body: bytes, status: int, words: str) -> None:
    known = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    answer = client.post("/explore/chain", content=body, headers=known)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"] and len(answer.json()["error"]["message"]) < 500


def test_a_message_may_quote_what_was_sent_up_to_400_characters() -> None:
    def refuses(_: Any) -> Future[dict[str, Any]]:
        result: Future[dict[str, Any]] = Future()
        result.set_exception(ValueError("what was\nsent: " + "x" * 500))
        return result

    engine: Any = SimpleNamespace(call=refuses)
    with pytest.raises(Refusal) as refusal:
        asyncio.run(routes._awaited(engine, dict))
    assert (refusal.value.status_code, refusal.value.detail) == (400, "what was sent: " + "x" * 385)


def test_a_client_that_leaves_within_its_body_has_the_status_of_those_who_left(words: Explorer) -> None:
    class Left:
        @contextlib.asynccontextmanager
        async def body(self, _: Any) -> AsyncIterator[bytes]:
            raise ClientDisconnect
            yield b""

    made: Any = pages(words)(None, Left(), lambda: None)  # type: ignore[arg-type]
    for route in made.routes[1:]:
        assert asyncio.run(route.endpoint(None)).status_code == 499


def test_the_explorer_is_served_at_home_and_its_address_printed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    served, written = Served(system=tiny_word_system()), io.BytesIO()
    monkeypatch.setattr(routes, "compression_rate", lambda *where: asked.append(where))
    monkeypatch.setattr(routes, "task_of", lambda *where: asked.append(where))
    monkeypatch.setattr(routes, "serve", lambda source, **how: asked.append((source, how)))
    routes.explore("model")
    how = asked[2][1]
    pages_of = how.pop("pages_of")
    assert asked[:2] == [("model", 0, None)] * 2
    assert (how.pop("host"), how.pop("port"), how.pop("device")) == ("127.0.0.1", 8000, "auto")
    assert how == {"seed": 0, "stage": None, "reasoning": None, "api_key_file": None}
    # Whoever reads the output of the process waits for the address.
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written))
    assert callable(pages_of(served, Limits()))
    assert written.getvalue() == b"explorer of unspoken: http://127.0.0.1:8000/explore\n"


def test_nothing_of_another_origin_is_taken(client: TestClient) -> None:
    """A page of another site can send forms and texts without asking, and JSON only with leave."""
    known = {"Authorization": "Bearer secret", "Content-Type": "text/plain"}
    assert client.post("/explore/chain", content=b'{"problem": 0}', headers=known).status_code == 415


# --- the page --------------------------------------------------------------------------------------------------------


def test_a_page_without_a_server_has_every_answer_that_it_offers(
    trees: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_WEIGHTS", (0.5,))
    monkeypatch.setattr(record, "_AMOUNTS", (1,))
    monkeypatch.setattr(record, "_POINTS", 3)
    frozen = record.recorded(trees, 2)
    state = frozen["chain"]['[0,[{"kind":"zero","step":1,"rest":"keep"}]]']
    live = edited(trees, {"kind": "zero", "step": 1, "rest": "keep"})
    assert state["text"] == live["text"]
    assert [frozen["steps"][index] for index in state["steps"]] == json.loads(json.dumps(live["steps"]))
    assert '[0,[{"kind":"mix","problem":1,"fraction":0.5}]]' in frozen["chain"]
    assert '[1,[{"kind":"mix","problem":0,"fraction":1}]]' in frozen["chain"]
    assert frozen["between"]["[0,1]"]["flips"]
    page = unescape(render({**first_contents(trees), "frozen": frozen}))
    assert "connect-src 'none'" in page and "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_texts_of_a_model_cannot_end_the_data_of_a_page(words: Explorer) -> None:
    contents = {**first_contents(words), "model": "</script><script>alert(1)</script>", "frozen": None}
    page = render(contents)
    assert page.count("<script") == 2 and "alert(1)</script>" not in page
    data = re.search(r'<script type="application/json" id="start">(.*?)</script>', page)
    assert data is not None and json.loads(data[1])["model"] == contents["model"]
