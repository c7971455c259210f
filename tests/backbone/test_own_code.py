"""Code that a folder brings along is never run, nobody is asked whether it should be, and the refusal is one line."""

from __future__ import annotations

import ast
import builtins
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folder_damage import Change, config, load, together
from tiny_recipe import TEXT
from transformers import AutoModel

import unspoken
from unspoken.backbone.loading import load_config, load_pretrained, load_tokenizer
from unspoken.methods.loading import load_system
from unspoken.training.context import check_backbone
from unspoken.training.recipe import parse

SOURCE = Path(unspoken.__file__).parent
CLASSES = {
    "AutoConfig": "own.Own",
    "AutoModel": "own.Own",
    "AutoModelForCausalLM": "own.Own",
    "AutoTokenizer": ["own.Own", "own.Own"],
}
INNER = {"auto_map": CLASSES, "vocab_size": 20, "hidden_size": 16}
# Folders, and whether something other than their code can load them.
FOLDERS: dict[str, tuple[Change, bool]] = {
    "unknown kind": (config(model_type="unheard_of", auto_map=CLASSES), False),
    "no kind": (config(model_type=None, auto_map=CLASSES), False),
    "kind without a causal model": (config(model_type="vit", auto_map=CLASSES), False),
    "kind with an encoder": (config(model_type="t5", auto_map=CLASSES), False),
    "known kind": (config(auto_map=CLASSES), True),
    "unknown kind inside ours": (
        config(model_type="jepa_reasoner", backbone_config={"model_type": "unheard_of", **INNER}),
        False,
    ),
    "inside a Reasoner": (config(model_type="jepa_reasoner", backbone_config={"model_type": "vit", **INNER}), False),
    "inside Latent-SFT": (config(model_type="latent_sft", base_config={"model_type": "vit", **INNER}), False),
    "inside CODI": (config(model_type="codi", base_config={"model_type": "vit", **INNER}), False),
    "tokenizer": (config("tokenizer_config.json", tokenizer_class="Own", auto_map=CLASSES), False),
    "tokenizer, by a list": (
        config("tokenizer_config.json", tokenizer_class="Own", auto_map=["own.Own", "own.Own"]),
        False,
    ),
    "both": (
        together(
            config("tokenizer_config.json", tokenizer_class="Own", auto_map=CLASSES),
            config(model_type="unheard_of", auto_map=CLASSES),
        ),
        False,
    ),
    "kernel": (config(_attn_implementation="nobody/kernel"), False),
}
WAYS: dict[str, Callable[[Path], Any]] = {
    "configuration": load_config,
    "tokenizer": load_tokenizer,
    "model": load_pretrained,
    "headless model": lambda folder: load_pretrained(folder, AutoModel),
    "both": load,
    "system": lambda folder: load_system(folder, name="own"),
    "recipe": lambda folder: check_backbone(_recipe(folder)),
    "recipe's tokenizer": lambda folder: _recipe(folder).tokenizer(),
    "conversion": lambda folder: unspoken.convert(folder, to="codi", device="cpu"),
}


def _recipe(backbone: Path) -> Any:
    text = TEXT.replace("{kind: tree_search, depth: 3}", "{kind: grade_school}")
    shape = "{hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}"
    return parse(text.replace(f"backbone: {shape}", f"backbone: {json.dumps(str(backbone))}"), "own")


@pytest.fixture
def ran(hub_like: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exists once the folder's code was run; who is asked anything says yes."""
    mark = hub_like.parent / "ran"
    (hub_like / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: ...\n")
    monkeypatch.setattr(builtins, "input", lambda *_: mark.touch() or "y")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    return mark


@pytest.mark.parametrize("name", FOLDERS)
def test_code_of_a_folder_is_never_run_nor_asked_about(name: str, hub_like: Path, ran: Path) -> None:
    change, loads = FOLDERS[name]
    change(hub_like)
    refusals = {}
    for way, act in WAYS.items():
        try:
            act(hub_like)
        except (ValueError, OSError) as error:
            refusals[way] = str(error)
        assert not ran.exists(), way
        assert sys.stdin.tell() == 0
    assert loads == ("both" not in refusals), refusals
    for way, refusal in refusals.items():
        assert "\n" not in refusal, way
    # A Reasoner takes any stack, and transformers has one of that kind; the message names what it lacks instead.
    if not loads and name not in ("kernel", "unknown kind inside ours", "inside a Reasoner"):
        assert any("never run" in refusal for refusal in refusals.values()), refusals


def test_nothing_calls_the_library_s_loaders_but_the_places_that_trust_nobody() -> None:
    """Each of these passes ``trust_remote_code=False``, or loads by a class that is known already."""
    callers = {
        f"{path.relative_to(SOURCE)}: {ast.unparse(node.func)}"
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config", "pipeline", "get_class_from_dynamic_module")
    }
    assert callers == {
        "backbone/around.py: auto.from_config",
        "backbone/folder.py: super().from_pretrained",
        "backbone/loading.py: AutoConfig.from_pretrained",
        "backbone/loading.py: AutoTokenizer.from_pretrained",
        "backbone/loading.py: auto.from_pretrained",
    }
