"""Hostile recipes, overrides, files of problems and command lines: each ends in one line, soon."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hostile import SPOILED, VALUES, altered, leaves, surprises
from tiny_recipe import TEXT

from unspoken import cli
from unspoken.training.context import check_backbone
from unspoken.training.recipe import Recipe, dump, load, parse, shipped

Cases = Iterator[tuple[str, Callable[[], Any]]]

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)
TEXTS = {
    "nothing": "",
    "a number": "3",
    "a list": "[]",
    "aliases of aliases": BOMB,
    "aliases of aliases as a name": BOMB + "name: *k\n",
    "an alias of itself": "name: &a [*a]\n",
    "an alias of itself as a mapping": "&a {name: *a}\n",
    "an alias of nothing": "name: *nothing\n",
    "nested lists": "[" * 50_000,
    "nested lists that end": "[" * 5_000 + "]" * 5_000,
    "nested mappings": "{a: " * 50_000,
    "nested blocks": "".join(f"{' ' * depth}a:\n" for depth in range(3000)),
    "megabytes": "a" * 3_000_000,
    "python": "name: !!python/object/apply:os.system ['true']\n",
    "a list as a key": "? [1, 2]\n: 3\n",
    "a wrong day": "name: 2020-99-99\n",
    "a long number": f"threads: {'9' * 6000}\n",
    "a long word": TEXT.replace("name: smallest", f"name: {'a' * 100_000}"),
    "control characters": "name: \x07\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "a mark of order": "\ufeffname: x\n",
    "merged": "<<: {name: x}\n",
    "merged with itself": "a: &a {<<: *a}\n",
}


def test_no_text_is_more_than_one_line_of_trouble() -> None:
    assert not surprises((name, lambda text=text: parse(text, "here")) for name, text in TEXTS.items())


def use(recipe: Recipe) -> None:
    """What is done with a recipe before anything is trained: its task, a few problems, its shapes."""
    check_backbone(recipe)
    task = recipe.task.build()
    if recipe.task.traits.from_files:
        return
    task.sample("train", np.arange(2), 0)
    if not isinstance(recipe.backbone, str):
        recipe.backbone_config()


def changed_recipes(recipe: str, sample: int | None) -> Cases:
    """A recipe with one value left out or another."""
    content = yaml.safe_load(recipe)
    cases = [(path, value) for path in leaves(content) for value in (..., *VALUES)]
    for path, value in cases if sample is None else random.Random(0).sample(cases, min(sample, len(cases))):
        text = json.dumps(altered(content, path, value))
        yield f"{'.'.join(map(str, path))} = {str(value)[:40]}", lambda text=text: use(parse(text, "here"))


def test_some_values_of_a_recipe_replaced() -> None:
    assert not surprises(changed_recipes(TEXT, 300))


OWN_TASKS = [
    (name, size) for name, size, _ in shipped() if size == "tiny" and not load(name, size).task.traits.from_files
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), OWN_TASKS)
def test_many_values_of_a_shipped_recipe_replaced(name: str, size: str) -> None:
    assert not surprises(changed_recipes(dump(load(name, size)), 200))


# One recipe of each task that makes its own problems.
EACH_TASK = {load(name, size).task.kind: (name, size) for name, size in OWN_TASKS}


@pytest.mark.parametrize("kind", EACH_TASK)
def test_numbers_of_a_shipped_task_beyond_reason(kind: str) -> None:
    content = yaml.safe_load(dump(load(*EACH_TASK[kind])))
    numbers = [path for path in leaves(content) if path[0] in ("task", "backbone", "talker", "evaluation", "threads")]

    def cases() -> Cases:
        for path in numbers:
            value = content
            for key in path:
                value = value[key]
            for number in (10**6, 10**9, 10**12) if type(value) is int else ():
                text = json.dumps(altered(content, path, number))
                yield f"{'.'.join(map(str, path))} = {number}", lambda text=text: use(parse(text, "here"))

    assert not surprises(cases())


def test_overrides() -> None:
    given = [
        *("", "=", "a", "a=", "=b", ".", "..=1", "stages=", "stages.=1", "stages.9=1", "stages.-1.steps=1", "name.a=1"),
        *(
            "stages.pretrain.steps=[",
            "task.depth=1e400",
            "threads=1000000",
            "threads=" + "9" * 5000,
            "name=" + "[" * 9000,
        ),
        *("stages.pretrain=null", "stages={}", "task=[]", "backbone=../../x", "backbone=3", "a" * 9000 + "=1"),
        *("name=\x1b[31m", "name=../x", "stages.pretrain.name=../x", "." * 9000 + "=1", "evaluation.problems=-1"),
        *("name=&a [*a]", "name=*a"),
    ]
    assert not surprises((f"{text[:40]}", lambda text=text: use(parse(TEXT, "here", [text]))) for text in given)


# --- files of problems -----------------------------------------------------------------------------------------------


def test_every_spoiled_file_of_problems(tmp_path: Path) -> None:
    row = '{"question": "1 + 1?", "answer": "2", "steps": ["1 + 1 = 2"]}\n'

    def cases() -> Cases:
        for suffix in (".jsonl", ".json", ".csv", ".parquet"):
            for how, spoil in {**SPOILED, "a line of digits": lambda path: path.write_text("9" * 9000)}.items():
                path = tmp_path / f"{how}{suffix}"
                path.write_text(row * 3)
                spoil(path)
                text = TEXT.replace("{kind: tree_search, depth: 3}", json.dumps({"kind": "jsonl", "train": str(path)}))
                yield path.name, lambda text=text: parse(text, "here").task.build().sample("train", np.arange(2), 0)

    assert not surprises(cases())


# --- the command line ------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[str]]:
    """Status and lines of errors of a command in this process."""
    errors = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["unspoken", *arguments])
        patch.setattr(sys, "stderr", errors)
        with pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0), errors.getvalue().splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "RECIPE", "--output", ""),
        ("run", "RECIPE", "--output", " "),
        ("run", "", "--output", "x"),
        ("convert", "", ""),
        ("convert", "MODEL", ""),
        ("report", ""),
        ("report", "RECIPE"),
        ("report", "RECIPE", "--output", ""),
        ("eval", ""),
        ("generate", "", "x"),
        ("generate", "nothing/there", "x"),
        ("run", "RECIPE", "--set", "threads=1000000"),
        ("train", "cot", "--model", "", "--data", "", "--output", "x"),
    ],
)
def test_an_empty_or_wrong_argument_is_one_line(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    status, lines = command(monkeypatch, *("recipe.yaml" if word == "RECIPE" else word for word in arguments))
    assert status == 2
    assert len(lines) == 1, lines
    assert sorted(os.listdir(tmp_path)) == ["recipe.yaml"]


def test_a_closed_standard_input_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert command(monkeypatch, "generate", "nothing", "-") == (
        2,
        ["unspoken: standard input is closed; type the problem as an argument, or send lines"],
    )


def test_an_error_is_not_longer_than_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    status, (line,) = command(monkeypatch, "run", "tree-search", "--set", f"name={'[' + 'a, ' * 9000 + ']'}")
    assert status == 2
    assert 100 < len(line) < 2100
