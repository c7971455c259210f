"""What is missing, foreign or changed in a published folder is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_language_model, tiny_pair, tiny_reasoner
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from unspoken.backbone import folder as folders
from unspoken.backbone.folder import (
    MANIFEST,
    StrictLoading,
    check_keys,
    clear,
    file_hash,
    numbered,
    publish,
    read_manifest,
    remove,
    verify,
    verify_published,
    write_manifest,
)
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


# --- finished folders ------------------------------------------------------------------------------------------------


def finished(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_text(content)
    write_manifest(path, {"step": 3})
    return path


def test_a_manifest_holds_the_hashes_of_files_and_of_its_other_entries(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("abc")
    (tmp_path / ".b.txt.0123456789abcdef.tmp").write_text("what a kill left")
    write_manifest(tmp_path, {"step": 3, "by": ("x", 1), "digest": "stale", "files": {"gone": ""}})
    # Known from the standard, FIPS 180-2.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_hash(tmp_path / "sub" / "a.txt") == abc
    digest = hashlib.sha256(b'{"by": ["x", 1], "step": 3}').hexdigest()
    assert json.loads((tmp_path / MANIFEST).read_text()) == {
        "step": 3,
        "by": ["x", 1],
        "files": {"sub/a.txt": abc},
        "digest": digest,
    }
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_numbered_folders_are_those_that_are_finished_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "best-1", "checkpoint-x", "checkpoint-1-old"):
        finished(tmp_path / name)
    (tmp_path / "checkpoint-5").mkdir()  # has no manifest
    (tmp_path / "checkpoint-7").symlink_to(tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-8").write_text("a file")
    assert [path.name for path in numbered(tmp_path, "checkpoint")] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-100",
    ]
    assert numbered(tmp_path, "other") == []
    finished(tmp_path / "of-two-3")
    assert [path.name for path in numbered(tmp_path, "of-two")] == ["of-two-3"]


@pytest.mark.parametrize("before", ["folder", "link", "dangling link", None])
def test_a_staged_folder_takes_the_place_of_what_is_there(before: str | None, tmp_path: Path) -> None:
    final, staging, elsewhere = tmp_path / "model", tmp_path / ".staging", finished(tmp_path / "elsewhere", a="kept")
    if before == "folder":
        finished(final, a="old", b="old")
    elif before is not None:
        final.symlink_to(elsewhere if before == "link" else tmp_path / "nowhere")
    staging.mkdir()
    (staging / "a").write_text("new")
    publish(staging, final, {"step": 9})
    assert (final / "a").read_text() == "new" and not (final / "b").exists() and not final.is_symlink()
    assert verify(final)["step"] == 9
    assert not staging.exists()
    assert (elsewhere / "a").read_text() == "kept" and (elsewhere / MANIFEST).is_file()


def test_a_folder_is_removed_manifest_first_and_of_a_link_the_link_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = finished(tmp_path / "model", a="x"), tmp_path / "link"
    link.symlink_to(folder)
    remove(link)
    assert not os.path.lexists(link) and verify(folder)["step"] == 3
    seen: list[bool] = []
    monkeypatch.setattr(folders, "discard", lambda path: seen.append((path / MANIFEST).exists()))
    remove(folder)
    remove(folder)  # as another process left it
    assert seen == [False, False]


def test_what_a_stage_needs_while_it_runs_is_cleared(tmp_path: Path) -> None:
    for name in ("checkpoint-3", "best-3", ".staging", "model", "labels"):
        finished(tmp_path / name)
    for name in (".kept", "checkpoint-log.txt"):
        (tmp_path / name).write_text("a file")
    (tmp_path / "best-link").symlink_to(tmp_path / "model")
    (tmp_path / "best-gone").symlink_to(tmp_path / "nowhere")
    clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".kept", "checkpoint-log.txt", "labels", "model"]


@pytest.mark.parametrize("weights", [True, False])
def test_weights_are_compared_unless_they_are_left_out(folder: Path, weights: bool) -> None:
    (folder / WEIGHTS).write_bytes(b"other")
    for check in (verify, verify_published):
        if weights:
            with pytest.raises(ValueError, match=f"{WEIGHTS} was truncated or changed"):
                check(folder)
        else:
            assert check(folder, weights=False)["step"] == 7
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=f"{WEIGHTS} is missing"):
        verify(folder, weights=weights)


def test_hashes_are_kept_of_files_that_have_been_still_for_two_seconds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(folders, "_hashes", {})
    monkeypatch.setattr(folders, "file_hash", lambda path: read.append(path.name) or file_hash(path))
    status = (folder / WEIGHTS).stat()
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    for later, times in ((2_000_000_000, 2), (2_000_000_001, 1)):
        monkeypatch.setattr(folders.time, "time_ns", lambda later=later: changed + later)
        read.clear()
        for _ in range(2):
            folders._known_hash(folder / WEIGHTS)
        assert read == [WEIGHTS] * times
    # Its time may have been set to one that is still to come.
    os.utime(folder / WEIGHTS, ns=(changed + 10**10, changed + 10**10))
    later = (folder / WEIGHTS).stat().st_ctime_ns + 3 * 10**9
    monkeypatch.setattr(folders.time, "time_ns", lambda: later)
    read.clear()
    for _ in range(2):
        folders._known_hash(folder / WEIGHTS)
    assert read == [WEIGHTS] * 2


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"missing_keys": {"b", "a"}}, r"missing keys in the weights: a, b$"),
        ({"unexpected_keys": list("gfedcba")}, r"unexpected keys in the weights: a, b, c, d, e and 2 more$"),
        ({"missing_keys": list("abcde")}, r"weights: a, b, c, d, e$"),
        ({"missing_keys": list("abcdef")}, r"weights: a, b, c, d, e and 1 more$"),
        (
            {"mismatched_keys": [("w", (2, 3), (4, 5))]},
            r"mismatched keys in the weights: w \(\[2, 3\] in the weights, \[4, 5\] by config.json\)$",
        ),
    ],
)
def test_wrong_weights_are_named_the_first_five_of_them(info: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_keys("source", info)
    check_keys("source", dict.fromkeys(info, ()))
    check_keys("source", {"missing_keys": None})
