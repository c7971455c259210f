"""A conversation in the format of a chat template, whose history every answer follows from."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tiny_hub import save_hub_folder
from typer.testing import CliRunner

import unspoken
from unspoken.cli import _messages, app
from unspoken.report.conversation import converse

TEMPLATE = (
    "{% for turn in messages %}{{ turn.role[0] }}:{{ turn.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hub = save_hub_folder(tmp_path_factory.mktemp("chat") / "hub")
    file = hub / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    return hub


def test_every_answer_follows_from_all_turns_before_it(folder: Path) -> None:
    system = unspoken.load(folder, device="cpu")
    first, second = converse(system, ["Hello", "Why?"], instruction="Be brief.", max_tokens=4)
    prompt = f"s:Be brief.;u:Hello;a:{first.text};u:Why?;a:"
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Why?"},
    ]
    assert system.texts.chat(turns, instructed=False) == system.texts.prompt_format.encode(prompt)
    assert system.chat(turns, max_tokens=4).tokens == second.tokens
    assert system.texts.chat(turns[-1:], instructed=False) == system.texts.prompt_format.encode("u:Why?;a:")
    (alone,) = converse(system, ["Why?"], max_tokens=4)
    assert alone.tokens == system.chat(turns[-1:], max_tokens=4).tokens


def test_lines_are_messages_and_once_is_one_message(folder: Path) -> None:
    system = unspoken.load(folder, device="cpu")
    asked = ["chat", str(folder), "--device", "cpu", "--max-tokens", "4"]
    answers = [answer.text for answer in converse(system, ["Hello", "Why?"], max_tokens=4)]
    printed = CliRunner().invoke(app, asked, input="Hello\n\nWhy?\n")
    assert (printed.exit_code, printed.stdout) == (0, "".join(f"{text}\n" for text in answers))
    (both,) = converse(system, ["Hello\nWhy?\n"], max_tokens=4)
    assert CliRunner().invoke(app, [*asked, "--once"], input="Hello\nWhy?\n").stdout == f"{both.text}\n"


def test_a_terminal_asks_until_the_end_of_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = io.StringIO("Hello\n")
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", typed)
    assert list(_messages(once=False)) == ["Hello"]


def test_a_model_without_a_chat_template_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    hub = save_hub_folder(tmp_path)
    for source, message in (
        (str(hub), "this model has no chat template: it answers one question"),
        ("tree-search", "this model answers one problem of the task 'tree_search'"),
    ):
        refused = CliRunner().invoke(app, ["chat", source, "--device", "cpu"], input="Hello\n")
        assert isinstance(refused.exception, ValueError)
        assert message in str(refused.exception) and str(refused.exception).endswith("by 'unspoken generate'")
