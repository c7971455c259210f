"""What is missing, foreign or changed in a published folder is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_language_model, tiny_pair, tiny_reasoner
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from unspoken.backbone.folder import MANIFEST, StrictLoading, read_manifest, verify, write_manifest
from unspoken.storage import write_json

WEIGHTS = "model.safetensors"
Load = Callable[[Path], PreTrainedModel]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished folder."""
    tiny_language_model("unspoken").save_pretrained(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "log.txt").write_text("trained on a Tuesday")
    write_manifest(tmp_path, {"step": 7})
    return tmp_path


# --- files -----------------------------------------------------------------------------------------------------------


def test_an_untouched_folder_passes_and_tells_its_manifest(folder: Path) -> None:
    manifest = verify(folder)
    assert manifest["step"] == 7
    assert set(manifest["files"]) == {"config.json", "generation_config.json", WEIGHTS, "notes/log.txt"}
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), StrictLoading)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "notes/log.txt"])
def test_a_truncated_file_is_refused_by_name(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name} was truncated or changed"):
        verify(folder)


@pytest.mark.parametrize("place", [0, 200, -1])
def test_one_changed_byte_is_refused_by_name_when_loading(folder: Path, place: int) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[place] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(ValueError, match=f"{WEIGHTS} was truncated or changed"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["generation_config.json", WEIGHTS, "notes/log.txt"])
def test_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_folder_without_manifest_is_not_finished(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match=f"not a finished folder: it has no {MANIFEST}"):
        verify(folder)


@pytest.mark.parametrize("content", [b"", b'{"step": 7, ', b"[]", b"{}", b'{"files": 3}', b"\xff\xfe\x00"])
def test_a_damaged_manifest_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=MANIFEST):
        verify(folder)


def test_files_that_came_later_are_nobody_s_business(folder: Path) -> None:
    (folder / "README.md").write_text("my model")
    verify(folder)


def test_writing_the_manifest_again_takes_in_what_changed(folder: Path) -> None:
    (folder / "notes" / "log.txt").write_text("trained on a Wednesday")
    write_manifest(folder, {**read_manifest(folder), "step": 8})
    assert verify(folder)["step"] == 8


def test_a_reader_sees_the_old_json_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}


# --- weights ---------------------------------------------------------------------------------------------------------

MODELS: dict[str, tuple[Callable[[], PreTrainedModel], Load, str]] = {
    "language model": (
        lambda: tiny_language_model("unspoken"),
        AutoModelForCausalLM.from_pretrained,
        "model.layers.1.ffn.up_proj.weight",
    ),
    "reasoner": (tiny_reasoner, AutoModel.from_pretrained, "backbone.layers.0.attention.q_proj.weight"),
    "reasoner's target table": (tiny_reasoner, AutoModel.from_pretrained, "target_table"),
    "reasoner over llama": (
        lambda: tiny_reasoner("llama"),
        AutoModel.from_pretrained,
        "backbone.layers.0.self_attn.q_proj.weight",
    ),
    "pair": (tiny_pair, AutoModelForCausalLM.from_pretrained, "talker.lm_head.weight"),
    "pair's reasoner": (tiny_pair, AutoModelForCausalLM.from_pretrained, "reasoner.backbone.norm.rms.weight"),
    "dual pair": (
        lambda: tiny_pair("dual"),
        AutoModelForCausalLM.from_pretrained,
        "talker.decoder.layers.0.cross_attention.k_proj.weight",
    ),
}


def altered(folder: Path, make: Callable[[], PreTrainedModel], change: Callable[[dict[str, Tensor]], None]) -> None:
    """Save a model and change its weights; with no manifest, only the weights can give it away."""
    make().save_pretrained(folder)
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", MODELS)
def test_a_missing_weight_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, load, name = MODELS[kind]
    altered(tmp_path, make, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=rf"missing keys in the weights: {name}$"):
        load(tmp_path)


@pytest.mark.parametrize("kind", MODELS)
def test_an_unexpected_weight_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, load, name = MODELS[kind]
    foreign = f"{name}_of_someone_else"
    altered(tmp_path, make, lambda weights: weights.update({foreign: torch.zeros(2)}))
    with pytest.raises(ValueError, match=rf"unexpected keys in the weights: {foreign}$"):
        load(tmp_path)


@pytest.mark.parametrize("kind", MODELS)
def test_a_wrongly_shaped_weight_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, load, name = MODELS[kind]
    altered(tmp_path, make, lambda weights: weights.update({name: torch.zeros(3, 5)}))
    with pytest.raises(ValueError, match=name):
        load(tmp_path)


def test_a_wrongly_shaped_weight_is_refused_even_if_the_caller_would_let_it_pass(tmp_path: Path) -> None:
    make, _, name = MODELS["language model"]
    altered(tmp_path, make, lambda weights: weights.update({name: torch.zeros(3, 5)}))
    with pytest.raises(ValueError, match=name):
        AutoModelForCausalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_the_caller_still_gets_the_loading_report(tmp_path: Path) -> None:
    tiny_language_model("unspoken").save_pretrained(tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, StrictLoading)
    assert not info["missing_keys"]
