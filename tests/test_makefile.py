"""What each target sets up: the demo needs no tools of developers, and neither set-up undoes the other."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEMO = ".venv/bin/unspoken run tree-search --size tiny"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    return tmp_path


def commands(checkout: Path, target: str) -> list[str]:
    """What make would run, also where make itself runs these tests (an inner make would print its folder as well)."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        ["make", "-n", target], cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def installed(lines: list[str]) -> list[str]:
    """What pip is asked for, in order."""
    return [line.partition("-c constraints.txt ")[2] for line in lines if "pip install" in line]


def test_the_demo_installs_what_it_runs_and_torch_first_by_its_pin(checkout: Path) -> None:
    pin = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    lines = commands(checkout, "demo")
    assert installed(lines) == [f'"{pin}"', "-e ."]
    assert lines[-1] == DEMO


@pytest.mark.parametrize("target", ["test", "lint", "slow", "check", "benchmarks", "docs"])
def test_what_developers_run_installs_their_tools_last(checkout: Path, target: str) -> None:
    assert installed(commands(checkout, target))[1:] == ["-e .", '-e ".[dev]"']


def test_a_demo_after_the_tests_installs_nothing(checkout: Path) -> None:
    for stamp in (".runtime", ".dev"):
        (checkout / ".venv" / stamp).touch()
    assert commands(checkout, "demo") == [DEMO]
    assert installed(commands(checkout, "lint")) == []


def test_the_tests_after_a_demo_install_what_is_missing(checkout: Path) -> None:
    (checkout / ".venv" / ".runtime").touch()
    assert installed(commands(checkout, "lint")) == ['-e ".[dev]"']
