"""Whatever happens to a folder, it loads as it was or is refused in one line; with a manifest every change is seen."""

from __future__ import annotations

import builtins
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_language_model
from tiny_recipe import tiny_recipe
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from unspoken.backbone import folder as folders
from unspoken.backbone import loading
from unspoken.backbone.folder import MANIFEST, FolderError, verify, write_manifest
from unspoken.backbone.loading import load_config, load_pretrained, load_tokenizer
from unspoken.storage import write_json
from unspoken.tasks.tokenizing import by_character
from unspoken.training.settings import as_mapping

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LETTERS = "abcdefghijklmnopqr"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama as the hub has it."""
    path = tmp_path_factory.mktemp("hub") / "llama"
    tiny_language_model("llama").save_pretrained(path)
    by_character(["[PAD]", "[EOS]", *LETTERS]).save_pretrained(path)
    return path


@pytest.fixture
def hub_like(original: Path, tmp_path: Path) -> Path:
    """A copy of it, which has no manifest."""
    return Path(shutil.copytree(original, tmp_path / "llama"))


@pytest.fixture
def published(hub_like: Path) -> Path:
    """A copy with a manifest, as a stage publishes it."""
    write_manifest(hub_like, {"step": 7, "recipe": as_mapping(tiny_recipe())})
    return hub_like


def load(path: str | Path) -> PreTrainedModel:
    """The model, if its tokenizer loads too."""
    model = load_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    load_tokenizer(path)
    return model


def same(model: PreTrainedModel, original: Path) -> bool:
    """Whether it is the model that was saved, weight by weight."""
    expected = load_file(original / WEIGHTS)
    return all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


def refusal(path: str | Path) -> str:
    """The one line in which loading is refused."""
    with pytest.raises((ValueError, OSError)) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what can happen -------------------------------------------------------------------------------------------------


def written(name: str, content: bytes) -> Change:
    return lambda path: (path / name).write_bytes(content)


def renamed(old: str, new: str) -> Change:
    return lambda path: (path / old).rename(path / new)


def bit(name: str, place: int) -> Change:
    def change(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[place] ^= 1
        (path / name).write_bytes(content)

    return change


def cut(size: int) -> Change:
    return lambda path: os.truncate(path / WEIGHTS, size)


def zeroed(path: Path) -> None:
    (path / WEIGHTS).write_bytes(bytes((path / WEIGHTS).stat().st_size))


def gone(*names: str) -> Change:
    def change(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return change


def header(before: str, after: str) -> Change:
    """Replace something in the header of the weights."""

    def change(path: Path) -> None:
        content = (path / WEIGHTS).read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        assert before in content[8 : 8 + size].decode()
        text = content[8 : 8 + size].decode().replace(before, after, 1).encode()
        (path / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])

    return change


def weights(change: Callable[[dict[str, Tensor]], Any]) -> Change:
    def both(path: Path) -> None:
        tensors = load_file(path / WEIGHTS)
        change(tensors)
        save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})

    return both


def config(name: str = "config.json", **changes: Any) -> Change:
    def change(path: Path) -> None:
        content = {**json.loads((path / name).read_text()), **changes}
        (path / name).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return change


def pickled(path: Path) -> None:
    torch.save(load_file(path / WEIGHTS), path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()


def in_shards(path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(path)
    (path / WEIGHTS).unlink()
    model.save_pretrained(path, max_shard_size="5KB")


def signed_again(path: Path) -> None:
    write_manifest(path, json.loads((path / MANIFEST).read_text()))


def together(*changes: Change) -> Change:
    def change(path: Path) -> None:
        for one in changes:
            one(path)

    return change


GATE = "model.layers.1.mlp.gate_proj.weight"
# What happens, the file that a manifest gives away, and what is named where there is no manifest.
DAMAGE: dict[str, tuple[Change, str, str]] = {
    "bit of the length": (bit(WEIGHTS, 0), WEIGHTS, f"{WEIGHTS} is damaged"),
    "length too large": (bit(WEIGHTS, 7), WEIGHTS, f"{WEIGHTS} is damaged"),
    "bit of the header": (bit(WEIGHTS, 60), WEIGHTS, f"{WEIGHTS} is damaged"),
    "truncated": (cut(5000), WEIGHTS, f"{WEIGHTS} is damaged"),
    "truncated in the header": (cut(100), WEIGHTS, f"{WEIGHTS} is damaged"),
    "empty": (cut(0), WEIGHTS, f"{WEIGHTS} is damaged"),
    "zeros": (zeroed, WEIGHTS, f"{WEIGHTS} is damaged"),
    "other type": (header('"F32"', '"F16"'), WEIGHTS, f"{WEIGHTS} is damaged"),
    "type of integers": (header('"F32"', '"I32"'), WEIGHTS, "holds lm_head.weight as I32"),
    "other name": (header("layers.0", "layers.7"), WEIGHTS, "missing keys in the weights: model.layers.0"),
    "tensor gone": (weights(lambda all: all.pop(GATE)), WEIGHTS, f"missing keys in the weights: {GATE}"),
    "tensor added": (
        weights(lambda all: all.update(foreign=torch.zeros(2))),
        WEIGHTS,
        "unexpected keys in the weights: foreign",
    ),
    "tensor of another shape": (
        weights(lambda all: all.update({GATE: torch.zeros(3, 5)})),
        WEIGHTS,
        rf"mismatched keys in the weights: {GATE} \(\[3, 5\] in the weights, \[32, 16\] by config.json\)",
    ),
    "not a number": (weights(lambda all: all[GATE][1].fill_(torch.nan)), WEIGHTS, f"{GATE} holds values that are not"),
    "infinite": (weights(lambda all: all[GATE][1, 3].fill_(-torch.inf)), WEIGHTS, f"{GATE} holds values that are not"),
    "weights gone": (gone(WEIGHTS), WEIGHTS, f"{WEIGHTS} is missing"),
    "pickle in their place": (pickled, WEIGHTS, r"a pickle \(pytorch_model.bin\) is never read"),
    "narrower": (config(hidden_size=8), "config.json", "mismatched keys in the weights: lm_head.weight"),
    "wider": (config(hidden_size=32), "config.json", r"model of \d+ weights, but there are \d+|mismatched keys"),
    "wider than any memory": (config(vocab_size=10**12), "config.json", r"describes a model of \d+ weights"),
    "more words": (config(vocab_size=30), "config.json", "mismatched keys in the weights: lm_head.weight"),
    "fewer layers": (config(num_hidden_layers=1), "config.json", "unexpected keys .* and 4 more"),
    "more layers": (config(num_hidden_layers=3), "config.json", "missing keys .* model.layers.2.* and 4 more"),
    "no layers": (config(num_hidden_layers=-1), "config.json", "unexpected keys"),
    "no heads": (config(num_attention_heads=0), "config.json", "look at its config.json"),
    "a word for a width": (config(hidden_size="wide"), "config.json", "hidden_size.*look at its config.json"),
    "unknown activation": (config(hidden_act="sigh"), "config.json", "sigh.*look at its config.json"),
    "unknown kind": (config(model_type="sigh"), "config.json", "'sigh', which this version of transformers"),
    "no kind": (config(model_type=...), "config.json", "None, which this version of transformers"),
    "kind is a list": (config(model_type=[1]), "config.json", r"\[1\], which this version of transformers"),
    "kind of another model": (config(model_type="gpt2"), "config.json", "missing keys in the weights: transformer"),
    "kind without a head": (config(model_type="t5"), "config.json", "T5Config.*look at its config.json"),
    "code for the kind": (
        config(model_type="sigh", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
        "config.json",
        "code of its own",
    ),
    "kernel off the hub": (config(_attn_implementation="some/kernel"), "config.json", "asks for 'some/kernel', code"),
    "pickle by name": (
        together(config(transformers_weights="adapter_model.bin"), written("adapter_model.bin", b"\x80")),
        "config.json",
        "is never read",
    ),
    "config gone": (gone("config.json"), "config.json", "config.json is missing"),
    "config cut": (written("config.json", b'{"model_type": "lla'), "config.json", "config.json is damaged"),
    "config no text": (written("config.json", b"\xff\xfe\x00"), "config.json", "config.json is damaged"),
    "config a list": (written("config.json", b"[]"), "config.json", "config.json is damaged"),
    "generation cut": (written("generation_config.json", b"{"), "generation_config.json", "config.json is damaged"),
    "generation a list": (written("generation_config.json", b"[]"), "generation_config.json", "config.json is damaged"),
    "adapter beside it": (
        written("adapter_config.json", b'{"peft_type": "LORA"}'),
        "adapter_config.json",
        "an adapter",
    ),
    "tokenizer gone": (gone("tokenizer.json"), "tokenizer.json", "look at its tokenizer.json"),
    "tokenizer cut": (written("tokenizer.json", b'{"model": '), "tokenizer.json", "tokenizer.json is damaged"),
    "tokenizer zeros": (written("tokenizer.json", bytes(99)), "tokenizer.json", "tokenizer.json is damaged"),
    "tokenizer of another form": (written("tokenizer.json", b"{}"), "tokenizer.json", "look at its tokenizer.json"),
    "tokenizer of another class": (
        config("tokenizer_config.json", tokenizer_class="BertTokenizer"),
        "tokenizer_config.json",
        "UNK.*look at its tokenizer.json",
    ),
    "code for the tokenizer": (
        config("tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", None]}),
        "tokenizer_config.json",
        "code of its own",
    ),
    "tokenizer's settings cut": (written("tokenizer_config.json", b"{"), "tokenizer_config", "_config.json is damaged"),
    "template no text": (written("chat_template.jinja", b"\xff"), "chat_template.jinja", "look at its tokenizer.json"),
    "shard gone": (together(in_shards, gone("model-00002-of-00005.safetensors")), WEIGHTS, "00002.* is missing, but"),
    "index cut": (together(in_shards, written(INDEX, b"{")), WEIGHTS, f"{INDEX} is damaged"),
    "index empty": (together(in_shards, written(INDEX, b'{"weight_map": {}}')), WEIGHTS, f"{INDEX} is damaged"),
    "shards and a file": (
        together(lambda path: shutil.copy(path / WEIGHTS, path / "old"), in_shards, renamed("old", WEIGHTS)),
        "came into a finished folder later",
        "holds both",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_without_a_manifest_is_named(kind: str, hub_like: Path) -> None:
    change, _, message = DAMAGE[kind]
    change(hub_like)
    assert re.search(message, refusal(hub_like)), refusal(hub_like)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_a_published_folder_is_named(kind: str, published: Path) -> None:
    change, file, _ = DAMAGE[kind]
    change(published)
    assert re.search(file, refusal(published)), refusal(published)


# What no one can see without a manifest: the folder is a possible one.
UNSEEN: dict[str, Change] = {
    "bit of a weight": bit(WEIGHTS, -3),
    "other positions": config(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "other eps": config(rms_norm_eps=0.5),
    "other end": config("generation_config.json", eos_token_id=5),
    "no generation settings": gone("generation_config.json"),
    "other letters": lambda path: by_character(["[PAD]", "[EOS]", *reversed(LETTERS)]).save_pretrained(path),
}


@pytest.mark.parametrize("kind", UNSEEN)
def test_what_makes_another_possible_model_is_seen_with_a_manifest(kind: str, published: Path) -> None:
    UNSEEN[kind](published)
    assert re.search("hash differs|is missing", refusal(published))
    (published / MANIFEST).unlink()
    load(published)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "generation_config.json", "tokenizer.json"])
def test_a_random_change_is_refused_in_one_line_or_is_possible(name: str, hub_like: Path, original: Path) -> None:
    good, draw = (original / name).read_bytes(), random.Random(0)
    size = len(good) if name != WEIGHTS else 8 + struct.unpack("<Q", good[:8])[0]
    messages = []
    for _ in range(60):
        content, place = bytearray(good), draw.randrange(size)
        content[place] = draw.randrange(256) if draw.random() < 0.7 else content[place] ^ 1
        (hub_like / name).write_bytes(content if draw.random() < 0.9 else content[:place])
        try:
            model = load(hub_like)
        except FolderError as error:
            messages.append(str(error))
        else:
            assert same(model, original)
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)


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
    refusal(hub_like)
    assert "LOAD REPORT" not in caplog.text
    AutoModelForCausalLM.from_pretrained(hub_like)
    assert "LOAD REPORT" in caplog.text


# --- what came into a published folder later -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("other.safetensors", "pytorch_model.bin", "model.pt", "weights.pkl", "model.gguf"),
        *("adapter_config.json", "adapter_model.safetensors", "modeling.py", "custom_generate/generate.py"),
        *("chat_template.jinja", "additional_chat_templates/rag.jinja", "added_tokens.json", "special_tokens_map.json"),
        *(INDEX, "tokenizer.model", "vocab.json", "merges.txt"),
    ],
)
def test_a_file_that_could_change_an_answer_is_refused_by_name(name: str, published: Path) -> None:
    (published / name).parent.mkdir(exist_ok=True)
    (published / name).write_bytes(b"")
    assert f"{published / name} came into a finished folder later" in refusal(published)


def test_a_link_to_such_a_file_is_refused_too(published: Path, tmp_path: Path) -> None:
    (published / "adapter_config.json").symlink_to(tmp_path / "nowhere")
    assert "adapter_config.json came into a finished folder later" in refusal(published)


def test_notes_are_welcome(published: Path, original: Path) -> None:
    (published / "README.md").write_text("my model")
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


@pytest.fixture
def hub(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of ``nobody/llama`` in the hub's cache."""
    repository = tmp_path / "cache" / "models--nobody--llama"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    shutil.copytree(original, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(loading, "_snapshots", {})
    return snapshot


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
        (written("adapter_config.json", b'{"base_model_name_or_path": "nobody/llama"}'), "nobody/llama an adapter"),
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
def test_a_command_ends_with_one_line(command: str, change: Change, message: str, published: Path) -> None:
    change(published)
    done = subprocess.run(
        [sys.executable, "-m", "unspoken.cli", command, str(published)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(rf"unspoken: .*{message}.*\n", done.stderr), done.stderr
