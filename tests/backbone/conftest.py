"""Folders of a small Llama: as the hub has them, as a stage publishes them, and in the hub's cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from folder_damage import LETTERS
from tiny_models import tiny_language_model
from tiny_recipe import tiny_recipe

from unspoken.backbone import loading
from unspoken.backbone.folder import write_manifest
from unspoken.tasks.tokenizing import by_character
from unspoken.training.settings import as_mapping


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
