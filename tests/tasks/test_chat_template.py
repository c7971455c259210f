"""Chat templates are rendered within limits of time, memory and numbers, with one date for ever."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unspoken.tasks import chat_template
from unspoken.tasks.chat_template import prints_date, render

TURNS = [{"role": "user", "content": "Ann has 3."}]
PLAIN = "{% for turn in messages %}[{{ turn.role }}|{{ turn.content }}]{% endfor %}"


class Templated:
    """What a tokenizer does with a template: it is a text, and never tokens."""

    def __init__(self, template: str = PLAIN) -> None:
        self.template = template

    def get_chat_template(self) -> str:
        return self.template

    def apply_chat_template(
        self, turns: Any, *, chat_template: str, tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        assert tokenize is False
        texts, _ = render_jinja_template(
            [turns], chat_template=chat_template, add_generation_prompt=add_generation_prompt
        )
        return texts[0]


def refused(template: str, **settings: Any) -> str:
    with pytest.raises(ValueError, match=r"^the tokenizer's chat template .*; set its chat_template to null") as error:
        render(Templated(template), TURNS, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_turns_are_one_text() -> None:
    assert render(Templated(), TURNS) == "[user|Ann has 3.]"
    assert render(Templated("none"), TURNS, PLAIN) == "[user|Ann has 3.]"
    opened = PLAIN + "{% if add_generation_prompt %}[assistant|{% endif %}"
    assert render(Templated(opened), TURNS, add_generation_prompt=True) == "[user|Ann has 3.][assistant|"


def test_the_day_is_the_same_in_every_prompt() -> None:
    dated = "{{ strftime_now('%Y') }} " + PLAIN
    assert render(Templated(dated), TURNS) == "26 Jul 2024 [user|Ann has 3.]"
    assert [prints_date(template) for template in (dated, PLAIN, None)] == [True, False, False]


def test_numbers_in_a_template_count_to_a_hundred_thousand() -> None:
    for number in (100_000, -100_000):
        assert render(Templated(f"{{{{ {number} }}}}"), TURNS) == str(number)
        beyond = number + (1 if number > 0 else -1)
        assert "(it holds the number 100001, and templates count to 100000)" in refused(f"{{{{ {beyond} }}}}")
    assert render(Templated("{{ 100000.0 }}"), TURNS) == "100000.0"
    assert "it holds the number 100000.5" in refused("{{ 100000.5 }}")
    assert render(Templated("{{ 'a' }}{{ true }}"), TURNS) == "aTrue"
    assert "refuses these turns (it raises to a power)" in refused("{{ 2 ** 2 }}")


def test_a_template_that_refuses_is_named_with_what_it_refuses() -> None:
    template = "{{ raise_exception('system\n  first') }}"
    assert "refuses these turns (system first)" in refused(template)
    assert "refuses a user turn (system first)" in refused(template, refused="a user turn")


def test_a_template_has_five_seconds_and_a_gibibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (chat_template.SECONDS, chat_template.GIBIBYTES) == (5, 1)
    monkeypatch.setattr(chat_template, "SECONDS", 0.25)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    assert "takes more than 0 seconds or 1 GiB for one prompt" in refused(endless)
    assert time.monotonic() - began < 4
    # The next one has all of its time again.
    assert render(Templated(), TURNS) == "[user|Ann has 3.]"


@pytest.mark.parametrize(
    ("passed", "grown", "ended"),
    [(0.0, 2**30, False), (0.0, 2**30 + 1, True), (5.0, 0, False), (5.01, 0, True)],
)
def test_time_and_memory_are_what_a_template_takes(
    passed: float, grown: int, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, clock = [5 * 2**30], [700.0]
    others = set(threading.enumerate())  # this process may keep threads of other tests and libraries
    monkeypatch.setattr(chat_template, "_resident", lambda: sizes[0])
    monkeypatch.setattr(chat_template, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Growing(Templated):
        def apply_chat_template(self, *arguments: Any, **named: Any) -> str:
            # The watcher does not keep a process alive that is to end.
            watchers = set(threading.enumerate()) - others
            assert watchers and all(one.daemon for one in watchers)
            sizes[0] += grown
            clock[0] += passed
            for _ in range(80):  # the watcher looks every twentieth of a second
                time.sleep(0.005)
            return super().apply_chat_template(*arguments, **named)

    if ended:
        with pytest.raises(ValueError, match="takes more than 5 seconds or 1 GiB"):
            render(Growing(), TURNS)
    else:
        assert render(Growing(), TURNS) == "[user|Ann has 3.]"


def test_the_memory_of_the_process_is_read_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template.os, "sysconf", lambda name: {"SC_PAGESIZE": 4096}[name])
    monkeypatch.setattr(chat_template, "_STATM", tmp_path / "statm")
    (tmp_path / "statm").write_text("900 25 3 1 0 7 0\n")
    assert chat_template._resident() == 25 * 4096
    monkeypatch.setattr(chat_template, "_STATM", tmp_path / "none")
    assert chat_template._resident() == 0


def test_whatever_a_template_lacks_is_one_line() -> None:
    broken: Any = SimpleNamespace(get_chat_template=lambda: PLAIN)
    with pytest.raises(ValueError, match=r"refuses these turns .*no attribute 'apply_chat_template'"):
        render(broken, TURNS)
    assert "refuses these turns (" in refused("{{ none.a.b }}")
