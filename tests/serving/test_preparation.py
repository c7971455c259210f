"""From a body to jobs: how many, with which seeds and caps, and what is too long."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_words import PROMPT_FORMAT, TASK

from unspoken.reasoning.picking import Sampler
from unspoken.reasoning.row import AnswerDecoding
from unspoken.serving import Limits, Served
from unspoken.serving.fields import Endpoint
from unspoken.serving.preparation import PreparedRequest, check_length, longest_answer, prepare_request
from unspoken.serving.refusal import Refusal
from unspoken.serving.sampling import ScoringSampler

QUESTION = min((problem.question for problem in TASK.sample("test", range(20))), key=lambda text: len(text.split()))
# Of 160 positions, a chain takes at most six after its opening, and the marker at its end one.
AFTER_PROMPT = 1 + 6 + 1


def asked(
    served: Served, endpoint: Endpoint = "completions", *, limits: Limits | None = None, **fields: Any
) -> PreparedRequest:
    body = {"model": served.system.name, "prompt": QUESTION, **fields}
    if endpoint == "chat":
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    return prepare_request(served, limits or Limits(), endpoint, json.dumps(body).encode())


def sample_of(prepared: PreparedRequest, index: int = 0) -> Sampler:
    speaker = prepared.jobs[index].speaker
    assert isinstance(speaker, AnswerDecoding)
    assert isinstance(speaker.sample, Sampler)
    return speaker.sample


def refused(served: Served, *arguments: Any, **fields: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        asked(served, *arguments, **fields)
    assert refusal.value.status_code == 400
    return refusal.value.detail


# --- how many --------------------------------------------------------------------------------------------------------


def test_a_request_has_at_most_64_answers(served: Served) -> None:
    assert len(asked(served, prompt=[QUESTION] * 64).jobs) == 64
    assert len(asked(served, prompt=[QUESTION] * 4, n=16).jobs) == 64
    message = refused(served, prompt=[QUESTION] * 5, n=13)
    assert message == "n is 13 for 5 prompts; a request has at most 64 answers"
    assert len(asked(served).jobs) == len(asked(served, n=1).jobs) == 1


def test_answers_to_one_prompt_stand_next_to_each_other(served: Served) -> None:
    questions = [problem.question for problem in TASK.sample("test", range(2))]
    prompts = [[*PROMPT_FORMAT.prompt(question), *PROMPT_FORMAT.markers.open] for question in questions]
    prepared = asked(served, prompt=questions, n=2)
    assert [job.prompt for job in prepared.jobs] == [prompts[0], prompts[0], prompts[1], prompts[1]]
    assert prepared.samplers == prepared.cuts == [None] * 4


def test_a_chain_is_kept_of_a_single_answer_alone(served: Served) -> None:
    assert asked(served, unspoken={"chain": True}).jobs[0]._keep_chain
    assert not asked(served, unspoken={}).jobs[0]._keep_chain
    assert not asked(served).jobs[0]._keep_chain
    assert not served.job([5], 1)._keep_chain
    assert len(asked(served, unspoken={}, n=2).jobs) == 2
    for fields in ({"n": 2}, {"prompt": [QUESTION] * 2}):
        message = refused(served, unspoken={"chain": True}, **fields)
        assert message == "unspoken.chain is for requests of one answer; send one prompt, and leave n out"


def test_a_response_has_at_most_16384_log_probabilities(served: Served) -> None:
    # 16 answers of 64 tokens, each with itself and 15 others.
    prepared = asked(served, "chat", n=16, max_tokens=64, logprobs=True, top_logprobs=15)
    assert len(prepared.samplers) == 16
    for more in ({"max_tokens": 65}, {"top_logprobs": 16}):
        fields = {"n": 16, "max_tokens": 64, "logprobs": True, "top_logprobs": 15, **more}
        message = refused(served, "chat", **fields)
        assert message.startswith(
            f"logprobs of 16 answers of {fields['max_tokens']} tokens are more than 16384 numbers"
        )
    assert "logprobs of 64 answers" in refused(served, prompt=[QUESTION] * 4, n=16, max_tokens=64, logprobs=4)
    assert len(asked(served, prompt=[QUESTION] * 4, n=16, max_tokens=64, logprobs=3).jobs) == 64
    # Without others each token has its own: 16 answers would be few enough at any length.
    assert len(asked(served, "chat", n=16, max_tokens=100, logprobs=True).samplers) == 16


# --- how they are chosen ---------------------------------------------------------------------------------------------


def test_every_answer_has_the_next_seed(served: Served) -> None:
    def seeds(seed: int) -> list[int]:
        prepared = asked(served, prompt=[QUESTION] * 2, n=2, temperature=1, seed=seed)
        samples = [sample_of(prepared, index) for index in range(4)]
        assert all(sample.generator is not None for sample in samples)
        return [sample.generator.initial_seed() for sample in samples if sample.generator is not None]

    assert seeds(5) == [5, 6, 7, 8]
    assert seeds(-1) == [2**63 - 1, 0, 1, 2]
    assert seeds(2**63 - 2) == [2**63 - 2, 2**63 - 1, 0, 1]


def test_answers_without_a_seed_are_drawn_apart(served: Served) -> None:
    prepared = asked(served, n=2, temperature=1)
    first, second = (sample_of(prepared, index).generator for index in range(2))
    assert first is not None
    assert second is not None
    assert first.initial_seed() != second.initial_seed()


def test_the_most_likely_tokens_are_taken_unless_a_temperature_asks_for_others(served: Served) -> None:
    def sample(**fields: Any) -> Any:
        speaker = asked(served, **fields).jobs[0].speaker
        assert isinstance(speaker, AnswerDecoding)
        return speaker.sample

    assert sample() is sample(temperature=0) is sample(top_p=0.5) is None
    drawn = sample(temperature=0.5)
    assert (drawn.temperature, drawn.top_p) == (0.5, 1)
    assert sample(temperature=0.5, top_p=0.25).top_p == 0.25
    scored = sample(logprobs=0)
    assert isinstance(scored, ScoringSampler)
    assert (scored._top, scored._sampler.temperature) == (0, 0)


# --- caps ------------------------------------------------------------------------------------------------------------


def cap_of(prepared: PreparedRequest) -> tuple[int, int | None]:
    speaker = prepared.jobs[0].speaker
    assert isinstance(speaker, AnswerDecoding)
    return speaker.max_tokens, prepared.cuts[0]


def test_an_answer_is_as_long_as_asked_and_cut_to_what_fits(served: Served) -> None:
    fitting = 160 - len(PROMPT_FORMAT.prompt(QUESTION)) - AFTER_PROMPT
    assert cap_of(asked(served)) == (served.answer_tokens, None)
    assert cap_of(asked(served, max_tokens=1)) == (1, None)
    assert cap_of(asked(served, max_tokens=fitting)) == (fitting, None)
    assert cap_of(asked(served, max_tokens=fitting + 1)) == (fitting, fitting)
    few = Limits(answer_tokens=5)
    assert cap_of(asked(served, limits=few)) == cap_of(asked(served, limits=few, max_tokens=5)) == (5, None)
    assert cap_of(asked(served, limits=few, max_tokens=6)) == (5, 5)
    assert cap_of(asked(served, "chat", max_tokens=9, max_completion_tokens=2)) == (2, None)


@pytest.mark.parametrize(
    ("limits", "longest"),
    [
        (Limits(), 160 - AFTER_PROMPT - 1),
        (Limits(prompt_tokens=60), 59),  # the opening of the chain is a token of the prompt
        (Limits(prompt_tokens=155), 160 - AFTER_PROMPT - 1),
        (Limits(prompt_tokens=1), 0),
    ],
)
def test_the_longest_prompt_is_the_one_that_a_refusal_names(served: Served, limits: Limits, longest: int) -> None:
    if longest:
        assert longest_answer(served, limits, [5] * longest) == max(1, 160 - AFTER_PROMPT - longest)
    for length in (longest + 1, longest + 5, 500):
        with pytest.raises(Refusal, match=f"the prompt has {length} tokens; .*, at most {longest} fit") as refusal:
            longest_answer(served, limits, [5] * length)
        assert (refusal.value.status_code, refusal.value.code) == (400, "context_length_exceeded")


def test_an_answer_to_a_model_without_positions_is_limited_by_the_server_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(served), "tokens_that_fit", lambda *_: None)
    limits = Limits(prompt_tokens=300, answer_tokens=200)
    assert longest_answer(served, limits, [5] * 299) == 200
    with pytest.raises(Refusal, match="at most 299 fit"):
        longest_answer(served, limits, [5] * 300)


# --- what is too long before it is read ------------------------------------------------------------------------------


def test_a_text_is_too_long_by_its_characters(served: Served) -> None:
    longest = served.longest_token
    assert longest == 1 + max(len(word) for word in TASK.tokenizer.get_vocab())
    assert longest == 1 + len("difference")
    limits = Limits(prompt_tokens=10)
    check_length(served, limits, ["x" * 60, "x" * (10 * longest - 60)])
    with pytest.raises(Refusal, match=f"the prompt has {10 * longest + 1} characters; .* at most 10 tokens") as refusal:
        check_length(served, limits, ["x" * 61, "x" * (10 * longest - 60)])
    assert (refusal.value.status_code, refusal.value.code) == (400, "context_length_exceeded")


def test_a_long_text_is_counted_in_pieces(chatting: Served) -> None:
    # One token a letter. Each of two pieces may have 16 tokens more than the text has there.
    text = "a" * 5000
    assert len(chatting.system.texts.prompt_format.encode(text)) == 5000
    check_length(chatting, Limits(prompt_tokens=4968), [text])
    check_length(chatting, Limits(prompt_tokens=4968), ["a" * 2500, "", "a" * 2500])
    with pytest.raises(
        Refusal, match="the prompt has more than 4968 tokens; this server reads prompts of at most 4967"
    ):
        check_length(chatting, Limits(prompt_tokens=4967), [text])
    # Up to 4096 characters nothing is counted.
    check_length(chatting, Limits(prompt_tokens=1000), ["a" * 4096])
    with pytest.raises(Refusal, match="more than 4080 tokens"):
        check_length(chatting, Limits(prompt_tokens=1000), ["a" * 4097])


def test_token_ids_are_those_of_the_vocabulary(chatting: Served) -> None:
    size = len(chatting.system.texts.tokenizer)
    assert chatting.of_ids([0, size - 1]) == [0, size - 1]
    with pytest.raises(ValueError, match=f"there is no token {size}; the vocabulary has {size}"):
        chatting.of_ids([size, 0])
    limits = Limits(prompt_tokens=20)
    assert len(asked(chatting, limits=limits, prompt=[5] * 19).jobs) == 1
    with pytest.raises(Refusal, match="the prompt has 21 tokens; this server reads prompts of at most 20 tokens"):
        asked(chatting, limits=limits, prompt=[5] * 21)
    with pytest.raises(Refusal, match="with the chain and one token of an answer, at most 19 fit"):
        asked(chatting, limits=limits, prompt=[5] * 20)


def test_token_ids_of_a_problem_stand_for_its_text() -> None:
    texts = SimpleNamespace(
        task="a task",
        tokenizer=range(9),
        decode=lambda ids: f"text of {ids}",
        continued=lambda text: [text],
        prompt=lambda text: [text, "for a chat"],
    )
    system: Any = SimpleNamespace(texts=texts)
    assert Served(system=system).of_ids([5, 8]) == ["text of [5, 8]"]


def test_a_text_of_a_completion_stands_for_itself(chatting: Served) -> None:
    (job,) = asked(chatting, prompt="Ann has 3.").jobs
    prompt = chatting.prompt("Ann has 3.", chat=False)
    assert chatting.text(prompt) == "Ann has 3."
    assert job.prompt == [*prompt, *chatting.system.opening]


def test_another_model_is_not_found(served: Served) -> None:
    other = replace(served, system=replace(served.system, name="other"))
    with pytest.raises(Refusal, match="there is no model 'tiny' here; the one that is served is 'other'") as refusal:
        prepare_request(other, Limits(), "completions", json.dumps({"model": "tiny", "prompt": QUESTION}).encode())
    assert (refusal.value.status_code, refusal.value.code, refusal.value.field) == (404, "model_not_found", "model")
