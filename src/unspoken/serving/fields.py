"""What is done with every field of a request: the table that `docs/serving.md` shows.

Fields of the OpenAI API, and those that other servers added to it, are applied, or ignored where they do not change an
answer, or refused unless their value asks for nothing. Other fields are ignored with a line in the log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unspoken.serving.refusal import Refusal

_log = logging.getLogger(__name__)
_LOGGED_NAMES = 100  # a client that makes up names cannot fill the log, or the memory

Endpoint = Literal["chat", "completions"]


@dataclass(frozen=True, kw_only=True)
class FieldRule:
    """What is done with one field.

    Attributes:
        name: key in the request.
        endpoints: those that have the field.
        treatment: see the module.
        note: what the field does, or why it is ignored or refused.
        neutral: values that a refused field may have, besides null.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    treatment: Literal["applied", "ignored", "refused"]
    note: str
    neutral: tuple[Any, ...] = ()

    @property
    def allowed(self) -> str:
        """Values that ask for nothing, as JSON."""
        return ", ".join(["null", *(json.dumps(value) for value in self.neutral)])

    @property
    def line(self) -> str:
        """The field's line in the table of the page on serving."""
        treatment = f"refused unless {self.allowed}" if self.treatment == "refused" else self.treatment
        where = "both" if len(self.endpoints) > 1 else self.endpoints[0]
        return f"| `{self.name}` | {where} | {treatment} | {self.note} |"


def _rule(
    treatment: Literal["applied", "ignored", "refused"], where: str, name: str, note: str, *neutral: Any
) -> FieldRule:
    endpoints: dict[str, tuple[Endpoint, ...]] = {
        "both": ("chat", "completions"),
        "chat": ("chat",),
        "completions": ("completions",),
    }
    return FieldRule(name=name, endpoints=endpoints[where], treatment=treatment, note=note, neutral=neutral)


RULES: tuple[FieldRule, ...] = (
    _rule("applied", "both", "model", "the name that `/v1/models` lists"),
    _rule("applied", "chat", "messages", "turns for models with a chat template, otherwise one user message"),
    _rule("applied", "completions", "prompt", "a text or its token ids, or a list of at most 64 of either"),
    _rule("applied", "both", "max_tokens", "what does not fit is cut to what fits, which the answer states"),
    _rule("applied", "chat", "max_completion_tokens", "the newer name of `max_tokens`, which it overrules"),
    _rule("applied", "both", "temperature", "of the answer's tokens, 0 by default; the chain is never drawn"),
    _rule("applied", "both", "top_p", "tokens are drawn from the most likely ones of this probability"),
    _rule("applied", "both", "seed", "of drawn tokens"),
    _rule("applied", "both", "n", "answers to each prompt, at most 16, and 64 in a request"),
    _rule("applied", "both", "stop", "at most 16 texts; the answer ends before the first of them"),
    _rule("applied", "both", "logprobs", "of the answer's tokens at temperature 1; not of systems that score none"),
    _rule("applied", "chat", "top_logprobs", "the most likely tokens at each place, at most 20"),
    _rule("applied", "both", "stream", "server-sent events; the chain is silent"),
    _rule("applied", "both", "stream_options", "`include_usage`; its other keys are ignored"),
    _rule("applied", "both", "unspoken", "the extension, see below"),
    *(
        _rule("ignored", "both", name, note)
        for name, note in (
            ("user", "users are not distinguished"),
            ("safety_identifier", "users are not distinguished"),
            ("metadata", "nothing is stored"),
            ("store", "nothing is stored"),
            ("service_tier", "there is only one tier"),
            ("prompt_cache_key", "every prompt is read anew"),
        )
    ),
    _rule("ignored", "chat", "parallel_tool_calls", "tool calls are not supported"),
    _rule("ignored", "chat", "reasoning_effort", "the length of a chain is the model's"),
    _rule("ignored", "chat", "verbosity", "the model was not trained for it"),
    _rule("refused", "both", "presence_penalty", "not implemented", 0),
    _rule("refused", "both", "frequency_penalty", "not implemented", 0),
    _rule("refused", "both", "repetition_penalty", "not implemented", 1),
    _rule("refused", "both", "logit_bias", "not implemented", {}),
    _rule("refused", "both", "top_k", "not implemented; use `top_p`", -1, 0),
    _rule("refused", "both", "min_p", "not implemented; use `top_p`", 0),
    _rule("refused", "both", "response_format", "answers are plain text", {"type": "text"}),
    _rule("refused", "completions", "echo", "likelihoods of prompts are measured by `unspoken-lm-eval`", False),
    _rule("refused", "completions", "best_of", "draw several with `n`", 1),
    _rule("refused", "completions", "suffix", "text cannot be inserted before a suffix", ""),
    _rule("refused", "chat", "tools", "tool calls are not supported", []),
    _rule("refused", "chat", "tool_choice", "tool calls are not supported", "none", "auto"),
    _rule("refused", "chat", "functions", "tool calls are not supported", []),
    _rule("refused", "chat", "function_call", "tool calls are not supported", "none", "auto"),
    _rule("refused", "chat", "modalities", "only text is supported", ["text"]),
    _rule("refused", "chat", "audio", "only text is supported"),
    _rule("refused", "chat", "prediction", "predicted output is not supported"),
    _rule("refused", "chat", "web_search_options", "web search is not supported", {}),
)

_BY_ENDPOINT: dict[Endpoint, dict[str, FieldRule]] = {
    "chat": {rule.name: rule for rule in RULES if "chat" in rule.endpoints},
    "completions": {rule.name: rule for rule in RULES if "completions" in rule.endpoints},
}
_logged: set[str] = set()


def applied_fields(body: Mapping[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """The fields of a body that are applied.

    Raises:
        Refusal: one asks for what this server does not do.
    """
    rules, applied = _BY_ENDPOINT[endpoint], {}
    for name, value in body.items():
        rule = rules.get(name)
        if rule is None:
            continue
        if rule.treatment == "applied":
            applied[name] = value
        elif rule.treatment == "refused" and value is not None and value not in rule.neutral:
            message = f"{name} is not supported ({rule.note}); leave it out, or send one of: {rule.allowed}"
            raise Refusal(400, message, field=name)
    log_ignored(name for name in body if name not in rules)
    return applied


def log_ignored(names: Iterable[str]) -> None:
    """One line in the log for field names that are ignored; a name is logged once."""
    new = []
    for name in names:
        if len(_logged) >= _LOGGED_NAMES:
            break
        if name[:60] not in _logged:
            _logged.add(name[:60])
            new.append(name[:60])
    if new:
        _log.warning("unknown fields of requests are ignored: %s", ", ".join(map(repr, new)))
