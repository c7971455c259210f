"""What can happen to the folder of a model, and how it is loaded afterwards."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from unspoken.backbone.folder import MANIFEST, write_manifest
from unspoken.backbone.loading import load_pretrained, load_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LETTERS = "abcdefghijklmnopqr"
Change = Callable[[Path], Any]


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
