"""The first blocks of a model compute what they did below the others, or are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_hub import MINICPM_3, tiny_hub_model
from tiny_models import tiny_language_model
from torch import nn
from transformers import AutoModel, PreTrainedModel

from unspoken.backbone import depth
from unspoken.backbone.depth import require_same_blocks


def first_blocks_of(model: PreTrainedModel, count: int) -> PreTrainedModel:
    config = type(model.config).from_dict({**model.base_model.config.to_dict(), "num_hidden_layers": count})
    cut = AutoModel.from_config(config, attn_implementation="eager").eval()
    remaining = cut.state_dict().keys()
    cut.load_state_dict({name: value for name, value in model.base_model.state_dict().items() if name in remaining})
    return cut


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_first_blocks_that_stay_as_they_were(kind: str) -> None:
    model = tiny_hub_model(kind)
    model.train()
    require_same_blocks(model.base_model, first_blocks_of(model, 1))
    assert model.base_model.training


def test_first_blocks_that_depend_on_their_number_are_refused() -> None:
    model = tiny_hub_model("minicpm3", **MINICPM_3)
    with pytest.raises(
        ValueError, match="the first 1 blocks of MiniCPM3Model compute something else without those above"
    ):
        require_same_blocks(model.base_model, first_blocks_of(model, 1))


@pytest.mark.parametrize("block", [0, 1])
def test_a_block_that_was_changed_is_refused(block: int) -> None:
    full = tiny_hub_model("llama", num_hidden_layers=3).base_model
    cut = first_blocks_of(tiny_hub_model("llama", num_hidden_layers=3), 2)
    require_same_blocks(full, cut)
    with torch.no_grad():
        cut.layers[block].mlp.down_proj.weight.mul_(1.5)
    with pytest.raises(ValueError, match=r"the first 2 blocks of LlamaModel .*; set blocks to null"):
        require_same_blocks(full, cut)


def test_nothing_is_asked_where_no_block_is_missing_or_blocks_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_hub_model("llama").base_model
    changed = first_blocks_of(tiny_hub_model("llama"), model.config.num_hidden_layers)
    with torch.no_grad():
        changed.layers[0].mlp.down_proj.weight.mul_(1.5)
    require_same_blocks(model, changed)
    ours = tiny_language_model("unspoken", num_hidden_layers=1).base_model
    require_same_blocks(tiny_language_model("unspoken").base_model, ours)
    shape = first_blocks_of(tiny_hub_model("llama"), 1).config
    with torch.device("meta"):
        require_same_blocks(model, AutoModel.from_config(shape))


def test_blocks_that_are_not_found_are_refused() -> None:
    model = tiny_hub_model("llama", num_hidden_layers=3)
    cut = first_blocks_of(model, 1)
    model.base_model.layers = nn.Sequential(*model.base_model.layers)
    with pytest.raises(ValueError, match=r"the blocks of LlamaModel are not found, so they cannot be counted"):
        require_same_blocks(model.base_model, cut)


@pytest.mark.parametrize(
    ("far", "near", "same"),
    [(0.0, 0.19, True), (0.0, 0.21, False), (0.15, 0.0, True), (0.25, 0.0, False)],
)
def test_outputs_may_differ_by_a_thousandth_of_themselves_and_of_the_largest(
    monkeypatch: pytest.MonkeyPatch, far: float, near: float, same: bool
) -> None:
    """Of 100 and 90 the one may differ by 0.2 and the other by 0.19."""
    model = tiny_hub_model("llama")
    outputs = iter((torch.tensor([100.0, 90.0]), torch.tensor([100.0 - far, 90.0 + near])))
    monkeypatch.setattr(depth, "_after_block", lambda *_: next(outputs))
    if same:
        require_same_blocks(model.base_model, first_blocks_of(model, 1))
    else:
        with pytest.raises(ValueError, match="compute something else"):
            require_same_blocks(model.base_model, first_blocks_of(model, 1))


def test_of_a_block_that_returns_several_things_the_first_is_its_output() -> None:
    class Block(nn.Module):
        def __init__(self, number: float) -> None:
            super().__init__()
            self.number = number

        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, str]:
            return inputs + self.number, "something else"

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(num_hidden_layers=3)
            self.blocks = nn.ModuleList(Block(number) for number in (1.0, 10.0, 100.0))

        def forward(self, inputs_embeds: torch.Tensor, use_cache: bool) -> None:
            for block in self.blocks:
                inputs_embeds, _ = block(inputs_embeds)

    stack: Any = Stack()
    outputs = [depth._after_block(stack, count, torch.zeros(1)).item() for count in (1, 2, 3)]
    assert outputs == [1.0, 11.0, 111.0]
