"""Parameter counts of the paper's shapes, and shapes that cannot be built."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from unspoken.backbone import UnspokenConfig, UnspokenForCausalLM, UnspokenModel
from unspoken.methods.jepa_reasoner.talker import MonoTalker
from unspoken.training.plan import plan
from unspoken.training.recipe import load


def in_blocks(model: nn.Module) -> int:
    """Parameters of attention and FFN matrices."""
    return sum(weight.numel() for name, weight in model.named_parameters() if "proj" in name)


def paper_shape(**settings: int) -> UnspokenConfig:
    shape = {"vocab_size": 21, "hidden_size": 384, "attention_size": 768, "intermediate_size": 1536}
    return UnspokenConfig(**(shape | settings))


def test_the_tree_search_reasoner_has_42_million_parameters() -> None:
    with torch.device("meta"):
        model = UnspokenForCausalLM(paper_shape(num_hidden_layers=18, num_attention_heads=16))
    assert in_blocks(model) == 18 * (4 * 384 * 768 + 2 * 384 * 1536) == 42_467_328
    # Table (tied with the head), two gains a block and the last one are all there is besides.
    everything = sum(weight.numel() for weight in model.parameters())
    assert everything == in_blocks(model) + 21 * 384 + (2 * 18 + 1) * 384


def test_the_mono_talker_has_14_million_parameters() -> None:
    with torch.device("meta"):
        talker = MonoTalker(paper_shape(num_hidden_layers=6, num_attention_heads=8))
    assert in_blocks(talker) == 6 * (4 * 384 * 768 + 2 * 384 * 1536) == 14_155_776
    # No token embedding: only the head knows the vocabulary.
    assert [name for name, weight in talker.named_parameters() if 21 in weight.shape] == ["lm_head.weight"]


def test_the_paper_recipe_builds_the_paper_s_sizes() -> None:
    facts = {entry["stage"]: entry for entry in plan(load("tree-search", "paper"))["models"]}
    assert 42.4e6 < facts["sst"]["trained"] < 42.6e6
    assert 14.1e6 < facts["talker"]["trained"] < 14.3e6


def test_qk_norm_adds_no_parameters() -> None:
    model = UnspokenModel(UnspokenConfig(num_hidden_layers=1))
    assert {name for name, _ in model.named_parameters()} == {
        "embed_tokens.weight",
        "layers.0.attention_norm.weight",
        "layers.0.attention.q_proj.weight",
        "layers.0.attention.k_proj.weight",
        "layers.0.attention.v_proj.weight",
        "layers.0.attention.o_proj.weight",
        "layers.0.ffn_norm.weight",
        "layers.0.ffn.up_proj.weight",
        "layers.0.ffn.down_proj.weight",
        "norm.rms.weight",
    }


def test_head_and_table_are_one_tensor() -> None:
    model = UnspokenForCausalLM(UnspokenConfig(num_hidden_layers=1))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": -3}, "hidden_size"),
        ({"attention_size": 0}, "attention_size"),
        ({"intermediate_size": -1}, "intermediate_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"attention_size": 100, "num_attention_heads": 3}, "attention_size"),
        ({"attention_size": 100, "num_attention_heads": 3}, "num_attention_heads"),
        ({"attention_size": 12, "num_attention_heads": 4}, "attention_size"),
        ({"attention_size": 12, "num_attention_heads": 4}, "num_attention_heads"),
        ({"qk_norm": "batch"}, "qk_norm"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
    ids=str,
)
def test_a_shape_that_cannot_be_built_is_refused_by_key(settings: dict[str, int | str], key: str) -> None:
    with pytest.raises(StrictDataclassError, match=key):
        UnspokenConfig(**settings)  # type: ignore[arg-type]


def test_a_shape_that_was_spoiled_later_is_refused_when_it_is_built() -> None:
    config = UnspokenConfig()
    config.num_attention_heads = 3
    with pytest.raises(ValueError, match="num_attention_heads"):
        UnspokenModel(config)
