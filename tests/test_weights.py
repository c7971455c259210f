"""The models that come with the package: small, whole, and right on problems that they have not seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import unspoken
from unspoken.backbone.folder import verify
from unspoken.cli import app
from unspoken.weights import shipped_model, shipped_models

MEGABYTES = 8
LOWEST = 0.95  # of 200 test problems; the committed models answer more of them


def test_together_they_are_small_and_nothing_in_them_was_changed() -> None:
    folders = [shipped_model(name) for name in shipped_models()]
    assert folders
    for folder in folders:
        assert folder is not None
        verify(folder)
    files = [path for folder in folders if folder for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MEGABYTES * 2**20
    for path in (path for path in files if path.suffix == ".safetensors"):
        with safe_open(path, framework="pt") as weights:
            assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


@pytest.mark.parametrize("name", shipped_models())
def test_they_answer_problems_of_the_test_split(name: str) -> None:
    system = unspoken.load(name, device="cpu")
    measured = system.evaluate(problems=200, controls=False)
    assert measured.accuracy >= LOWEST, measured


def test_a_name_is_enough_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["generate", "tree-search", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["correct"]
    assert answer["chain"]


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_model("tree-search")
    (tmp_path / "tree-search").mkdir()
    assert shipped_model("tree-search") is None
    with pytest.raises(ValueError, match=r"^tree-search is neither a run folder"):
        unspoken.load("tree-search")
