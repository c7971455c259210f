"""Programs that people already have, as they are, against a server: each finds the API that it expects."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system

from unspoken.serving import Limits, Served

QUESTIONS = [problem.question for problem in TASK.sample("test", range(5))]
TOKENS = 8


def expected(question: str, tokens: int = TOKENS) -> str:
    system = tiny_word_system()
    answer = system.respond(torch.tensor([PROMPT_FORMAT.prompt(question)]), max_tokens=TOKENS)
    return PROMPT_FORMAT.decode(answer.tokens[:, :tokens])[0]


def posted(server: Any, path: str = "/v1/chat/completions", **body: Any) -> Any:
    return httpx2.post(f"{server.url}{path}", json=body, timeout=20)


# --- the official client ---------------------------------------------------------------------------------------------


def test_fields_at_their_neutral_values_change_nothing(tiny: Any) -> None:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        neutral: dict[str, Any] = {
            "stop": [], "top_p": 1, "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {},
            "user": "somebody", "seed": None,
        }  # fmt: skip
        for_chats: dict[str, Any] = {
            "logprobs": False, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"},
            "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
        }  # fmt: skip
        message: Any = {"role": "user", "content": QUESTIONS[0], "name": "ann"}
        empty: Any = {"role": "system", "content": ""}
        chat = client.chat.completions.create(model="tiny", messages=[empty, message], **neutral, **for_chats)
        assert chat.choices[0].message.content == expected(QUESTIONS[0])
        completion = client.completions.create(
            model="tiny", prompt=QUESTIONS[0], echo=False, best_of=1, suffix=None, logprobs=None, **neutral
        )
        assert completion.choices[0].text == expected(QUESTIONS[0])
        options: Any = {"include_usage": True, "include_obfuscation": False}
        stream = client.chat.completions.create(model="tiny", messages=[message], stream=True, stream_options=options)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == expected(
            QUESTIONS[0]
        )


def test_an_answer_ends_before_the_first_stop_text(tiny: Any) -> None:
    text = expected(QUESTIONS[1])
    words = text.split()
    assert len(words) > 4
    stop = f"{words[2]} {words[3]}"
    before = text[: text.index(stop)]
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        passes = tiny.metric("answer_tokens_total")
        for given in (stop, ["never", stop, words[4]]):
            answer = client.completions.create(model="tiny", prompt=QUESTIONS[1], stop=given)
            assert (answer.choices[0].text, answer.choices[0].finish_reason) == (before, "stop")
        # What is after it is not computed, and the answer counts as one.
        assert tiny.metric("answer_tokens_total") - passes < 2 * TOKENS
        pieces = [
            chunk.choices[0]
            for chunk in client.completions.create(model="tiny", prompt=QUESTIONS[1], stop=stop, stream=True)
        ]
        assert "".join(piece.text for piece in pieces) == before
        assert pieces[-1].finish_reason == "stop"
        whole = client.completions.create(model="tiny", prompt=QUESTIONS[1], stop="no such text")
        assert whole.choices[0].text == text


def test_several_answers_to_a_prompt_are_drawn_apart(tiny: Any) -> None:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        how: dict[str, Any] = {"model": "tiny", "prompt": QUESTIONS[:2], "temperature": 1.5, "seed": 5}
        four = client.completions.create(**how, n=4)
        texts = [choice.text for choice in four.choices]
        assert [choice.index for choice in four.choices] == list(range(8))
        assert len(set(texts)) > 4
        assert texts == [choice.text for choice in client.completions.create(**how, n=4).choices]
        one = client.completions.create(model="tiny", prompt=QUESTIONS[0], temperature=1.5, seed=5)
        assert one.choices[0].text == texts[0]
        assert four.usage is not None
        assert one.usage is not None
        assert four.usage.prompt_tokens < 4 * one.usage.prompt_tokens  # each prompt counts once
        with pytest.raises(openai.BadRequestError, match="at most 64 answers"):
            client.completions.create(model="tiny", prompt=QUESTIONS, n=16)
        # Of the most likely token alone nothing is drawn.
        cold = client.completions.create(model="tiny", prompt=QUESTIONS[0], temperature=2, top_p=1e-6, n=3)
        assert {choice.text for choice in cold.choices} == {expected(QUESTIONS[0])}


def test_log_probabilities_are_those_of_the_answer(tiny: Any) -> None:
    system = tiny_word_system()
    prompt = torch.tensor([PROMPT_FORMAT.prompt(QUESTIONS[2])])
    kept: list[torch.Tensor] = []

    def keep(scores: torch.Tensor, rows: torch.Tensor, first: int) -> torch.Tensor:
        kept.append(scores[0].log_softmax(-1))
        return scores.argmax(-1)

    tokens = system.respond(prompt, max_tokens=TOKENS, sample=keep).tokens[0].tolist()
    logprobs = [float(scores[0, token]) for scores, token in zip(kept, tokens, strict=False)]
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        message: Any = [{"role": "user", "content": QUESTIONS[2]}]
        chat = client.chat.completions.create(model="tiny", messages=message, logprobs=True, top_logprobs=3)
        assert chat.choices[0].logprobs is not None
        content = chat.choices[0].logprobs.content or []
        assert [entry.logprob for entry in content] == pytest.approx(logprobs, abs=1e-4)
        assert [len(entry.top_logprobs) for entry in content] == [3] * len(logprobs)
        assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in content)
        old = client.completions.create(model="tiny", prompt=QUESTIONS[2], logprobs=2).choices[0].logprobs
        assert old is not None
        assert old.token_logprobs == pytest.approx(logprobs, abs=1e-4)
        stream = client.chat.completions.create(model="tiny", messages=message, logprobs=True, stream=True)
        streamed = [
            entry.logprob for chunk in stream for entry in getattr(chunk.choices[0].logprobs, "content", None) or []
        ]
        assert streamed == pytest.approx(logprobs[: len(streamed)], abs=1e-4)
        assert len(streamed) >= len(logprobs) - 1  # the end has no text


def test_what_does_not_fit_is_cut_and_the_answer_says_to_what(tiny: Any, start: Any, served: Served) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 100_000}
    choice = posted(tiny, **body).json()["choices"][0]
    # Of 160 positions the prompt with its opening takes some, the chain at most 6 and the marker 1.
    positions = 160 - len(PROMPT_FORMAT.prompt(QUESTIONS[0])) - 1 - 6 - 1
    assert choice["unspoken"] == {"max_tokens": positions}
    with start(served, limits=Limits(answer_tokens=3)) as server:
        choice = posted(server, **body).json()["choices"][0]
        assert (choice["unspoken"], choice["finish_reason"]) == ({"max_tokens": 3}, "length")
        assert choice["message"]["content"] == expected(QUESTIONS[0], 3)
        assert "unspoken" not in posted(server, **(body | {"max_tokens": 3})).json()["choices"][0]


def test_the_chain_of_an_answer_comes_by_the_extension(tiny: Any) -> None:
    system = tiny_word_system()
    steps = system.answer(QUESTIONS[0], max_tokens=TOKENS).chain.steps(2)
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        extra = {"unspoken": {"chain": True, "coefficients": 2}}
        answer = client.completions.create(model="tiny", prompt=QUESTIONS[0], extra_body=extra)
        chain = (answer.choices[0].model_extra or {})["unspoken"]["chain"]
        assert chain["stopped"] in ("end", "cap")
        assert [[entry["token"] for entry in step["coefficients"]] for step in chain["steps"]] == [
            [token for token, _ in step.tokens] for step in steps
        ]
        for written, step in zip(chain["steps"], steps, strict=True):
            weights = [entry["coefficient"] for entry in written["coefficients"]]
            assert weights == pytest.approx([weight for _, weight in step.tokens], abs=1e-4)
            assert (written["nearest"], written["entropy"]) == (step.nearest, pytest.approx(step.entropy, abs=1e-4))
        *_, last = client.completions.create(model="tiny", prompt=QUESTIONS[0], extra_body=extra, stream=True)
        assert (last.choices[0].model_extra or {})["unspoken"]["chain"]["steps"] == chain["steps"]
        with pytest.raises(openai.BadRequestError, match="requests of one answer"):
            client.completions.create(model="tiny", prompt=QUESTIONS[:2], extra_body=extra)
        with pytest.raises(openai.BadRequestError, match="unspoken"):
            client.completions.create(model="tiny", prompt=QUESTIONS[0], extra_body={"unspoken": {"chains": True}})


# --- turns -----------------------------------------------------------------------------------------------------------


def test_a_model_with_a_chat_template_reads_every_turn(chat_server: Any, chatting: Served) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Ann has 3."},
        {"role": "assistant", "content": "So what?"},
        {"role": "user", "content": "And Bob?"},
    ]
    prompt = chatting.chat(turns)
    written = chatting.system.texts.tokenizer.decode(prompt)
    assert written.index("Be brief.") < written.index("Ann has 3.") < written.index("So what?") < written.index("And")
    answer = chatting.system.respond(torch.tensor([prompt]), max_tokens=12)
    text = chatting.text(answer.tokens[0].tolist())
    reply = posted(chat_server, model="chatting", messages=turns)
    assert reply.json()["choices"][0]["message"]["content"] == text
    parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    parts[0]["role"] = "developer"
    assert posted(chat_server, model="chatting", messages=parts).json()["choices"][0]["message"]["content"] == text
    # One turn is asked as it always was.
    assert chatting.chat([{"role": "system", "content": " "}, turns[1]]) == chatting.prompt("Ann has 3.", chat=True)
    for wrong, message in (([turns[2]], "not a user's"), ([turns[1], turns[2]], "not a user's")):
        refused = posted(chat_server, model="chatting", messages=wrong)
        assert refused.status_code == 400
        assert message in refused.json()["error"]["message"]


def test_token_ids_are_a_prompt(chat_server: Any, chatting: Served, tiny: Any) -> None:
    text = "Ann has 3."
    by_text = posted(chat_server, "/v1/completions", model="chatting", prompt=text).json()["choices"][0]["text"]
    ids = list(chatting.prompt(text, chat=False))
    for prompt in (ids, [ids, ids]):
        choices = posted(chat_server, "/v1/completions", model="chatting", prompt=prompt).json()["choices"]
        assert {choice["text"] for choice in choices} == {by_text}
    words = list(PROMPT_FORMAT.prompt(QUESTIONS[0]))
    choice = posted(tiny, "/v1/completions", model="tiny", prompt=words).json()["choices"][0]
    assert choice["text"] == expected(QUESTIONS[0])
    assert (
        "there is no token" in posted(tiny, "/v1/completions", model="tiny", prompt=[10**6]).json()["error"]["message"]
    )


# --- Open WebUI ------------------------------------------------------------------------------------------------------


def test_the_requests_of_a_chat_page_are_answered(tiny: Any, chat_server: Any) -> None:
    """Bodies of the shape that Open WebUI sends: a page's own fields, and a question that follows an answer."""
    body: dict[str, Any] = {
        "model": "chatting",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Ann has 3."}],
        "session_id": "a", "chat_id": "b", "id": "c", "background_tasks": {"title_generation": True},
        "features": {"web_search": False}, "variables": {"{{USER_NAME}}": "Ann"}, "tool_ids": None, "files": [],
    }  # fmt: skip
    for url in (chat_server, tiny):
        models = httpx2.get(f"{url.url}/v1/models").json()["data"]
        assert [model["object"] for model in models] == ["model"]
    first = posted(chat_server, **body)
    assert first.status_code == 200
    assert first.text.endswith("data: [DONE]\n\n")
    body["messages"] += [{"role": "assistant", "content": "3"}, {"role": "user", "content": "And then?"}]
    assert posted(chat_server, **body).status_code == 200
    # A task that answers one problem says so, by its name.
    question = {"role": "user", "content": QUESTIONS[0]}
    assert posted(tiny, **(body | {"model": "tiny", "messages": [question]})).status_code == 200
    second = posted(tiny, model="tiny", messages=[question, {"role": "assistant", "content": "3"}, question])
    assert second.status_code == 400
    assert "answers one problem of the task 'arithmetic'" in second.json()["error"]["message"]


