"""Adapters reach every matrix of a part once, or are refused."""

from __future__ import annotations

import pytest
import torch
from tiny_hub import ZAMBA_2, tiny_hub_model, tokens
from torch import nn

from unspoken.methods.coupled.stages import NextToken
from unspoken.training.adapters import add_adapters, merged
from unspoken.training.parts import LoRA

SETTINGS = LoRA(rank=2, dropout=0.0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_what_is_published_is_what_was_trained(kind: str) -> None:
    settings = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False} if kind == "lfm2" else {}
    model = tiny_hub_model(kind, **settings)
    before = model(tokens(1, 8)).logits
    add_adapters(model, NextToken(), SETTINGS)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    trained = model(tokens(1, 8)).logits
    assert not torch.allclose(trained, before)
    torch.testing.assert_close(merged(model)(tokens(1, 8)).logits, trained, rtol=1e-4, atol=1e-4)


def test_experts_in_one_tensor_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"lora: MixtralForCausalLM keeps all experts of a block in one tensor .Mixtral"
    ):
        add_adapters(tiny_hub_model("mixtral"), NextToken(), SETTINGS)


def test_blocks_that_share_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora: blocks of Zamba2ForCausalLM share weights, .* set lora to null"):
        add_adapters(tiny_hub_model("zamba2", **ZAMBA_2), NextToken(), SETTINGS)
