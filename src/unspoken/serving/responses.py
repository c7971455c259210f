"""How answers and errors are written down.

``usage`` counts the prompt (with the tokens that open the chain), the tokens of the answer with their end, and apart
from both, in ``completion_tokens_details.reasoning_tokens``, the latent steps: they are no part of
``completion_tokens``, since they are no tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unspoken.serving.sampling import ScoredToken


@dataclass(kw_only=True)
class Choice:
    """One answer of a request.

    Attributes:
        tokens: so far.
        text: of these tokens, up to a text that ends the answer.
        reason: why it is over; None before that.
        scores: log-probabilities of its tokens; None where none are wanted.
        extension: what the extension adds to it.
    """

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reason: str | None = None
    scores: list[ScoredToken] | None = None
    extension: dict[str, Any] | None = None


class ResponseFormat:
    """How answers are written down for one of the two endpoints.

    Args:
        chat: the chat endpoint's way.
        name: what the model is called.
        number: the request's own.
        created: Unix time in seconds.
        token_text: the text of one token, for log-probabilities.
    """

    def __init__(
        self,
        *,
        chat: bool,
        name: str,
        number: str,
        created: int,
        token_text: Callable[[int], str],
    ) -> None:
        self.chat = chat
        self._token_text = token_text
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{number}",
            "object": "chat.completion" if chat else "text_completion",
            "created": created,
            "model": name,
        }

    def answer(self, choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        """All answers of a request."""
        written = []
        for index, choice in enumerate(choices):
            message = {"role": "assistant", "content": choice.text, "refusal": None}
            content: dict[str, Any] = {"message": message} if self.chat else {"text": choice.text}
            written.append(self._choice(index, content, choice, slice(len(choice.tokens)), over=True))
        return self._head | {"choices": written, "usage": usage}

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice of a chat."""
        return self._chunk([self._choice(index, {"delta": {"role": "assistant", "content": ""}}, Choice(), slice(0))])

    def piece(self, index: int, text: str, choice: Choice, tokens: slice) -> dict[str, Any]:
        """A few tokens of a choice.

        Args:
            tokens: which of the choice's these are.
        """
        content: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._chunk([self._choice(index, content, choice, tokens)])

    def closing(self, index: int, choice: Choice) -> dict[str, Any]:
        """The last chunk of a choice."""
        content: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return self._chunk([self._choice(index, content, choice, slice(0), over=True)])

    def counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last chunk of a stream that was asked for its usage."""
        return self._chunk([]) | {"usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._head | {"object": kind, "choices": choices}

    def _choice(
        self, index: int, content: dict[str, Any], choice: Choice, tokens: slice, *, over: bool = False
    ) -> dict[str, Any]:
        logprobs = None if not choice.scores else self._logprobs(choice.scores[tokens])
        written = {"index": index, **content, "logprobs": logprobs, "finish_reason": choice.reason if over else None}
        if over and choice.extension is not None:
            written["unspoken"] = choice.extension
        return written

    def _logprobs(self, scores: list[ScoredToken]) -> dict[str, Any] | None:
        """Log-probabilities as each endpoint writes them."""
        if not scores:
            return None
        if self.chat:
            content = [
                self._entry(score.token, score.logprob) | {"top_logprobs": [self._entry(*pair) for pair in score.top]}
                for score in scores
            ]
            return {"content": content, "refusal": None}
        texts = [self._token_text(score.token) for score in scores]
        return {
            "tokens": texts,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [{self._token_text(token): logprob for token, logprob in score.top} for score in scores],
            "text_offset": list(itertools.accumulate(map(len, texts[:-1]), initial=0)),
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage_of(prompt_tokens: int, answer_tokens: int, latent_steps: int) -> dict[str, Any]:
    """What a request cost."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
        "completion_tokens_details": {"reasoning_tokens": latent_steps},
    }


def error_of(status: int, message: str, code: str | None = None, field: str | None = None) -> dict[str, Any]:
    """An error as clients expect it: one line of at most 500 characters."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    line = " ".join(message[:2000].split())
    shown = line if len(line) <= 500 else line[:499] + "…"
    return {"error": {"message": shown, "type": kind, "param": field, "code": code}}
