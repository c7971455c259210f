"""What moves, and which devices are refused; `test_pretend_runs.py` moves for real."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_recipe import one_stage, quiet_train
from typer.testing import CliRunner

from unspoken.cli import app
from unspoken.machine import resolve_device
from unspoken.methods.loading import load_model
from unspoken.placement import CPU, moved

META = torch.device("meta")  # a device that is always there


@dataclass(frozen=True)
class Pair:
    left: torch.Tensor
    right: list[torch.Tensor]
    name: str


def test_every_tensor_moves_and_nothing_else_changes() -> None:
    given = {"pair": Pair(torch.ones(2), [torch.zeros(3)], "two"), "none": None, "mixed": (torch.ones(1), 4)}
    actual = moved(given, META)
    assert actual["pair"].left.device == actual["pair"].right[0].device == actual["mixed"][0].device == META
    assert (actual["pair"].name, actual["none"], actual["mixed"][1]) == ("two", None, 4)
    assert isinstance(actual["mixed"], tuple)
    assert given["pair"].left.device == CPU


def test_a_tensor_that_is_there_is_not_copied() -> None:
    tensor = torch.ones(2)
    assert moved((tensor,), CPU)[0] is tensor


def test_a_model_is_loaded_where_it_is_wanted_with_the_kernel_that_is_fast_there(tmp_path: Path) -> None:
    folder = quiet_train(one_stage("stages.pretrain.steps=1"), tmp_path)[0].model_folder("pretrain")
    assert load_model(folder).config._attn_implementation == "eager"
    there = load_model(folder, device=META)
    assert there.device == META
    assert there.config._attn_implementation == "sdpa"
    assert load_model(folder, device=META, attention="eager").config._attn_implementation == "eager"


def test_a_device_stands_for_itself() -> None:
    assert resolve_device(META) is META


@pytest.mark.parametrize("verb", ["run", "train", "eval", "generate", "serve"])
def test_every_verb_that_computes_refuses_a_device_that_is_not_there(verb: str, tmp_path: Path) -> None:
    quiet_train(one_stage("stages.pretrain.steps=1"), tmp_path / "run")
    about = ["tree-search", "--output", str(tmp_path / "new")] if verb in ("run", "train") else [str(tmp_path / "run")]
    result = CliRunner().invoke(app, [verb, *about, "--device", "cuda:77"])
    assert isinstance(result.exception, ValueError)
    assert "cuda:77" in str(result.exception)
    assert "\n" not in str(result.exception)
