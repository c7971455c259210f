"""Adapters reach every matrix of a part once, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny_hub import ZAMBA_2, tiny_hub_model, tokens
from torch import nn
from torch.nn.utils import parametrize
from transformers import LlamaForCausalLM

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


@pytest.mark.parametrize(
    ("shape", "refused"), [((2, 4, 4), True), ((1, 4, 4), False), ((4, 4), False), ((2, 2, 4, 4), False)]
)
def test_a_matrix_for_each_expert_is_what_adapters_do_not_reach(shape: tuple[int, ...], refused: bool) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(shape))

    model = tiny_hub_model("llama")
    model.base_model.layers[1].experts = Experts()
    if refused:
        with pytest.raises(
            ValueError, match=r"LlamaForCausalLM keeps all experts of a block in one tensor \(Experts\)"
        ):
            add_adapters(model, NextToken(), SETTINGS)
    else:
        add_adapters(model, NextToken(), SETTINGS)


@pytest.mark.parametrize(("rank", "alpha", "scale"), [(2, None, 2.0), (8, None, 2.0), (8, 2.0, 0.25)])
def test_the_scale_of_adapters_is_two_whatever_their_rank_or_as_set(
    rank: int, alpha: float | None, scale: float
) -> None:
    model = tiny_hub_model("llama")
    add_adapters(model, NextToken(), LoRA(rank=rank, alpha=alpha))
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    # Four matrices of attention and three of the feed-forward part, of two blocks.
    assert [layer.scaling for layer in layers] == [{"default": scale}] * 14
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        name for name, _ in model.named_parameters() if ".lora_" in name
    }


def test_a_weight_that_moves_with_another_becomes_plain() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    model: Any = tiny_hub_model("llama")
    model.extra = nn.Parameter(torch.tensor([1.0, 2.0]))
    parametrize.register_parametrization(model, "extra", Doubled())
    add_adapters(model, NextToken(), SETTINGS)
    plain: Any = merged(model)
    assert type(plain) is LlamaForCausalLM
    assert plain.extra.tolist() == [2.0, 4.0] and isinstance(plain.extra, nn.Parameter)
    assert parametrize.is_parametrized(model, "extra")
