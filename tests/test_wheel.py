"""What is published: it is built, complete, described, and enough with the packages that it declares."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What an answer needs of the libraries, whatever it does besides.
LIBRARIES = (
    "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, PreTrainedModel"
)
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def called(*command: str | Path, folder: Path, limit: int = 300) -> str:
    """What a command prints, in an environment that knows nothing of this checkout."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    settings = {**clean, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=settings, capture_output=True, text=True, timeout=limit, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[str]:
    listed = called("git", "ls-files", "--cached", "--others", "--exclude-standard", folder=ROOT).splitlines()
    return [path for path in listed if (ROOT / path).is_file()]


# --- the changelog ---------------------------------------------------------------------------------------------------


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    entries = [re.fullmatch(r"## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d|unreleased)", line) for line in versions]
    assert all(entries), versions
    assert entries[0] is not None and entries[0][1] == PROJECT["version"]
    assert {line.removeprefix("### ") for line in lines if line.startswith("### ")} <= KINDS


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source distribution, and the wheel that is made of it, of a copy without anything that git ignores."""
    copy, tools = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("tools")
    for path in tracked():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
    called(sys.executable, "-m", "venv", tools, folder=copy)
    python = tools / "bin" / "python"
    called(python, "-m", "pip", "install", "-q", "build", "twine", *_build_requirements(), folder=copy)
    called(python, "-m", "build", "--no-isolation", folder=copy)
    called(python, "-m", "twine", "check", "--strict", *(copy / "dist").iterdir(), folder=copy)
    return copy / "dist"


def _build_requirements() -> list[str]:
    requirements: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    return requirements


@pytest.mark.slow
def test_both_hold_every_file_of_the_package(built: Path) -> None:
    package = {path.removeprefix("src/") for path in tracked() if path.startswith("src/unspoken/")}
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == package
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{path}" for path in package} | {"LICENSE", "README.md", "pyproject.toml", "CHANGELOG.md"} <= names


# --- an environment that holds what is declared, and nothing else ------------------------------------------------


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of the installed packages that some requirements bring, directly or not."""
    waiting, seen = [Requirement(line) for line in requirements], set()
    names: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            further = distribution(requirement.name).requires or []
        except PackageNotFoundError:
            continue  # of another system
        names.add(key[0])
        for line in further:
            one = Requirement(line)
            if any(one.marker is None or one.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                waiting.append(one)
    return names


def environment(folder: Path, built: Path, extras: list[str]) -> Path:
    """The programs of a new environment with the wheel and links to the installed packages that it asks for."""
    called(sys.executable, "-m", "venv", "--without-pip", folder, folder=built)
    (site,) = folder.glob("lib/python*/site-packages")
    declared = [
        *PROJECT["dependencies"],
        *(line for extra in extras for line in PROJECT["optional-dependencies"][extra]),
    ]
    for name in closure(declared):
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            origin, link = Path(str(distribution(name).locate_file(top))), site / top
            if origin.exists() and not link.exists():
                link.symlink_to(origin)
    (wheel,) = built.glob("*.whl")
    python = folder / "bin" / "python"
    called(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        wheel,
        folder=folder,
    )
    where = called(python, "-c", "import unspoken; print(unspoken.__file__)", folder=folder).strip()
    assert Path(where).is_relative_to(site)
    return folder / "bin"


def processor_seconds(*command: str | Path, folder: Path) -> tuple[float, str]:
    """Of the processor: how long a command takes by the clock depends on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = called(*command, folder=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, printed


@pytest.mark.slow
def test_a_new_environment_answers_within_twice_the_time_of_its_libraries(built: Path, tmp_path: Path) -> None:
    programs = environment(tmp_path / "environment", built, [])
    assert called(programs / "unspoken", "--version", folder=tmp_path) == f"unspoken {PROJECT['version']}\n"
    imports, _ = processor_seconds(programs / "python", "-c", LIBRARIES, folder=tmp_path)
    took, printed = processor_seconds(programs / "unspoken", "generate", "tree-search", "--chain", folder=tmp_path)
    assert "tree-search: " in printed and "  right  (" in printed and "nearest  made of" in printed
    assert took <= 2 * imports
    refused = subprocess.run(
        [programs / "unspoken", "serve", "tree-search"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "install it with pip install 'unspoken[serve]'" in refused.stderr


PARQUET = """
import pyarrow, pyarrow.parquet
import unspoken
from unspoken.tasks.files import hub_rows
from unspoken.tasks.jsonl import JsonlConfig
rows = [{"question": f"{n}?", "steps": [f"{n}"], "answer": str(n)} for n in range(30)]
pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "mine.parquet")
print(JsonlConfig(train="mine.parquet").build().sizes())
try:
    hub_rows("nobody/nothing", "train")
except ValueError as error:
    assert "the hub gave no 'train' split" in str(error), error
"""
SERVER = """
import json, os, signal, socket, threading, time, urllib.request
from unspoken.serving import serve

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]

def asked(path, **body):
    content = json.dumps(body).encode() if body else None
    url = f"http://127.0.0.1:{port}/v1/{path}"
    request = urllib.request.Request(url, content, {"content-type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=60))

def client():
    try:
        for _ in range(300):
            try:
                (model,) = asked("models")["data"]
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        message = {"role": "user", "content": "LK,LC,KB,KN,CJ,CE[ROOT]L[TARGET]E[ROUTE]"}
        answer = asked("chat/completions", model=model["id"], messages=[message])
        print(answer["choices"][0]["message"]["content"], flush=True)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=client).start()
serve("tree-search", port=port)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "code", "expected"),
    [
        ("hub", PARQUET, "{'train': 24, 'validation': 3, 'held_out': 3}"),
        ("serve", SERVER, "LCE"),
        (
            "harness",
            "from unspoken.integrations import lm_eval; print(len(lm_eval.tree_search(problems=3)['test']))",
            "3",
        ),
    ],
    ids=["hub", "serve", "harness"],
)
def test_an_extra_brings_what_its_feature_imports(
    extra: str, code: str, expected: str, built: Path, tmp_path: Path
) -> None:
    python = environment(tmp_path / "environment", built, [extra]) / "python"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert expected in done.stdout.splitlines(), done.stdout + done.stderr


def test_every_extra_is_tried() -> None:
    (mark,) = (mark for mark in test_an_extra_brings_what_its_feature_imports.pytestmark if mark.name == "parametrize")
    assert {extra for extra, _, _ in mark.args[1]} == PROJECT["optional-dependencies"].keys() - {"dev", "docs"}
