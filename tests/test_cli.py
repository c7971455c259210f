"""The command line starts at once: verbs that compute nothing import neither torch nor transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unspoken.training.recipe import shipped

RESULTS = Path(__file__).parent.parent / "results" / "tree-search-tiny.json"
HEAVY = ("torch", "transformers", "accelerate", "datasets", "scipy.stats", "sklearn")
# What ran, and what it left imported, on the last line of its standard error.
REPORTED = f"""
try:
    run()
finally:
    print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)
"""


def imported_by(code: str, *arguments: str) -> tuple[str, list[str]]:
    """Standard output of a fresh interpreter that calls ``run()`` as the code defines it, and what it imported."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}\n{REPORTED}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    heavy: list[str] = json.loads(done.stderr.splitlines()[-1])
    return done.stdout, heavy


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--help"], "Usage"),
        (["-h"], "Usage"),
        (["--version"], "unspoken "),
        (["doctor", "--help"], "Usage"),
        (["recipes"], "tree-search"),
        (["run", "tree-search", "--show"], "kind: sst"),
        (["run", "gsm8k-jepa", "--size", "small", "--set", "task.validation_rows=7", "--show"], "validation_rows: 7"),
        (["report", str(RESULTS), "--output"], ".html"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
def test_a_verb_that_computes_nothing_imports_nothing_heavy(arguments: list[str], printed: str, tmp_path: Path) -> None:
    if arguments[-1] == "--output":
        arguments = [*arguments, str(tmp_path / "page.html")]
    output, heavy = imported_by("from unspoken.cli import main as run", *arguments)
    assert printed in output
    assert heavy == []


def test_a_wrong_recipe_is_refused_without_importing_anything_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "unspoken.cli", "run", "tree-search", "--set", "backbone.heads=3"],
        capture_output=True,
        text=True,
        check=False,
    )
    *times, message = done.stderr.splitlines()
    assert (done.returncode, message) == (
        2,
        "unspoken: tree-search (tiny): backbone: attention_size 256 is not a multiple of num_attention_heads 3; "
        "the width of a head must be whole",
    )
    modules = {line.rpartition("|")[2].strip() for line in times}
    assert "unspoken.training.recipe" in modules
    assert not modules & {"torch", "transformers"}


def test_every_shipped_recipe_is_read_without_importing_anything_heavy() -> None:
    code = """
from unspoken.training.recipe import dump, load, parse, shipped

def run():
    for name, size, _ in shipped():
        recipe = load(name, size)
        assert parse(dump(recipe), name) == recipe
        print(name)
"""
    output, heavy = imported_by(code)
    assert len(output.splitlines()) > 20
    assert heavy == []


def test_every_shipped_recipe_is_planned_without_importing_anything_heavy() -> None:
    code = """
from unspoken.cli import app
from unspoken.training.recipe import shipped

def run():
    for name, size, _ in shipped():
        app(["run", name, "--size", size, "--plan"], standalone_mode=False)
"""
    output, heavy = imported_by(code)
    assert all(f"{name} {size}, built on the meta device" in output for name, size, _ in shipped())
    assert heavy == []


def test_an_answer_imports_torch_and_not_what_only_training_needs() -> None:
    """The checks above would see torch. The Trainer would bring ``datasets`` and pandas: one and a half seconds."""
    output, heavy = imported_by("from unspoken.cli import main as run", "generate", "tree-search")
    assert "tree-search: MCN  right" in output
    assert {"torch", "transformers"} <= set(heavy)
    assert "datasets" not in heavy


def test_what_computes_does_import_torch() -> None:
    """A plan of a recipe that was changed is computed."""
    changed = ["run", "tree-search", "--set", "stages.sst.steps=7", "--plan"]
    output, heavy = imported_by("from unspoken.cli import main as run", *changed)
    assert "tree-search" in output
    assert {"torch", "transformers"} <= set(heavy)
