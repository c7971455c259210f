"""From the body of a request to what the engine is to do.

Everything here runs in threads beside the event loop, a bounded number at once. Lengths are checked from the cheapest
to the dearest: characters, then tokens of pieces until there are too many, then tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from unspoken.reasoning.picking import Sampler
from unspoken.serving.batch import Job
from unspoken.serving.bodies import decoded
from unspoken.serving.engine import Limits
from unspoken.serving.fields import Endpoint
from unspoken.serving.refusal import Refusal
from unspoken.serving.sampling import ScoringSampler
from unspoken.serving.schema import ChatRequest, CompletionRequest, request_of
from unspoken.serving.systems import Served

_ANSWERS = 64  # of a request
_SCORES = 2**14  # log-probabilities in a response
_PIECE = 4096  # characters that are tokenised on their own to see whether there are too many tokens
_CUT = 16  # the most tokens that a cut between two pieces is taken to add


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """A request that can be answered.

    Attributes:
        request: as it came.
        jobs: its answers, those to one prompt next to each other.
        samplers: of each job, what keeps its log-probabilities, if they are wanted.
        cuts: of each job, the cap of its answer where it is lower than what was asked for.
    """

    request: ChatRequest | CompletionRequest
    jobs: list[Job]
    samplers: list[ScoringSampler | None]
    cuts: list[int | None]


def prepare_request(served: Served, limits: Limits, endpoint: Endpoint, body: bytes) -> PreparedRequest:
    """Read the body of a request.

    Raises:
        Refusal: it makes no sense, or is about another model.
    """
    request = request_of(decoded(body), endpoint)
    if request.model != served.system.name:
        raise unknown_model(request.model, served)
    try:
        return _prepare(served, limits, request)
    except ValueError as error:
        raise Refusal(400, str(error)) from None


def unknown_model(name: str, served: Served) -> Refusal:
    """The answer to a request for another model."""
    message = f"there is no model {name[:200]!r} here; the one that is served is {served.system.name!r}"
    return Refusal(404, message, code="model_not_found", field="model")


def _prepare(served: Served, limits: Limits, request: ChatRequest | CompletionRequest) -> PreparedRequest:
    """The jobs of a request.

    Raises:
        ValueError: the system cannot read a prompt, or cannot answer as is asked.
    """
    temperature, device = request.checked_temperature(), served.system.reasoner.stack.device
    copies, extension = request.n or 1, request.unspoken
    prompts = list(_prompts(served, limits, request))
    prepared = PreparedRequest(request=request, jobs=[], samplers=[], cuts=[])
    if len(prompts) * copies > _ANSWERS:
        raise ValueError(f"n is {copies} for {len(prompts)} prompts; a request has at most {_ANSWERS} answers")
    if extension is not None and extension.chain and len(prompts) * copies > 1:
        raise ValueError("unspoken.chain is for requests of one answer; send one prompt, and leave n out")
    for prompt in prompts:
        max_tokens, cut = _cap(served, limits, request, prompt)
        if request.top is not None and len(prompts) * copies * max_tokens * (1 + request.top) > _SCORES:
            raise ValueError(
                f"logprobs of {len(prompts) * copies} answers of {max_tokens} tokens are more than {_SCORES} numbers; "
                "lower max_tokens, top_logprobs or n"
            )
        for _ in range(copies):
            generator = torch.Generator(device)
            if request.seed is None:
                generator.seed()
            else:
                generator.manual_seed((request.seed + len(prepared.jobs)) % 2**63)
            sampler = Sampler(temperature, generator, 1.0 if request.top_p is None else request.top_p)
            scoring = None if request.top is None else ScoringSampler(sampler, request.top)
            sample = scoring or (sampler if temperature else None)
            keep_chain = extension is not None and extension.chain
            prepared.jobs.append(served.job(prompt, max_tokens, sample, keep_chain=keep_chain))
            prepared.samplers.append(scoring)
            prepared.cuts.append(cut)
    return prepared


def _cap(
    served: Served, limits: Limits, request: ChatRequest | CompletionRequest, prompt: Sequence[int]
) -> tuple[int, int | None]:
    """The cap of an answer, twice where it is lower than what was asked for.

    Raises:
        Refusal: the prompt leaves no space for an answer.
    """
    most = longest_answer(served, limits, prompt)
    requested = request.requested_tokens()
    if requested is not None and requested > most:
        return most, most
    return min(most, served.answer_tokens if requested is None else requested), None


def longest_answer(served: Served, limits: Limits, prompt: Sequence[int]) -> int:
    """The most tokens of an answer to a prompt.

    Raises:
        Refusal: the prompt leaves no space for an answer.
    """
    fitting, opening = served.tokens_that_fit(prompt), len(served.system.opening)
    most = limits.answer_tokens if fitting is None else min(limits.answer_tokens, fitting)
    if most < 1 or len(prompt) + opening > limits.prompt_tokens:
        longest = limits.prompt_tokens - opening
        if fitting is not None:
            longest = min(longest, len(prompt) + fitting - 1)
        raise Refusal(
            400,
            f"the prompt has {len(prompt)} tokens; with the chain and one token of an answer, at most "
            f"{max(0, longest)} fit",
            code="context_length_exceeded",
        )
    return most


def _prompts(served: Served, limits: Limits, request: ChatRequest | CompletionRequest) -> Iterator[Sequence[int]]:
    """Every prompt as tokens.

    Raises:
        ValueError: the system cannot read one, or it is too long.
    """
    if isinstance(request, ChatRequest):
        turns = [message.turn() for message in request.messages]
        check_length(served, limits, [turn["content"] for turn in turns])
        yield served.chat(turns)
        return
    for prompt in request.prompt:
        if isinstance(prompt, str):
            check_length(served, limits, [prompt])
            yield served.prompt(prompt, chat=False)
        elif len(prompt) > limits.prompt_tokens:
            raise _too_long(f"{len(prompt)} tokens", limits)
        else:
            yield served.of_ids(prompt)


def check_length(served: Served, limits: Limits, texts: Sequence[str]) -> None:
    """Refuse texts that are certainly too long, before any of them is tokenised as a whole.

    The time and memory of a tokenizer grow faster than the length of a text without spaces.

    Raises:
        Refusal: there are more characters, or more tokens, than a prompt may have.
    """
    length = sum(map(len, texts))
    if length > limits.prompt_tokens * served.longest_token:
        raise _too_long(f"{length} characters", limits)
    if length <= _PIECE or served.system.texts.task is not None:  # a task's own words are found in one pass
        return
    tokens = 0
    for text in texts:
        for start in range(0, len(text), _PIECE):
            tokens += len(served.system.texts.prompt_format.encode(text[start : start + _PIECE])) - _CUT
            if tokens > limits.prompt_tokens:
                raise _too_long(f"more than {tokens} tokens", limits)


def _too_long(size: str, limits: Limits) -> Refusal:
    message = f"the prompt has {size}; this server reads prompts of at most {limits.prompt_tokens} tokens"
    return Refusal(400, message, code="context_length_exceeded")
