"""What clients send and get: the part of the OpenAI API that makes sense for a model that answers one problem.

A field that would change the answer and is not listed here is refused, never ignored. ``usage`` counts the prompt (with
the tokens that open the chain), the spoken tokens with their end, and apart from both, in
``completion_tokens_details.reasoning_tokens``, the latent steps: they are no part of ``completion_tokens``, since they
are no tokens.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_LOWEST_TEMPERATURE = 0.01  # below it scores are divided by next to nothing


Tokens = Annotated[int, Field(ge=1, description="The most words to say; the latent part has its own cap.")]
Temperature = Annotated[float, Field(ge=0, le=2, description="Of the words, 0 by default; the chain is never drawn.")]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63, description="Of the words, where they are drawn.")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(_Strict):
    """What a stream tells beside its words."""

    include_usage: bool = False


class TextPart(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]


class _Request(_Strict):
    model: str
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    seed: Seed | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    def checked_temperature(self) -> float:
        """The temperature; without one the most likely tokens are chosen.

        Raises:
            ValueError: it is too close to 0.
        """
        temperature = self.temperature or 0.0
        if 0 < temperature < _LOWEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {temperature}; it is 0, for the most likely words, or at least {_LOWEST_TEMPERATURE}"
            )
        return temperature


class CompletionRequest(_Request):
    """Body of ``/v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]

    def texts(self) -> list[str]:
        """The problems, one an answer."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ChatRequest(_Request):
    """Body of ``/v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: Tokens | None = None  # the newer name of max_tokens

    def texts(self) -> list[str]:
        """The problem.

        Raises:
            ValueError: there is more to the chat than a problem.
        """
        if len(self.messages) != 1 or self.messages[0].role != "user":
            raise ValueError(
                "messages must be one message of the role 'user': this model answers one problem and reads no other "
                "turns"
            )
        content = self.messages[0].content
        return [content if isinstance(content, str) else "".join(part.text for part in content)]


class Form:
    """How answers are written down for one of the two endpoints.

    Args:
        chat: the chat endpoint's way.
        name: what the model is called.
        number: the request's own.
        created: Unix time in seconds.
    """

    def __init__(self, *, chat: bool, name: str, number: str, created: int) -> None:
        self.chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{number}",
            "object": "chat.completion" if chat else "text_completion",
            "created": created,
            "model": name,
        }

    def answer(self, texts: list[str], capped: list[bool], usage: dict[str, Any]) -> dict[str, Any]:
        """All answers of a request."""
        choices = []
        for index, (text, cut) in enumerate(zip(texts, capped, strict=True)):
            message = {"role": "assistant", "content": text, "refusal": None}
            choices.append(_choice(index, {"message": message} if self.chat else {"text": text}, _reason(cut)))
        return self._head | {"choices": choices, "usage": usage}

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice of a chat."""
        return self._chunk([_choice(index, {"delta": {"role": "assistant", "content": ""}}, None)])

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """A few words of a choice."""
        return self._chunk([_choice(index, {"delta": {"content": text}} if self.chat else {"text": text}, None)])

    def closing(self, index: int, capped: bool) -> dict[str, Any]:
        """The last chunk of a choice."""
        return self._chunk([_choice(index, {"delta": {}} if self.chat else {"text": ""}, _reason(capped))])

    def counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last chunk of a stream that was asked for its usage."""
        return self._chunk([]) | {"usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._head | {"object": kind, "choices": choices}


def _choice(index: int, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": reason}


def _reason(capped: bool) -> str:
    return "length" if capped else "stop"


def usage_of(prompt_tokens: int, spoken_tokens: int, latent_steps: int) -> dict[str, Any]:
    """What a request cost."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": spoken_tokens,
        "total_tokens": prompt_tokens + spoken_tokens,
        "completion_tokens_details": {"reasoning_tokens": latent_steps},
    }


def error_of(status: int, message: str, code: str | None = None, field: str | None = None) -> dict[str, Any]:
    """An error as clients expect it: one line of at most 500 characters."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    line = " ".join(message.split())
    shown = line if len(line) <= 500 else line[:499] + "…"
    return {"error": {"message": shown, "type": kind, "param": field, "code": code}}
