"""What the library may do with our models is what it may do with the model inside."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hub import FALCON_H1, GPT, SLIDING, tiny_hub_model, tokens
from transformers import FunnelConfig, FunnelModel, PreTrainedConfig, PreTrainedModel

from unspoken.backbone.around import Around
from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.model import LatentSFTModel

KINDS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {}, "sdpa"),
    ("gptj", {**GPT, "rotary_dim": 4}, "eager"),
    ("gpt_oss", SLIDING, "eager"),
    ("mixtral", {}, "sdpa"),
]


def config_of(model: PreTrainedModel) -> PreTrainedConfig:
    """As a folder holds it, which names no attention."""
    config = copy.deepcopy(model.config)
    config._attn_implementation_internal = None
    return config


def reasoner_around(model: PreTrainedModel) -> JepaReasonerModel:
    config = JepaReasonerConfig(backbone_config=config_of(model), unit_tokens=False, pad_token_id=0, eos_token_id=1)
    around = JepaReasonerModel._from_config(config).eval()
    around.backbone.load_state_dict(model.base_model.state_dict())
    around.start_target()
    return around


def pair_around(model: PreTrainedModel) -> LatentSFTModel:
    config = LatentSFTConfig(base_config=config_of(model), shape={"rate": 2}, open_ids=[5], end_ids=[6])
    around = LatentSFTModel._from_config(config).eval()
    around.start_from(model)
    return around


@pytest.mark.parametrize(("kind", "settings", "attention"), KINDS)
def test_the_attention_that_nobody_names_is_one_that_the_model_has(
    kind: str, settings: dict[str, Any], attention: str, tmp_path: Path
) -> None:
    model = tiny_hub_model(kind, **settings)
    ids = tokens(1, 7)
    reasoner = reasoner_around(model)
    reasoner.save_pretrained(tmp_path / "reasoner")
    again = JepaReasonerModel.from_pretrained(tmp_path / "reasoner").eval()
    assert again.config._attn_implementation == again.backbone.config._attn_implementation == attention
    with torch.no_grad():
        assert torch.equal(again(ids).latents, reasoner(ids).latents)
    pair_around(model).save_pretrained(tmp_path / "pair")
    assert LatentSFTModel.from_pretrained(tmp_path / "pair").config._attn_implementation == attention
    coconut = CoconutModel._from_config(config_of(model))
    coconut.start_from(model)
    assert coconut.decoder.config._attn_implementation == attention


def test_an_attention_that_the_model_has_not_is_refused() -> None:
    model = tiny_hub_model("gptj", **GPT, rotary_dim=4)
    config = JepaReasonerConfig(backbone_config=config_of(model), eos_token_id=1)
    with pytest.raises(ValueError, match=r"does not support an attention implementation through torch.nn.functional"):
        JepaReasonerModel._from_config(config, attn_implementation="sdpa")


def test_buffers_that_are_not_saved_come_back(tmp_path: Path) -> None:
    model = tiny_hub_model("falcon_h1", **FALCON_H1)
    for name, around in (("reasoner", reasoner_around(model)), ("pair", pair_around(model))):
        around.save_pretrained(tmp_path / name)
        again = type(around).from_pretrained(tmp_path / name)
        expected = dict(around.named_buffers())
        assert any("mup_vector" in buffer for buffer in expected)
        for buffer, value in again.named_buffers():
            assert torch.equal(value, expected[buffer]), buffer


def test_a_width_that_the_config_does_not_name_is_the_width_of_the_table() -> None:
    model = tiny_hub_model("opt", ffn_dim=48, word_embed_proj_dim=16)
    assert pair_around(model).compress.shape == (16,)


@pytest.mark.parametrize(("kind", "settings", "_attention"), KINDS)
def test_what_is_supported_is_what_the_model_inside_supports(
    kind: str, settings: dict[str, Any], _attention: str
) -> None:
    model = tiny_hub_model(kind, **settings)
    coconut, inner = CoconutModel._from_config(config_of(model)), type(model.base_model)
    for name in ("_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn", "_supports_attention_backend"):
        assert getattr(coconut, name) is bool(getattr(inner, name)), name
    assert not coconut.is_custom_code()


def test_of_a_family_with_two_stacks_the_first_is_asked() -> None:
    class AroundFunnel(Around):
        config_class = FunnelConfig

    assert AroundFunnel(FunnelConfig())._inner is FunnelModel


def test_experts_are_computed_in_groups_where_the_model_inside_has_some() -> None:
    assert pair_around(tiny_hub_model("mixtral"))._grouped_mm_can_dispatch()
    with pytest.raises(ValueError, match="LlamaModel has no experts to choose an implementation of"):
        pair_around(tiny_hub_model("llama"))._grouped_mm_can_dispatch()


def test_blocks_inside_may_be_computed_again_in_the_backward_pass() -> None:
    model = pair_around(tiny_hub_model("llama"))
    model.activation_checkpointing_enable()
    assert all(block.gradient_checkpointing for block in model.decoder.base_model.layers)
