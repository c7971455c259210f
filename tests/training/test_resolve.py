"""A recipe's ``auto``: decided by the machine, printed, recorded, and kept when a run goes on elsewhere."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_recipe import one_stage, quiet_train

from unspoken import machine
from unspoken.backbone.folder import read_manifest
from unspoken.training import resolve as resolving
from unspoken.training.recipe import Recipe
from unspoken.training.run import train

CPU = torch.device("cpu")
AUTO = ("precision=auto", "attention=auto")


def resolved(recipe: Recipe, folder: Path, length: int = 30) -> tuple[Recipe, dict[str, str]]:
    return resolving.resolve(recipe, folder, CPU, lambda: length)


@pytest.mark.parametrize(
    ("native", "length", "precision", "attention"),
    [(True, 30, "bf16", "eager"), (True, 400, "bf16", "sdpa"), (False, 30, "fp32", "sdpa")],
)
def test_both_keys_are_decided(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: bool, length: int, precision: str, attention: str
) -> None:
    monkeypatch.delenv(machine.NO_BF16, raising=False)
    monkeypatch.setattr(machine, "product_rate", lambda kind, _: (500e9 if native else 1e9) if kind == "bf16" else 90e9)
    recipe, reasons = resolved(one_stage(*AUTO), tmp_path, length)
    assert (recipe.precision, recipe.attention) == (precision, attention)
    assert set(reasons) == {"precision", "attention"}


def test_explicit_keys_stay_and_have_no_reason(tmp_path: Path) -> None:
    recipe = one_stage("precision=fp32", "attention=eager")
    assert resolved(recipe, tmp_path) == (recipe, {})


def test_an_explicit_choice_that_is_ten_times_slower_warns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "product_rate", lambda kind, _: 1e9 if kind == "bf16" else 75e9)
    with pytest.warns(UserWarning, match=r"'bf16'.*1\.0 GFLOP/s in bfloat16 and 75 in float32.*'auto'") as warned:
        resolving.resolve(one_stage("precision=bf16"), tmp_path, CPU, lambda: 30)
    assert warned[0].filename == __file__  # it names who asked


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), ("cuda", "bf16")])
def test_rows_are_read_where_their_length_matters_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, precision: str
) -> None:
    def length() -> int:
        raise AssertionError

    monkeypatch.setattr(machine, "product_rate", lambda *_: 90e9)
    recipe = one_stage(f"precision={precision}", "attention=auto")
    assert resolving.resolve(recipe, tmp_path, torch.device(device), length)[0].attention == "sdpa"


def test_flex_attention_needs_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "product_rate", lambda *_: 90e9)
    recipe = one_stage("attention=flex_attention")
    assert resolving.resolve(recipe, tmp_path, torch.device("cuda"), lambda: 30) == (recipe, {})
    with pytest.raises(ValueError, match="torch can train on CUDA alone, not on cpu"):
        resolved(recipe, tmp_path)


def test_a_run_keeps_what_it_began_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(machine.NO_BF16, "1")
    quiet_train(one_stage(*AUTO, "stages.pretrain.steps=2"), tmp_path)
    assert json.loads((tmp_path / "recipe.json").read_text())["precision"] == "fp32"
    manifest = read_manifest(tmp_path / "seed-0" / "pretrain" / "model")
    assert manifest["recipe"]["precision"] == "fp32"
    assert manifest["machine"]["reasons"]["precision"] == f"{machine.NO_BF16} is set"
    # Elsewhere bfloat16 is fast: the second seed is trained as the first was.
    monkeypatch.setenv(machine.NO_BF16, "0")
    monkeypatch.setattr(machine, "product_rate", lambda kind, _: 500e9 if kind == "bf16" else 90e9)
    quiet_train(one_stage(*AUTO, "stages.pretrain.steps=2"), tmp_path, seeds=2)
    manifest = read_manifest(tmp_path / "seed-1" / "pretrain" / "model")
    assert manifest["recipe"]["precision"] == "fp32"
    assert "was started" in manifest["machine"]["reasons"]["precision"]


def test_the_choice_is_printed_in_one_line(tmp_path: Path) -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=400)
    train(one_stage(*AUTO, "stages.pretrain.steps=2"), tmp_path, seeds=1, report_to=[], console=console)
    (line,) = [line for line in printed.getvalue().splitlines() if line.startswith("precision ")]
    assert "GFLOP/s in bfloat16" in line or machine.NO_BF16 in line
    assert "; attention " in line