# --- LangChain -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_langchain_asks_streams_and_batches(tiny: Any, chat_server: Any) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI, OpenAI

    how: dict[str, Any] = {"base_url": f"{tiny.url}/v1", "api_key": "none", "model": "tiny", "max_retries": 0}
    chat = ChatOpenAI(**how)
    assert chat.invoke(QUESTIONS[0]).content == expected(QUESTIONS[0])
    assert "".join(str(chunk.content) for chunk in chat.stream(QUESTIONS[0])) == expected(QUESTIONS[0])
    assert [reply.content for reply in chat.batch(QUESTIONS[:3])] == [expected(question) for question in QUESTIONS[:3]]
    assert asyncio.run(chat.ainvoke(QUESTIONS[1])).content == expected(QUESTIONS[1])
    set_up = ChatOpenAI(**how, temperature=0, top_p=1, n=1, max_tokens=3, stop=["no such text"], seed=1, logprobs=True)
    reply = set_up.invoke(QUESTIONS[0])
    assert reply.content == expected(QUESTIONS[0], 3)
    assert len(reply.response_metadata["logprobs"]["content"]) == 3
    extended = ChatOpenAI(**how, extra_body={"unspoken": {"chain": True}})
    assert extended.invoke([SystemMessage(""), HumanMessage(QUESTIONS[0])]).content == expected(QUESTIONS[0])
    turns = [SystemMessage("Be brief."), HumanMessage("Ann has 3."), AIMessage("So?"), HumanMessage("And Bob?")]
    chatting = ChatOpenAI(base_url=f"{chat_server.url}/v1", api_key="none", model="chatting", max_retries=0)  # type: ignore[arg-type]
    assert isinstance(chatting.invoke(turns).content, str)
    completing = OpenAI(**how, temperature=0, max_tokens=TOKENS, frequency_penalty=0)
    assert completing.invoke(QUESTIONS[0]) == expected(QUESTIONS[0])


