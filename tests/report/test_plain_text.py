"""Texts of models, files and errors appear as they stand: nothing in them is markup, nothing reaches the terminal."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import unspoken
from unspoken import cli, doctor
from unspoken.draw.formats import escaped
from unspoken.draw.table import Column, Table, print_table, text, write_line
from unspoken.report.answers import print_answer
from unspoken.report.terminal import print_recipes
from unspoken.training.progress import Pace, StageProgress
from unspoken.training.recorded_plans import Offer

SOURCE = Path(unspoken.__file__).parent
TEXTS = {
    "closing tag": "[/INST]",
    "colour": "[red]gone[/red]",
    "link": "[link=https://example.org]click[/link]",
    "closing nothing": "[/]",
    "emoji": ":smile:",
    "backslash": "\\[bold]",
    "brackets": "[ ] [[ ]] [1] [@click=quit()]",
    "escape code": "\x1b[31mred\x1b[0m\x1b[2J",
    "title of the window": "\x1b]0;title\x07",
    "link of the terminal": "\x1b]8;;https://example.org\x1b\\click\x1b]8;;\x1b\\",
    "one character": "\x9b31mred",
    "carriage return": "right\rwrong",
    "backspace": "wrong\x08\x08\x08\x08\x08right",
    "direction": "\u202egnorw\u202c",
    "half a character": "\ud83d",
    "number": "1234 'quoted' http://example.org /path",
}
SAFE = ("escaped", "json.dumps", "f'unspoken: {escaped")
STYLE = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(params=[False, True], ids=["pipe", "terminal"])
def console(request: pytest.FixtureRequest) -> Console:
    return Console(file=io.StringIO(), force_terminal=request.param, width=400)


def shown(console: Console, expected: str, times: int) -> bool:
    """Whether a text appears so often as it stands, and nothing else than styles of the console controls a terminal."""
    assert isinstance(console.file, io.StringIO)
    output = console.file.getvalue()
    if console.is_terminal:
        assert "\x1b]" not in output
        output = STYLE.sub("", output)
    assert not CONTROL.search(output), repr(output)
    return output.count(expected) >= times


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_appears_as_it_stands(name: str, console: Console) -> None:
    given, expected = TEXTS[name], escaped(TEXTS[name])
    assert (given == expected) == (name not in list(TEXTS)[7:15])
    result: dict[str, Any] = {
        "problem": given,
        "tree": given,
        "system": given,
        "answer": given,
        "expected": given,
        "correct": False,
        "silent": True,
        "latent_steps": 1,
        "stopped": "cap",
        "chain": [{"nearest": given, "coefficients": {given: 0.5}}],
    }
    print_answer(result, console, chain=True)
    assert shown(console, expected, 7)
    print_table(Table(columns=[Column(given), Column(given)], rows=[[text(given), text(given)]], title=given), console)
    assert shown(console, expected, 11)
    offer = {"name": given, "size": given, "summary": given, "task": given, "hardware": given}
    print_recipes([Offer(**offer, seconds=1.0, start_here=True)], console)
    write_line(given, console, "dim", label=given)
    doctor._list(given, [(given, given)], console)
    assert shown(console, expected, 20)
    progress = StageProgress(console, given, Pace(2))
    state: Any = SimpleNamespace(max_steps=2, global_step=1, num_input_tokens_seen=3, train_batch_size=1)
    alone: Any = SimpleNamespace(world_size=1, gradient_accumulation_steps=1)
    progress.on_train_begin(alone, state, None)
    progress.on_evaluate(alone, state, None, {})
    progress.on_train_end(alone, state, None)
    assert shown(console, expected, 21)


@pytest.mark.parametrize("name", TEXTS)
def test_an_error_shows_a_name_as_it_stands(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError(f"{TEXTS[name]} is not there")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"unspoken: {escaped(' '.join(TEXTS[name].split()))} is not there\n"


def test_a_model_s_table_is_printed_as_it_stands() -> None:
    table = Table(columns=[Column("a")], rows=[[text("\x1b[31m")]], title="\x07")
    assert repr(table).splitlines() == ["\\x07", "a", "\\x1b[31m"]


def test_texts_are_printed_in_one_place() -> None:
    """``print`` is left to JSON and to what passes `escaped`; rich consoles are written to by the module of tables."""
    printed = {
        f"{path.relative_to(SOURCE)}: {ast.unparse(node)}"
        for path in SOURCE.rglob("*.py")
        if "serving" not in path.parts and path.name != "table.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("print", "log", "rule")
        if not (
            node.args
            and ast.unparse(node.args[0]).startswith(
                ("escaped", "json.dumps", "f'unspoken: {escaped", 'f"unspoken: {escaped')
            )
        )
        if "console" in ast.unparse(node.func) or ast.unparse(node.func) == "print"
    }
    assert printed == {
        "cli.py: print('unspoken: stopped; run the same command to continue', file=sys.stderr)",
        "report/terminal.py: console.print(table)",
    }
