"""Train the small models that come with the package, and write them into ``src/unspoken/weights``.

``python benchmarks/weights.py`` makes all of them, ``python benchmarks/weights.py NAME`` one. Weights are stored in
bfloat16, which halves the files; they are read in float32 as those of every folder.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unspoken import weights
from unspoken.backbone.folder import publish, read_manifest
from unspoken.methods import catalogue
from unspoken.training.recipe import Recipe, load
from unspoken.training.run import train

# What each is called, and the shipped recipe and the stage that make it.
MODELS = {
    "tree-search": ("tree-search", "tiny", "talker"),
    "cups": ("cups", "small", "latent_sft_2_rollouts"),
}


def write(name: str, recipe: Recipe, stage: str, runs: Path) -> Path:
    """Train a recipe's first seed, which goes on after an interruption, and store the model of one of its stages."""
    run = train(recipe, runs / name, seeds=1, report_to=[], console=Console())[0]
    trained = run.model_folder(stage)
    final = Path(weights.__file__).parent / name
    staging = final.with_name(f".{name}")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(trained, staging, ignore=shutil.ignore_patterns("*.safetensors", "run.json"))
    model: Any = catalogue.load(trained, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(staging)
    publish(staging, final, read_manifest(trained))
    return final


def main() -> None:
    runs = Path(tempfile.gettempdir()) / "unspoken-weights"
    for name in sys.argv[1:] or MODELS:
        recipe, size, stage = MODELS[name]
        print(write(name, load(recipe, size), stage, runs))


if __name__ == "__main__":
    main()
