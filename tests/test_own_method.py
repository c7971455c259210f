"""The example package is installed as a user installs it, trains by the command line, is measured and answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_hub import save_hub_folder, save_problems

ROOT = Path(__file__).parent.parent
SHORT = ("steps=2", "batch_size=8", "evaluate_every=2")
# Commands one after another in one interpreter, since each would import torch anew: exit status, output and errors.
SHELL = """
import contextlib, io, json, sys
from unspoken.cli import main

for arguments in json.loads(sys.argv[1]):
    sys.argv, status, printed, refused = ["unspoken", *arguments], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(refused):
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([status, printed.getvalue(), refused.getvalue()]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has put the package; it builds in the folder of the source, so in a copy."""
    folder = tmp_path_factory.mktemp("own_method")
    shutil.copytree(ROOT / "examples" / "own_method", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(folder / "target"), str(folder / "source")], check=True
    )
    return folder / "target"


def unspoken(installed: Path, *commands: list[str]) -> list[list[Any]]:
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", SHELL, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_is_installed_with_its_entry_points_and_trains_and_answers(installed: Path, tmp_path: Path) -> None:
    recipe, run = installed.parent / "source" / "recipe.yaml", str(tmp_path / "run")
    changes = [
        part
        for stage in ("cot", "answer_only", "hesitation")
        for change in SHORT
        for part in ("--set", f"stages.{stage}.{change}")
    ]
    changes += ["--set", "evaluation.problems=20", "--set", "evaluation.validation_problems=8"]
    trained, answered, refused = unspoken(
        installed,
        ["run", str(recipe), "--output", run, "--report-to", "none", "--quiet", "--json", *changes],
        ["generate", run, "babcb", "--json"],
        ["generate", run, "xyz"],
    )
    assert (trained[0], answered[0]) == (0, 0), (trained, answered)
    results = json.loads(trained[1])
    assert results["systems"]["hesitation"]["cost"]["latent_steps"] == 6
    kept = results["probes"]["fewer_hesitations"]["hesitation"]
    assert list(kept) == ["0", "3", "6"]
    assert kept["6"]["exact_match"] == results["systems"]["hesitation"]["exact_match"]
    assert "How many hesitations does the answer need?" in (tmp_path / "run" / "report.html").read_text()
    answer = json.loads(answered[1])
    assert (answer["system"], answer["latent_steps"], answer["stopped"]) == ("hesitation", 6, "fixed")
    assert refused == [2, "", "unspoken: 'xyz' is not a word of the letters abc; type one, such as babcb\n"]


def test_its_method_learns_from_one_s_own_problems(installed: Path, tmp_path: Path) -> None:
    hub, data = save_hub_folder(tmp_path / "hub"), save_problems(tmp_path / "mine.jsonl")
    how = ["--output", str(tmp_path / "run"), "--set", "steps=1", "--report-to", "none"]
    trained, answered = unspoken(
        installed,
        ["train", "hesitation", "--model", str(hub), "--data", str(data), *how],
        ["generate", str(tmp_path / "run"), "2+2?", "--json"],
    )
    assert (trained[0], answered[0]) == (0, 0), (trained, answered)
    answer = json.loads(answered[1])
    assert (answer["system"], answer["latent_steps"]) == ("hesitation", 8)
