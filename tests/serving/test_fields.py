"""The table of fields in the documentation is the one that the server goes by."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from unspoken.serving import fields
from unspoken.serving.fields import RULES, Endpoint, applied_fields
from unspoken.serving.refusal import Refusal
from unspoken.serving.schema import REQUESTS

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ENDPOINTS: tuple[Endpoint, ...] = ("chat", "completions")


def test_the_page_has_a_line_for_every_field_and_no_other() -> None:
    lines = PAGE.read_text().splitlines()
    start = lines.index("| field | endpoint | what is done | note |") + 2
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    assert lines[start:end] == [rule.line for rule in RULES]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_field_is_applied_where_the_schema_has_it(endpoint: Endpoint) -> None:
    rules = {rule.name: rule for rule in RULES if endpoint in rule.endpoints}
    assert {name for name, rule in rules.items() if rule.treatment == "applied"} == set(REQUESTS[endpoint].model_fields)
    for name, rule in rules.items():
        for neutral in (None, *rule.neutral):
            assert applied_fields({name: neutral}, endpoint) == ({name: neutral} if rule.treatment == "applied" else {})
        if rule.treatment == "refused":
            with pytest.raises(Refusal, match=f"{name} is not supported") as refused:
                applied_fields({name: "anything else"}, endpoint)
            assert (refused.value.status_code, refused.value.field) == (400, name)
        if rule.treatment == "ignored":
            assert applied_fields({name: "anything"}, endpoint) == {}


def test_unknown_fields_are_logged_once_and_not_without_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "_logged", set())
    body: dict[str, Any] = {"chat_id": 1, "session_id": 2, "user": "known"}
    with caplog.at_level(logging.WARNING):
        assert applied_fields(body, "chat") == applied_fields(body, "chat") == {}
        assert caplog.messages == ["unknown fields of requests are ignored: 'chat_id', 'session_id'"]
        for number in range(500):
            applied_fields({f"{'x' * 1000}{number}": 1, f"field{number}\n": 1}, "chat")
    assert len(caplog.messages) <= 101
    assert all(len(message) < 200 and "\n" not in message for message in caplog.messages)
