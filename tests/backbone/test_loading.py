"""What loads, and how: folders, links, names on the hub; what came into a published folder later; the command line."""

from __future__ import annotations

import builtins
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from folder_damage import (
    INDEX,
    WEIGHTS,
    Change,
    bit,
    config,
    cut,
    gone,
    in_shards,
    load,
    pickled,
    refusal,
    same,
    signed_again,
    together,
    weights,
    written,
)
from safetensors.torch import load_file
from tiny_models import tiny_language_model
from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from unspoken.backbone import folder as folders
from unspoken.backbone.folder import MANIFEST, FolderError, verify, write_manifest
from unspoken.backbone.loading import load_config, load_pretrained, load_tokenizer
from unspoken.cli import main
from unspoken.storage import write_json

# --- what is not damage ----------------------------------------------------------------------------------------------


def test_an_untouched_folder_loads_in_the_chosen_way(published: Path, original: Path) -> None:
    model = load(published)
    assert same(model, original)
    assert model.config._attn_implementation == "eager"
    assert load_pretrained(published, attn_implementation="sdpa").config._attn_implementation == "sdpa"
    assert {weight.dtype for weight in load_pretrained(published, dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }
    assert load_tokenizer(published, padding_side="right").padding_side == "right"


def test_the_configuration_does_not_overrule_the_caller(hub_like: Path) -> None:
    config(attn_implementation="sdpa", _attn_implementation="sdpa")(hub_like)
    assert load(hub_like).config._attn_implementation == "eager"


def test_shards_load(hub_like: Path, original: Path) -> None:
    in_shards(hub_like)
    assert same(load(hub_like), original)


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    model = tiny_language_model("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    again = load_pretrained(tmp_path)
    assert torch.equal(again.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_what_the_library_lets_old_files_hold_is_let_through(hub_like: Path, original: Path) -> None:
    weights(lambda all: all.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))(hub_like)
    assert same(load(hub_like), original)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM])
def test_the_stack_of_a_language_model_has_no_head(auto: Any, hub_like: Path) -> None:
    if auto is AutoModel:
        with pytest.raises(ValueError, match=r"unexpected keys in the weights: lm_head.weight$"):
            load_pretrained(hub_like, auto)
    else:
        load_pretrained(hub_like, auto)


def test_code_of_a_kind_that_transformers_knows_is_left_alone(hub_like: Path, original: Path) -> None:
    config(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})(hub_like)
    (hub_like / "evil.py").write_text("raise SystemExit('ran')")
    assert same(load(hub_like), original)


def test_nobody_is_asked_whether_code_may_run(hub_like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr(builtins, "input", asked)
    (hub_like / "evil.py").write_text(f"open({str(hub_like / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    config(model_type="sigh", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})(hub_like)
    assert "code of its own" in refusal(hub_like)
    assert not (hub_like / "ran").exists()


def test_the_advice_about_pickles_is_right(hub_like: Path, original: Path, tmp_path: Path) -> None:
    pickled(hub_like)
    assert "AutoModelForCausalLM.from_pretrained(OLD, use_safetensors=False).save_pretrained(NEW)" in refusal(hub_like)
    AutoModelForCausalLM.from_pretrained(hub_like, use_safetensors=False).save_pretrained(tmp_path / "new")
    assert same(load_pretrained(tmp_path / "new"), original)


def test_the_library_s_table_is_not_printed(hub_like: Path, caplog: pytest.LogCaptureFixture) -> None:
    config(num_hidden_layers=1)(hub_like)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()  # training silences the library for the whole process
    try:
        refusal(hub_like)
        assert "LOAD REPORT" not in caplog.text
        AutoModelForCausalLM.from_pretrained(hub_like)
        assert "LOAD REPORT" in caplog.text
    finally:
        transformers_logging.set_verbosity(before)


# --- what came into a published folder later -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("other.safetensors", "pytorch_model.bin", "model.pt", "weights.pkl", "model.gguf"),
        *("adapter_config.json", "adapter_model.safetensors", "modeling.py", "custom_generate/generate.py"),
        *("chat_template.jinja", "additional_chat_templates/rag.jinja", "added_tokens.json", "special_tokens_map.json"),
        *(INDEX, "tokenizer.model", "vocab.json", "merges.txt"),
        # Whatever it is: a list of what is allowed cannot forget a format.
        *("preprocessor_config.json", "weights.unheard_of", "bpe.codes", "model", "README"),
    ],
)
def test_a_file_that_could_change_an_answer_is_refused_by_name(name: str, published: Path) -> None:
    (published / name).parent.mkdir(exist_ok=True)
    (published / name).write_bytes(b"")
    assert f"{published / name} came into a finished folder later" in refusal(published)


@pytest.mark.parametrize("name", ["model.bin", "state.pt", "state.pth", "model.ckpt", "more.pkl", "labels/more.pickle"])
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "unlisted"])
def test_a_pickle_is_refused_whether_listed_or_not(name: str, listed: bool, published: Path) -> None:
    (published / "labels").mkdir()
    (published / name).write_bytes(b"")
    if listed:
        signed_again(published)
    if listed or "/" not in name:
        assert f"{published / name} " in refusal(published)
    for act in (load_config, load_tokenizer, load_pretrained) if listed else ():
        with pytest.raises(FolderError, match=f"{name} is a pickle, which can run code"):
            act(published)


