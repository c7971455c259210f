"""Whatever happens to a folder, it loads as it was or is refused in one line; with a manifest every change is seen."""

from __future__ import annotations

import random
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from folder_damage import (
    INDEX,
    LETTERS,
    WEIGHTS,
    Change,
    bit,
    config,
    cut,
    gone,
    header,
    in_shards,
    load,
    pickled,
    refusal,
    renamed,
    same,
    together,
    weights,
    written,
    zeroed,
)

from unspoken.backbone.folder import MANIFEST, FolderError
from unspoken.tasks.tokenizing import by_character

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
    "integers of an unknown quantisation": (
        together(header('"F32"', '"I32"'), config(quantization_config={"quant_method": "sigh"})),
        "config.json|model.safetensors",
        "holds lm_head.weight as I32",
    ),
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
        content, position = bytearray(good), draw.randrange(size)
        content[position] = draw.randrange(256) if draw.random() < 0.7 else content[position] ^ 1
        (hub_like / name).write_bytes(content if draw.random() < 0.9 else content[:position])
        try:
            model = load(hub_like)
        except FolderError as error:
            messages.append(str(error))
        else:
            assert same(model, original)
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)
