"""Tasks of other packages: found by their entry points, imported late, refused in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unspoken.tasks.catalogue import TASKS, task_configs

MODULE = """
from dataclasses import dataclass
from typing import ClassVar
from unspoken.tasks import ArithmeticConfig

@dataclass(frozen=True, kw_only=True)
class SumsConfig:
    kind: ClassVar[str] = "sums"
    longest: int = 2

    @property
    def traits(self):
        return ArithmeticConfig().traits

    def build(self):
        return ArithmeticConfig(steps=(self.longest,)).build()
"""
LINE = """
name: sums
size: tiny
task: {kind: sums, longest: 3}
backbone: {hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
stages:
  - {name: cot, objective: {kind: next_token}, steps: 2}
"""


@pytest.fixture(autouse=True)
def _catalogue_is_read_anew() -> Iterator[None]:
    task_configs.cache_clear()
    yield
    task_configs.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Puts a package with one task on the path, as an installer leaves it there."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, source: str = MODULE, attribute: str = "SumsConfig") -> str:
        module = f"{name}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[unspoken.tasks]\nsums = {module}:{attribute}\n")
        return module

    return put


def test_our_tasks_have_different_kinds() -> None:
    assert task_configs() == TASKS
    assert len({config.kind for config in TASKS}) == len(TASKS)


def test_another_package_s_task_is_one_of_a_recipe_s(install: Callable[..., str], tmp_path: Path) -> None:
    module = install("sudoku")
    # In a process of its own: here, the types of a recipe are checked against the tasks that there were at first.
    code = f"""
import sys
from unspoken.training.recipe import dump, parse
assert {module!r} not in sys.modules
recipe = parse({LINE!r}, "line")
assert type(recipe.task).__module__ == {module!r}
assert recipe.task.build().config.steps == (3,)
assert parse(dump(recipe), "again") == recipe
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
    assert [config.kind for config in task_configs()] == [*(config.kind for config in TASKS), "sums"]


def test_a_kind_that_is_taken_is_refused_by_name(install: Callable[..., str]) -> None:
    install("copycat", MODULE.replace('"sums"', '"arithmetic"'))
    with pytest.raises(ValueError, match="of copycat has the kind 'arithmetic' of another task; uninstall it"):
        task_configs()


def test_two_packages_with_one_kind_are_refused_by_name(install: Callable[..., str]) -> None:
    install("first")
    install("second")
    with pytest.raises(ValueError, match=r"of (first|second) has the kind 'sums' of another task; uninstall it"):
        task_configs()


@pytest.mark.parametrize(
    ("source", "attribute", "message"),
    [
        ("import nothing_of_that_name", "SumsConfig", "cannot be imported (ModuleNotFoundError: No module named"),
        ("raise RuntimeError('two\\nlines')", "SumsConfig", "cannot be imported (RuntimeError: two lines)"),
        (MODULE, "OtherConfig", "cannot be imported (AttributeError"),
        ("class SumsConfig: kind = 'sums'", "SumsConfig", "of settings, and it has no traits, build"),
        (MODULE.replace("@dataclass(frozen=True, kw_only=True)", ""), "SumsConfig", "must be a frozen dataclass"),
        ("SumsConfig = 3", "SumsConfig", "must be a frozen dataclass of settings, and it has no kind, traits, build"),
    ],
)
def test_a_broken_package_is_named_in_one_line(
    install: Callable[..., str], source: str, attribute: str, message: str
) -> None:
    install("broken", source, attribute)
    with pytest.raises(ValueError, match=f"the task 'sums' of broken .*{re.escape(message)}") as error:
        task_configs()
    assert "\n" not in str(error.value)