def test_an_adapter_beside_the_weights_is_refused_listed_or_not(published: Path) -> None:
    (published / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nobody/llama"}')
    (published / "adapter_model.safetensors").write_bytes((published / WEIGHTS).read_bytes())
    assert "adapter_config.json came into a finished folder later" in refusal(published)
    signed_again(published)
    assert "adapters cannot be loaded" in refusal(published)


def test_a_link_to_such_a_file_is_refused_too(published: Path, tmp_path: Path) -> None:
    (published / "adapter_config.json").symlink_to(tmp_path / "nowhere")
    assert "adapter_config.json came into a finished folder later" in refusal(published)


def test_notes_are_welcome(published: Path, original: Path) -> None:
    for name in ("README.md", "LICENSE", ".gitattributes", ".DS_Store", "curve.png", ".run.json.0123456789abcdef.tmp"):
        (published / name).write_text("my model")
    (published / "notes").mkdir()
    (published / "notes" / "scores.json").write_text("{")
    assert same(load(published), original)


def test_settings_that_were_published_must_be_there(hub_like: Path) -> None:
    (hub_like / "generation_config.json").unlink()
    write_manifest(hub_like, {"step": 7})
    tiny_language_model("llama").generation_config.save_pretrained(hub_like)
    assert "generation_config.json came into a finished folder later" in refusal(hub_like)


# --- links -----------------------------------------------------------------------------------------------------------


def test_a_link_to_the_weights_is_followed(published: Path, original: Path, tmp_path: Path) -> None:
    (published / WEIGHTS).rename(tmp_path / "elsewhere")
    (published / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    assert same(load(published), original)
    bit("elsewhere", -3)(tmp_path)
    assert f"{WEIGHTS} was truncated or changed" in refusal(published)
    (tmp_path / "elsewhere").unlink()
    assert f"{WEIGHTS} is missing" in refusal(published)


def test_a_manifest_that_cannot_be_read_is_no_missing_manifest(published: Path) -> None:
    (published / MANIFEST).rename(published / "old")
    (published / MANIFEST).symlink_to(published / "nowhere")
    assert f"no {MANIFEST}" in refusal(published)


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_name_on_the_hub_loads(hub: Path, original: Path) -> None:
    assert same(load("nobody/llama"), original)
    in_shards(hub)
    assert same(load("nobody/llama"), original)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut(5000), f"{WEIGHTS} is damaged"),
        (pickled, "a pickle .* is never read"),
        (written("generation_config.json", b"{"), "generation_config.json is damaged"),
        (written("adapter_config.json", b'{"base_model_name_or_path": "nobody/llama"}'), "nobody/llama is an adapter"),
        (config(num_hidden_layers=1), "nobody/llama: .*unexpected keys"),
        (together(in_shards, gone("model-00002-of-00005.safetensors")), "00002"),
        (gone("config.json"), "give a folder, or a model's name while the hub can be reached"),
    ],
)
def test_damage_in_the_cache_of_the_hub_is_named(change: Change, message: str, hub: Path) -> None:
    change(hub)
    assert re.search(message, refusal("nobody/llama")), refusal("nobody/llama")


@pytest.mark.parametrize("name", ["/nothing/here", "./nothing", "runs/x/seed-0/sst/model", Path("nobody/llama")])
def test_a_path_is_no_name_on_the_hub(name: str | Path) -> None:
    assert refusal(name) == f"there is no folder {name}; give one with config.json and model.safetensors"


def test_a_file_is_no_folder(hub_like: Path) -> None:
    assert "is a file; give the folder" in refusal(hub_like / WEIGHTS)


@pytest.mark.usefixtures("hub")
def test_a_name_that_nobody_has_is_refused() -> None:
    assert re.match(r"nobody/nothing cannot be loaded .*while the hub can be reached$", refusal("nobody/nothing"))


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_a_change_of_what_the_manifest_records_is_seen(published: Path) -> None:
    content = json.loads((published / MANIFEST).read_text())
    write_json(published / MANIFEST, {**content, "step": 8})
    assert "run.json was changed after it was written" in refusal(published)
    del content["digest"]
    write_json(published / MANIFEST, content)  # as older versions wrote it
    load(published)


def test_weights_are_hashed_once(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = folders.file_hash

    def counted(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(folders, "file_hash", counted)
    load_config(published)
    assert WEIGHTS not in read
    load(published)
    assert WEIGHTS in read
    # As if the folder had been there for an hour.
    now = folders.time.time_ns()
    monkeypatch.setattr(folders.time, "time_ns", lambda: now + 3600 * 10**9)
    verify(published)
    read.clear()
    load(published)
    load(published)
    assert not read
    bit(WEIGHTS, -3)(published)
    assert f"{WEIGHTS} was truncated or changed" in refusal(published)


def test_a_young_file_is_hashed_again(published: Path) -> None:
    stamp = (published / WEIGHTS).stat().st_mtime_ns
    verify(published)
    bit(WEIGHTS, -3)(published)
    os.utime(published / WEIGHTS, ns=(stamp, stamp))
    assert f"{WEIGHTS} was truncated or changed" in refusal(published)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "change", "message"),
    [
        ("generate", config(num_hidden_layers=1), "config.json was truncated or changed"),
        ("generate", together(config(num_hidden_layers=1), signed_again), "unexpected keys in the weights"),
        ("serve", written("adapter_config.json", b"{}"), "adapter_config.json came into a finished folder later"),
    ],
)
def test_a_command_ends_with_one_line(
    command: str,
    change: Change,
    message: str,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    change(published)
    monkeypatch.setattr("sys.argv", ["unspoken", command, str(published)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert re.fullmatch(rf"unspoken: .*{message}.*\n", printed.err), printed.err
