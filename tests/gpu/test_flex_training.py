"""FlexAttention trains on a GPU, and learns what the fused kernel learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_recipe import quiet_train

from unspoken.backbone.folder import read_manifest
from unspoken.training.recipe import parse

# The kernel wants heads of 16 numbers at least.
TEXT = """
name: words
size: tiny
precision: fp32
task: {kind: arithmetic, steps: [2, 3], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2}
stages:
  - &stage {name: cot, objective: {kind: next_token}, steps: 4, evaluate_every: 4, batch_size: 4}
  - <<: *stage
    name: encoder
    start: cot
    objective: {kind: stage1, train: encoder, shape: {rate: 2, top_k: 5}}
evaluation: {problems: 4, validation_problems: 4, batch_size: 4, max_latents: 4, max_answer: 4}
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has a backward pass on CUDA alone")
def test_steps_with_it_are_steps_with_the_fused_kernel(tmp_path: Path) -> None:
    losses = []
    for attention in ("sdpa", "flex_attention"):
        recipe = parse(TEXT, "words", [f"attention={attention}"])
        quiet_train(recipe, tmp_path / attention)
        folders = [tmp_path / attention / "seed-0" / stage.name / "model" for stage in recipe.stages]
        losses.append(
            [entry["loss"] for folder in folders for entry in read_manifest(folder)["history"] if "loss" in entry]
        )
    assert len(losses[0]) == 2
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-2, atol=1e-2)
