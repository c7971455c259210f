"""The main job as a user runs it: the commands of the README, on the tiny size, trained for real."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

# A quarter of its problems, for it is measured three times here; and one thread, for another test runs beside it.
FEWER = ("--set", "evaluation.problems=500", "--set", "threads=1")


def unspoken(*arguments, cwd, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "unspoken.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the tiny run has been trained by the README's first command."""
    folder = tmp_path_factory.mktemp("main_job")
    unspoken("run", "tree-search", "--size", "tiny", "--report-to", "none", *FEWER, cwd=folder)
    return folder


def test_the_reasoner_solves_the_tiny_task_and_the_controls_do_not(place):
    results = json.loads((place / "runs/tree-search-tiny/results.json").read_text())
    assert results["systems"]["jepa-reasoner"]["exact_match"]["mean"] >= 0.95
    for name in ("zero", "noise", "swap", "no chain"):
        assert results["probes"]["controls"]["jepa-reasoner"][name]["exact_match"]["mean"] < 0.25, name
    resampled = results["probes"]["resampled_answers"]["jepa-reasoner"]
    assert resampled["latents_identical"]
    assert resampled["answers_changed"] > 0.5


def test_a_second_call_trains_nothing_and_measures_again(place):
    model = place / "runs/tree-search-tiny/seed-0/sst/model/model.safetensors"
    before = model.stat().st_mtime_ns
    done = unspoken("run", "tree-search", "--size", "tiny", "--report-to", "none", *FEWER, "--json", cwd=place)
    assert model.stat().st_mtime_ns == before
    assert json.loads(done.stdout)["systems"]["jepa-reasoner"]["exact_match"]["mean"] >= 0.95


def test_the_page_stands_alone(place):
    page = (place / "runs/tree-search-tiny/report.html").read_text()
    assert "<html" in page
    assert not re.search(r"(?:src|href)=[\"']https?:", page)


def test_generate_answers_a_typed_problem(place):
    problem = "LK,LC,KB,KN,CJ,CE[ROOT]L[TARGET]E[ROUTE]"
    done = unspoken("generate", "runs/tree-search-tiny", problem, "--json", "--chain", cwd=place)
    answer = json.loads(done.stdout)
    assert answer["answer"] == "LCE"
    assert len(answer["chain"]) >= 3


def test_generate_refuses_a_malformed_problem_in_one_line(place):
    done = unspoken("generate", "runs/tree-search-tiny", "LK,LC[ROOT]L", cwd=place, status=2)
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_the_python_example_of_the_readme_runs(place):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    done = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=place, capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert "LCE" in done.stdout


def test_every_command_of_the_readme_is_accepted(place):
    commands = re.findall(r"^\$ unspoken (.*?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        # What would train for long is only resolved, and what serves has no end; the rest is run as it stands.
        extra = ["--show"] if command.startswith("run") and "--plan" not in command else []
        extra += ["--help"] if command.startswith(("serve", "explore", "chat")) else []
        unspoken(*command.split(), *extra, cwd=place)
