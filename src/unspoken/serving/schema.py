"""The fields of requests that are applied, see `unspoken.serving.fields`, and what they must be.

Lists have caps, and validation stops at the first bad entry, so that no body costs more than a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from unspoken.serving.fields import Endpoint, applied_fields, log_ignored
from unspoken.serving.refusal import Refusal

_LOWEST_TEMPERATURE = 0.01  # below it scores are divided by next to nothing
_PROMPTS = 64
_MESSAGES = 1024
_STOPS = 16

Strings = Annotated[list[str], Field(min_length=1, max_length=_PROMPTS, fail_fast=True)]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]
Temperature = Annotated[
    float, Field(ge=0, le=2, description="Of the answer's tokens; 0, the default, takes the most likely ones.")
]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63, description="Of drawn tokens.")]
Tokens = Annotated[
    int, Field(ge=1, description="The most tokens of the answer; the chain has its own cap. It is cut to what fits.")
]


def _prompts(value: Any) -> Any:
    """A single prompt as a list of one: the first entry decides between texts and token ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        return [value]
    return value


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    Field(max_length=_STOPS, fail_fast=True, description="Texts before which the answer ends."),
    BeforeValidator(_stops, json_schema_input_type=str | list[str]),
]


class _Fields(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class StreamOptions(_Fields):
    """What a stream has besides the answer."""

    include_usage: bool | None = Field(None, description="A last chunk with the usage of the request.")


class Extension(_Fields):
    """What this server adds to the API; answers have it under the same name."""

    model_config = ConfigDict(extra="forbid")

    chain: bool = Field(False, description="Add the latent steps of the answer; of one answer in a request.")
    coefficients: Annotated[int, Field(ge=0, le=20)] = Field(
        5, description="The most tokens of a step, with the weights that they have in it."
    )


class TextPart(_Fields):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(_Fields):
    """A turn of a chat; the ``name`` of who wrote it is ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=64, fail_fast=True)]

    def turn(self) -> dict[str, str]:
        """Role and text, with the older name of the developer's role."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class _Request(_Fields):
    model: str
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1, le=16, description="Answers to each prompt.")] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    unspoken: Extension | None = None

    @property
    def top(self) -> int | None:
        """How many of the most likely tokens are wanted at each place; None where no log-probabilities are."""
        raise NotImplementedError

    def requested_tokens(self) -> int | None:
        """The most tokens of the answer, where the request names a number."""
        return self.max_tokens

    def checked_temperature(self) -> float:
        """The temperature; without one the most likely tokens are chosen.

        Raises:
            ValueError: it is too close to 0.
        """
        temperature = self.temperature or 0.0
        if 0 < temperature < _LOWEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {temperature}; it is 0, for the most likely tokens, or at least {_LOWEST_TEMPERATURE}"
            )
        return temperature


class CompletionRequest(_Request):
    """Body of ``/v1/completions``."""

    prompt: Annotated[
        Strings | Annotated[list[Ids], Field(min_length=1, max_length=_PROMPTS, fail_fast=True)],
        BeforeValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    logprobs: Annotated[int, Field(ge=0, le=20, description="Of so many of the most likely tokens.")] | None = None

    @property
    def top(self) -> int | None:
        """See `ChatRequest.top`."""
        return self.logprobs


class ChatRequest(_Request):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MESSAGES, fail_fast=True)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def top(self) -> int | None:
        """How many of the most likely tokens are wanted at each place; None where no log-probabilities are."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def requested_tokens(self) -> int | None:
        """The most tokens of the answer, where the request names a number."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


REQUESTS: dict[Endpoint, type[ChatRequest | CompletionRequest]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
}


def request_of(body: Any, endpoint: Endpoint) -> ChatRequest | CompletionRequest:
    """A decoded body as a request.

    Raises:
        Refusal: a field is not what it must be, or asks for what this server does not do.
    """
    if not isinstance(body, Mapping):
        raise Refusal(400, "the body is not a JSON object")
    fields = applied_fields(body, endpoint)
    try:
        request = REQUESTS[endpoint].model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(key) for key in first["loc"]]
        field = ".".join([path[0], *(key for key in path[1:] if key.isdigit() or key.islower())])
        raise Refusal(400, f"{field}: {first['msg']}", field=field) from None
    for entry in [fields.get("stream_options"), *fields.get("messages", ())]:
        known = Message if entry is not fields.get("stream_options") else StreamOptions
        log_ignored(name for name in entry or () if name not in known.model_fields and name != "name")
    return request