# --- lm-evaluation-harness -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_the_harness_generates_over_the_api(tiny: Any, tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    TASK.tokenizer.save_pretrained(tmp_path)
    how = {"max_gen_toks": TOKENS, "until": ["no such text"], "do_sample": False}

    def generated(model: Any, questions: list[Any]) -> list[str]:
        requests = [
            Instance(request_type="generate_until", doc={}, arguments=(question, dict(how)), idx=index)
            for index, question in enumerate(questions)
        ]
        return model.generate_until(requests, disable_tqdm=True)

    answers, url = [expected(question) for question in QUESTIONS[:3]], f"{tiny.url}/v1/completions"
    by_text = LocalCompletionsAPI(
        model="tiny", base_url=url, tokenizer_backend=None, tokenized_requests=False, max_retries=1
    )
    assert generated(by_text, QUESTIONS[:3]) == answers
    by_ids = LocalCompletionsAPI(
        model="tiny", base_url=url, tokenizer_backend="huggingface", tokenizer=str(tmp_path), max_retries=1
    )
    assert generated(by_ids, QUESTIONS[:3]) == answers
    chat = LocalChatCompletion(
        model="tiny", base_url=f"{tiny.url}/v1/chat/completions", tokenizer_backend=None, max_retries=1
    )
    messages = [[{"role": "user", "content": question, "type": "text"}] for question in QUESTIONS[:3]]
    as_text = [chat.apply_chat_template(message) for message in messages]
    assert generated(chat, as_text) == answers
    # Likelihoods of a given text are not defined for a chain that is drawn from nothing; the harness gets that message.
    refused = posted(tiny, "/v1/completions", model="tiny", prompt=QUESTIONS[0], echo=True, logprobs=1, max_tokens=1)
    assert refused.status_code == 400
    assert "unspoken-lm-eval" in refused.json()["error"]["message"]
    assert "OPENAI_API_KEY" not in os.environ
