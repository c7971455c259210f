"""The help of every verb has examples that can be typed, and the shell completes verbs and options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from typer import BadParameter
from typer.main import get_command
from typer.testing import CliRunner

from unspoken.cli import app
from unspoken.cli_examples import EXAMPLES
from unspoken.methods.catalogue import trainable
from unspoken.training.recipe import shipped

VERBS = get_command(app).commands  # type: ignore[attr-defined]
LINES = [(verb, line) for verb, lines in EXAMPLES.items() for line in lines]


def test_every_verb_has_examples() -> None:
    assert EXAMPLES.keys() == VERBS.keys()
    assert {len(lines) for lines in EXAMPLES.values()} <= {2, 3}


@pytest.mark.parametrize(("verb", "line"), LINES, ids=[line for _, line in LINES])
def test_the_parser_takes_every_example(verb: str, line: str) -> None:
    command, _, file = line.partition(" < ")
    assert file.endswith(".txt") or not file
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("unspoken", verb)
    given = VERBS[verb].make_context(verb, arguments).params
    if "recipe" in given:
        known = {(name, size) for name, size, _ in shipped()}
        method = given["recipe"] in trainable() and given["model"] and given["data"]
        assert (given["recipe"], given["size"] or "tiny") in known or method or given["recipe"].endswith(".yaml")
    if "method" in given:
        assert given["method"] in trainable()


@pytest.mark.parametrize("verb", EXAMPLES)
def test_the_help_shows_them(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).output
    lines = [line.strip() for line in shown.splitlines()]
    assert "Examples:" in lines
    assert all(line in lines for line in EXAMPLES[verb])


@pytest.mark.parametrize(
    ("verb", "option", "allowed", "refused"),
    [
        ("run", "--seeds", (1,), (0,)),
        ("serve", "--port", (0, 65535), (-1, 65536)),
        ("explore", "--problems", (2, 8), (1, 9)),
        ("eval", "--samples", (0,), (-1,)),
    ],
)
def test_numbers_are_taken_to_the_ends_of_their_ranges(
    verb: str, option: str, allowed: tuple[int, ...], refused: tuple[int, ...]
) -> None:
    for number in allowed:
        assert VERBS[verb].make_context(verb, ["mine", option, str(number)]).params[option[2:]] == number
    for number in refused:
        with pytest.raises(BadParameter, match=r"Input should be (greater|less) than or equal to"):
            VERBS[verb].make_context(verb, ["mine", option, str(number)])


@pytest.mark.parametrize(
    ("shell", "typed", "expected"),
    [
        ("bash", "unspoken ch", {"chat"}),
        ("bash", "unspoken new-recipe --gr", {"--grader"}),
        ("zsh", "unspoken do", {"doctor"}),
    ],
)
def test_the_shell_completes_verbs_and_options(shell: str, typed: str, expected: set[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_TYPER_COMPLETE_ARGS": typed}
    done = subprocess.run(
        [sys.executable, "-c", "from unspoken.cli import app; app(prog_name='unspoken')"],
        env=os.environ | words | {"_UNSPOKEN_COMPLETE": f"complete_{shell}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected <= set(re.findall(r"[\w-]+", done.stdout)), done.stderr
